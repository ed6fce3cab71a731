"""Volumes for the claims of the default storage class: each is a directory on the node.

They are of type `local`, not `hostPath`: to those the kubelet gives the group that a pod's
fsGroup says, as to a real disk. As the root of a real disk, a new one belongs to root and
nobody else may write. Its size is not enforced.
"""

import shutil
from pathlib import Path

from .addons import PROVISIONER

FOLDER = Path("/var/lib/volumes")


def look(api):
    """Makes what claims wait for, and removes what nobody claims any more."""
    volumes = api.list("/api/v1/persistentvolumes")
    there = {volume["metadata"]["name"] for volume in volumes}
    for claim in api.list("/api/v1/persistentvolumeclaims"):
        name = f"pvc-{claim['metadata']['uid']}"
        if is_wanted(claim) and name not in there:
            provision(api, claim, name)
    for volume in volumes:
        if is_released(volume):
            name = volume["metadata"]["name"]
            shutil.rmtree(FOLDER / name, ignore_errors=True)
            api.delete(f"/api/v1/persistentvolumes/{name}")
            print(f"removed {name}", flush=True)


def is_wanted(claim):
    """The controller manager names the provisioner, the scheduler the node: when a pod waits."""
    annotations = claim["metadata"].get("annotations", {})
    return (
        annotations.get("volume.kubernetes.io/storage-provisioner") == PROVISIONER
        and "volume.kubernetes.io/selected-node" in annotations
        and not claim["spec"].get("volumeName")
        and "deletionTimestamp" not in claim["metadata"]
    )


def is_released(volume):
    return (
        volume["metadata"].get("annotations", {}).get("pv.kubernetes.io/provisioned-by") == PROVISIONER
        and volume["status"].get("phase") == "Released"
        and volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
        and "deletionTimestamp" not in volume["metadata"]
    )


def provision(api, claim, name):
    meta, spec = claim["metadata"], claim["spec"]
    if spec.get("volumeMode") == "Block":
        return  # there are none; the claim stays Pending
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    storage_class = api.get(f"/apis/storage.k8s.io/v1/storageclasses/{spec['storageClassName']}")
    node = meta["annotations"]["volume.kubernetes.io/selected-node"]
    api.apply("/api/v1/persistentvolumes", {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER}},
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "volumeMode": "Filesystem",
            "storageClassName": spec["storageClassName"],
            "persistentVolumeReclaimPolicy": storage_class.get("reclaimPolicy", "Delete"),
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"]},
            "local": {"path": str(folder)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}},
        },
    })
    print(f"made {name} for {meta['namespace']}/{meta['name']}", flush=True)
