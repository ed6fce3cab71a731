"""The addresses of a node, and the veth pair that leads to it.

Each cluster has a quarter of a /16 in 198.18.0.0/15, which is set aside for tests of network
devices and so is in nobody's network. The node has no default route: nothing in it reaches
the outside, and a name of the outside is answered at once, not after a timeout.
"""

import ipaddress
import json
import subprocess

from .problem import Problem

CLUSTERS = list(ipaddress.ip_network("198.18.0.0/15").subnets(new_prefix=18))


class Network:
    """The addresses of cluster number `slot`: 198.18.0.1 is the host and 198.18.0.2 the node
    in the first; each pod has one of 198.18.16.0/20, each Service one of 198.18.32.0/20."""

    def __init__(self, slot):
        self.slot = slot
        self.all = CLUSTERS[slot]
        link, self.pods, self.services = list(self.all.subnets(new_prefix=20))[:3]
        self.prefix = 30
        self.host, self.node = str(link[1]), str(link[2])
        self.api_service, self.dns = str(self.services[1]), str(self.services[10])
        self.name = f"kube-e2e-{slot}"
        self.peer = f"{self.name}-n"  # until it is eth0 of the node


def ip(*arguments):
    """Runs ip. Returns its error, where it fails."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    return (done.stderr.strip() or f"status {done.returncode}") if done.returncode else None


def must_ip(*arguments):
    error = ip(*arguments)
    if error:
        raise Problem(f"ip {' '.join(arguments)}: {error}")


def _taken():
    """The networks that this machine has routes to, but for those that lead everywhere, as
    0.0.0.0/1 of a VPN does."""
    done = subprocess.run(["ip", "-json", "-4", "route", "show", "table", "all"], capture_output=True, text=True)
    routes = json.loads(done.stdout or "[]") if done.returncode == 0 else []
    networks = [ipaddress.ip_network(route["dst"], strict=False) for route in routes if route["dst"] != "default"]
    return [network for network in networks if network.prefixlen >= 8]


def reserve():
    """A network that is free. The veth pair is made at once: its name is the reservation."""
    reasons = []
    for slot in range(len(CLUSTERS)):
        network = Network(slot)
        if any(network.all.overlaps(taken) for taken in _taken()):
            reasons.append(f"{network.all} has a route already")
            continue
        error = ip("link", "add", network.name, "type", "veth", "peer", "name", network.peer)
        if error is None:
            return network
        reasons.append(f"{network.name}: {error}")
    raise Problem("\n  ".join(["there is no free network; end other clusters with `scripts/cluster down`", *reasons]))


def connect(network, process):
    """Gives one end to the namespace of a process, and leads this machine to the node."""
    must_ip("link", "set", network.peer, "netns", str(process), "name", "eth0")
    must_ip("address", "add", f"{network.host}/{network.prefix}", "dev", network.name)
    must_ip("link", "set", network.name, "up")
    # Pods and Services; that of the link itself came with the address.
    must_ip("route", "add", str(network.all), "via", network.node, "dev", network.name)


def disconnect(network):
    ip("link", "delete", network.name)  # gone already where the node's end went with its namespace


def configure_node(network):
    """The other end, from inside."""
    must_ip("link", "set", "lo", "up")
    must_ip("address", "add", f"{network.node}/{network.prefix}", "dev", "eth0")
    must_ip("link", "set", "eth0", "up")
    # Without any route to an address nothing asks the rules of kube-proxy, which lead elsewhere.
    must_ip("route", "add", str(network.services), "dev", "lo", "src", network.node)
    with open("/proc/sys/net/ipv4/ip_forward", "w") as forward:
        forward.write("1")
