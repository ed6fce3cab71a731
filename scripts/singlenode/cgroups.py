"""The node's own control groups, under the root of each hierarchy that this machine has.

The node's is the root of its cgroup namespace. The processes of the harness and of the
control plane are in its child SYSTEM, because version 2 lets a group that has processes of
its own give no controllers to others, and the pods' groups need them.
"""

import contextlib
import errno
import os
import re
import time
from pathlib import Path

from .problem import Problem

ROOT = Path("/sys/fs/cgroup")
SYSTEM = "system"
# What the kubelet and runc use, of what there is.
CONTROLLERS = ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"]


def is_version_2():
    return (ROOT / "cgroup.controllers").exists()


def hierarchies():
    """Where each is mounted, and its controllers as the mount option that names them."""
    if is_version_2():
        return [(ROOT, "")]
    known = {line.split()[0] for line in Path("/proc/cgroups").read_text().splitlines()[1:]}
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, filesystem = line.partition(" - ")
        folder = Path(mount.split(" ")[4])
        kind, _, options = filesystem.split(" ", 2)
        if kind == "cgroup" and folder.parent == ROOT:  # others are those of some container
            named = [option for option in options.split(",") if option in known or option.startswith("name=")]
            found[folder] = ",".join(named)
    if not found:
        raise Problem(f"{ROOT} has no control groups; mount them, as the system's init does")
    return list(found.items())


def paths(name):
    """The group `name` in each hierarchy."""
    return [root / name for root, _ in hierarchies()]


def create(name):
    """Makes the groups, each with its child for the processes of the harness."""
    for root, controllers in hierarchies():
        group = root / name
        try:
            for folder in (group, group / SYSTEM):
                folder.mkdir(exist_ok=True)
                if "cpuset" in controllers.split(","):  # no process can enter before
                    for file in ("cpuset.cpus", "cpuset.mems"):
                        (folder / file).write_text((folder.parent / file).read_text())
        except OSError as error:
            raise Problem(f"{group} cannot be made ({error.strerror}); the node needs root and writable control "
                          "groups (in a container: run it with --privileged)") from error


def open_root():
    """Lets groups below the root have controllers (version 2), as most systems do already.
    Returns those for which that is new."""
    return _enable(ROOT) if is_version_2() else []


def close_root(controllers):
    """Takes back what `open_root` did, where nobody else makes use of it by now."""
    for controller in controllers:
        with contextlib.suppress(OSError):
            (ROOT / "cgroup.subtree_control").write_text(f"-{controller}")


def _enable(group):
    there = (group / "cgroup.controllers").read_text().split()
    enabled = (group / "cgroup.subtree_control").read_text().split()
    wanted = [name for name in CONTROLLERS if name in there and name not in enabled]
    try:
        (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in wanted))
    except OSError as error:
        hint = " because processes are in it; move them to a child group" if error.errno == errno.EBUSY else ""
        raise Problem(f"{group} gives its children no controllers{hint} ({error.strerror})") from error
    return wanted


def settle(groups, processes):
    """Moves processes from the node's groups to the child, and prepares the groups for pods."""
    for group in groups:
        for process in processes:
            (group / SYSTEM / "cgroup.procs").write_text(str(process))
        if is_version_2():
            _enable(group)


def join(groups):
    """Moves this process to the node's groups: first thing in a new process."""
    for group in groups:
        (group / "cgroup.procs").write_text("0")


def join_system(groups):
    for group in groups:
        (group / SYSTEM / "cgroup.procs").write_text("0")


def remove(groups, patience=10):
    """Removes the groups with all in them; their processes are dead, but may not be gone yet."""
    end = time.monotonic() + patience
    for group in groups:
        while group.exists():
            for folder, _, _ in os.walk(group, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    pass  # not empty yet
            if group.exists():
                if time.monotonic() > end:
                    raise Problem(f"{group} cannot be removed; it still has processes")
                time.sleep(0.05)


def mounts():
    """The hierarchies again, as the mounts that the node's init makes below ROOT."""
    return [(re.sub(r"^name=", "", controllers), controllers) for _, controllers in hierarchies()]
