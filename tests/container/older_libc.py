"""Let programs that were linked on glibc 2.38 run on Debian 12's 2.36: older_libc.py PROGRAM...

A C23 compiler makes strtol out of __isoc23_strtol (they differ in numbers that begin with 0b). Such references are
renamed, in place, and get the version of the C library's oldest symbols. Anything else that is too new is refused.
"""

import struct
import sys
from pathlib import Path

NEWEST = (2, 36)
PREFIX = b"__isoc23_strto"
_DYNSYM, _VERNEED, _VERSYM = 11, 0x6FFFFFFE, 0x6FFFFFFF


def release(name: bytes) -> tuple[int, ...] | None:
    """Return the release in a version name such as GLIBC_2.38; None for other names."""
    number = name.removeprefix(b"GLIBC_")
    return tuple(map(int, number.split(b"."))) if number != name and number[:1].isdigit() else None


def turned(data: bytearray) -> int:
    """Rename the references in a 64-bit little-endian ELF file, and return their number.

    Raises ValueError if the file cannot be changed.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("is not a 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, table + size * number) for number in range(count)]
    sections = {header[1]: header for header in headers if header[1] in {_DYNSYM, _VERNEED, _VERSYM}}
    symbols, versions, needs = sections[_DYNSYM], sections[_VERSYM][4], sections[_VERNEED]
    strings = headers[symbols[6]][4]

    def text(offset: int) -> bytes:
        return bytes(data[strings + offset : data.index(0, strings + offset)])

    known: dict[
        int, tuple[tuple[int, ...], int]
    ] = {}  # by index of a version: its release, and the offset of its entry
    need = needs[4]
    for _ in range(needs[7]):
        _, entries, _, first, following = struct.unpack_from("<HHIII", data, need)
        entry = need + first
        for _ in range(entries):
            _, _, index, name, step = struct.unpack_from("<IHHII", data, entry)
            found = release(text(name))
            if found:
                known[index] = (found, entry)
            entry += step
        need += following
    newer = {index for index, (found, _) in known.items() if found > NEWEST}
    changed = 0
    for number in range(symbols[5] // 24):
        (index,) = struct.unpack_from("<H", data, versions + 2 * number)
        if index & 0x7FFF not in newer:
            continue
        where = symbols[4] + 24 * number
        (name,) = struct.unpack_from("<I", data, where)
        if not text(name).startswith(PREFIX):
            raise ValueError(f"wants {text(name).decode()}, which this C library does not have")
        struct.pack_into("<I", data, where, name + len("__isoc23_"))
        changed += 1
    oldest = min(known.values())[1]
    for index in newer:  # its entry now names the oldest version, with the same index
        entry = known[index][1]
        data[entry : entry + 4] = data[oldest : oldest + 4]
        data[entry + 8 : entry + 12] = data[oldest + 8 : oldest + 12]
    return changed


def main() -> None:
    """Change each program."""
    for name in sys.argv[1:]:
        path = Path(name)
        data = bytearray(path.read_bytes())
        try:
            changed = turned(data)
        except ValueError as error:
            sys.exit(f"{path}: {error}")
        if changed:
            path.write_bytes(data)
        print(f"{path}: {changed} references turned")


if __name__ == "__main__":
    main()
