"""A process on the node that does what no component of Kubernetes does: it makes volumes for
claims, and registers the metrics API once that can be served.

usage: agent.py API-SERVER CA CERTIFICATE KEY
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from singlenode import addons, volumes  # noqa: E402
from singlenode.api import Api, Refused  # noqa: E402

# Both look at everything each time, so that nothing is missed; both lists are short.
PAUSE = 0.3


def register_metrics(address, authority, certificate, key, api):
    """An API that is registered and not served would hold up the deletion of every namespace;
    metrics-server is ready after its second look at the node. Returns whether it is done."""
    if not Api(address, addons.METRICS_PORT, authority, certificate, key, addons.METRICS_HOST).works():
        return False
    group, _, rest = addons.METRICS_API.partition(".")
    api.apply("/apis/apiregistration.k8s.io/v1/apiservices", {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": addons.METRICS_API},
        "spec": {
            "group": rest, "version": group, "groupPriorityMinimum": 100, "versionPriority": 100,
            "service": {"name": addons.METRICS_HOST.split(".")[0], "namespace": addons.SYSTEM},
            "caBundle": addons.base64(Path(authority)),
        },
    })
    return True


def main():
    address, authority, certificate, key = sys.argv[1:]
    api = Api(address, 6443, authority, certificate, key)
    registered = False
    while True:
        try:
            volumes.look(api)
            registered = registered or register_metrics(address, authority, certificate, key, api)
        except (OSError, Refused) as error:
            print(error, flush=True)  # tried again
            time.sleep(1)
        time.sleep(PAUSE)


if __name__ == "__main__":
    main()
