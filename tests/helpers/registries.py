"""A local container registry with one image, for tests."""

import contextlib
import gzip
import hashlib
import json
import socket
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@contextlib.contextmanager
def registry(folder: Path) -> Iterator[str]:
    """Run a registry on the loopback interface. Yields: its address."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": address},
        "log": {"level": "error", "accesslog": {"disabled": True}},
    }
    (folder / "config.json").write_text(json.dumps(settings))  # JSON is also YAML
    with subprocess.Popen(
        ["docker-registry", "serve", folder / "config.json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            until = time.monotonic() + 30
            while True:
                try:
                    urllib.request.urlopen(f"http://{address}/v2/", timeout=5).close()
                    break
                except (urllib.error.URLError, ConnectionError):
                    assert time.monotonic() < until, "the registry does not answer"
                    time.sleep(0.1)
            yield address
        finally:
            process.terminate()


def _send(method: str, address: str, data: bytes, kind: str) -> str:
    request = urllib.request.Request(address, data=data, method=method, headers={"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return str(answer.headers.get("Location", ""))


def push(address: str, name: str, root: Path) -> str:
    """Push a root folder to a registry as an image of one layer. Returns: the image's digest."""
    packed = root.with_name("layer.tar.gz")
    with gzip.open(packed, "wb", compresslevel=1) as file, tarfile.open(fileobj=file, mode="w|") as archive:
        archive.add(root, arcname=".")
    layer = packed.read_bytes()
    plain = hashlib.sha256(gzip.decompress(layer)).hexdigest()
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{plain}"]},
        }
    ).encode()

    def blob(data: bytes, kind: str) -> dict[str, object]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        place = _send("POST", f"http://{address}/v2/{name}/blobs/uploads/", b"", "application/octet-stream")
        joint = "&" if "?" in place else "?"
        _send("PUT", f"{place}{joint}digest={digest}", data, "application/octet-stream")
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": blob(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [blob(layer, "application/vnd.oci.image.layer.v1.tar+gzip")],
        }
    ).encode()
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    _send("PUT", f"http://{address}/v2/{name}/manifests/{digest}", manifest, _MANIFEST)
    packed.unlink()
    return digest


def mirrored(folder: Path, address: str) -> list[str]:
    """Return words in front of a command that make the registry its mirror of docker.io."""
    settings, system = folder / "containers", Path("/etc/containers")
    settings.mkdir()
    system.mkdir(exist_ok=True)
    (settings / "registries.conf").write_text(
        '[[registry]]\nprefix = "docker.io"\nlocation = "docker.io"\n'
        f'[[registry.mirror]]\nlocation = "{address}"\ninsecure = true\n'
    )
    return ["unshare", "--mount", "sh", "-c", f'mount --bind "$0" {system} && exec "$@"', str(settings)]
