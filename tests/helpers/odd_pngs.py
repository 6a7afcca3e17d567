"""Write PNG files chunk by chunk, with depths and chunks that Pillow cannot write."""

import struct
import zlib

import numpy as np

GREY, PALETTE = 0, 3


def chunk(kind, data):
    """Return a chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values, bits, colour=GREY, *, before=b"", behind=b"", size=None):
    """Return a PNG of integers (H, W). ``before``, ``behind``: chunks around the pixels. ``size``: declared size."""
    values = np.asarray(values)
    height, width = size or values.shape
    planes = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = [b"\0" + np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in planes]
    palette = chunk(b"PLTE", bytes(range(256)) * 3) if colour == PALETTE and bits == 8 else b""
    palette = chunk(b"PLTE", bytes(range(2**bits)) * 3) if colour == PALETTE and bits < 8 else palette
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)),
            before,
            palette,
            chunk(b"IDAT", zlib.compress(b"".join(rows))),
            behind,
            chunk(b"IEND", b""),
        ]
    )
