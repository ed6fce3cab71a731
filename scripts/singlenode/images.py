"""An image of a single static program, as an OCI archive that containerd imports."""

import hashlib
import io
import json
import platform
import tarfile

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
EPOCH = "1970-01-01T00:00:00Z"


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _entry(name, data, mode):
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    return entry, io.BytesIO(data)


def write(archive, name, program):
    """An image with nothing but this program, as /NAME-OF-THE-PROGRAM and its entry point."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.addfile(*_entry(program.name, program.read_bytes(), 0o755))
    layer = layer.getvalue()
    config = json.dumps({
        "architecture": ARCHITECTURE, "os": "linux", "created": EPOCH,
        "config": {"Entrypoint": [f"/{program.name}"], "Env": ["PATH=/"]},
        "rootfs": {"type": "layers", "diff_ids": [sha256(layer)]},
        "history": [{"created": EPOCH}],
    }).encode()

    def described(data, kind):
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": sha256(data), "size": len(data)}

    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described(config, "config.v1+json"), "layers": [described(layer, "layer.v1.tar")],
    }).encode()
    index = json.dumps({"schemaVersion": 2, "manifests": [
        {**described(manifest, "manifest.v1+json"), "annotations": {"io.containerd.image.name": name}},
    ]}).encode()
    with tarfile.open(archive, "w") as tar:
        tar.addfile(*_entry("oci-layout", b'{"imageLayoutVersion":"1.0.0"}', 0o644))
        for blob in (layer, config, manifest):
            tar.addfile(*_entry(f"blobs/sha256/{sha256(blob)[7:]}", blob, 0o644))
        tar.addfile(*_entry("index.json", index, 0o644))
