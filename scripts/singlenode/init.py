"""Pid 1 of the node's namespaces: makes them look like an empty machine, then waits.

It ends when its standard input does, that is with the keeper; and the kernel ends every
process of the namespace with it.
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from singlenode import cgroups, network  # noqa: E402

# The kubelet sets these for the whole machine, namespaces or not. It finds them set instead.
SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
# Folders of the system that the node's programs write to: it has its own. /run is another.
OWN = ["/var/lib", "/var/log"]


def mount(*arguments):
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"mount {' '.join(arguments)}: {done.stderr.strip()}")


def bind(file, over):
    """A file of the node's in place of one of the system's."""
    # A link into /run (as that of systemd-resolved) leads nowhere here: /run is empty.
    target = Path(os.path.realpath(over))
    if target.is_relative_to("/run"):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.read_text())
    elif target.exists():
        mount("--bind", str(file), str(target))


def mount_cgroups(version_2, named):
    if version_2:
        mount("-t", "cgroup2", "cgroup2", str(cgroups.ROOT))
        return
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(cgroups.ROOT))
    for name, option in named:
        folder = cgroups.ROOT / name
        folder.mkdir()
        mount("-t", "cgroup", "-o", f"none,{option}" if option.startswith("name=") else option, "cgroup", str(folder))
        for alias in name.split(",") if "," in name else ():
            (cgroups.ROOT / alias).symlink_to(name)


def main():
    # Still that of the keeper's processes: there this number is known.
    print(os.readlink("/proc/self"), flush=True)
    folder, slot = Path(sys.argv[1]), int(sys.argv[2])
    addresses = network.Network(slot)
    version_2, named = cgroups.is_version_2(), cgroups.mounts()  # as long as they can be seen
    sys.stdin.readline()  # the veth is here now, and the control groups are ready

    for kind, path in (("proc", "/proc"), ("sysfs", "/sys")):
        # Else the list of mounts has the machine's below, with control groups that lie outside.
        subprocess.run(["umount", "--recursive", "--lazy", path], check=True)
        mount("-t", kind, kind, path)
    mount_cgroups(version_2, named)
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    Path("/run/lock").mkdir()
    for path in OWN:
        own = folder / path.strip("/").replace("/", "-")
        own.mkdir(parents=True, exist_ok=True)
        mount("--bind", str(own), path)
    socket.sethostname("node")
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{addresses.node} node\n")
    (folder / "resolv.conf").write_text(
        f"search svc.cluster.local cluster.local\nnameserver {addresses.dns}\noptions ndots:5\n")
    bind(folder / "hosts", "/etc/hosts")
    bind(folder / "resolv.conf", "/etc/resolv.conf")
    for name, value in SYSCTLS.items():
        file = folder / f"sysctl.{name.replace('/', '.')}"
        file.write_text(f"{value}\n")
        bind(file, f"/proc/sys/{name}")
    mount("--make-rshared", "/")  # the kubelet hands mounts on to containers
    network.configure_node(addresses)

    # The kernel reaps the orphans that come to pid 1, where it ignores their end.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
