"""Reads a repository with the hub's own client library and prints what it saw.

tests/fetch.rs runs this against the fake hub (HF_ENDPOINT) and compares the
output with what the fake hub holds: if the fake did not speak the hub's
protocol, the library would not understand it.

Usage: hub_client.py REPO REVISION FILE
"""

import hashlib
import json
import pathlib
import sys

from huggingface_hub import HfApi, __version__, hf_hub_download, snapshot_download


def sha256(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    repo, revision, file = sys.argv[1:]

    info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    files = {
        sibling.rfilename: {
            "size": sibling.size,
            "blob_id": sibling.blob_id,
            "lfs_sha256": sibling.lfs.sha256 if sibling.lfs else None,
        }
        for sibling in info.siblings
    }
    snapshot = pathlib.Path(snapshot_download(repo, revision=revision))
    single = pathlib.Path(
        hf_hub_download(repo, file, revision=revision, force_download=True)
    )
    report = {
        "version": __version__,
        "id": info.id,
        "commit": info.sha,
        "snapshot_commit": snapshot.name,
        "files": files,
        "snapshot": {
            str(path.relative_to(snapshot)): sha256(path)
            for path in sorted(snapshot.rglob("*"))
            if path.is_file()
        },
        "single": sha256(single),
    }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
