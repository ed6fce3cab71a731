"""Holds the node's namespaces from outside, and cleans up when they are gone.

A process of its own, so that it outlives `scripts/cluster up`. The node goes when pid 1 of
its namespaces ends, and that happens when the keeper dies, however it does: a pipe between
them closes. The keeper in turn ends the node
- when it gets SIGTERM (`scripts/cluster down`),
- when the lifeline closes, where it was given one,
- when its standard input closes before a line came: then `up` died half-way.
Afterwards it removes the control groups, the veth with its route, and the node's files. Only
after its own SIGKILL are the groups and files left; `down` removes them.

usage: keeper.py DIR [--lifeline FILE-DESCRIPTOR]
"""

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from singlenode import cgroups, machine, network  # noqa: E402
from singlenode.problem import Problem  # noqa: E402

INIT = Path(__file__).resolve().parent / "init.py"


def start_init(folder, addresses):
    """Pid 1 in its namespaces; returns unshare, which is its parent, and its process id."""
    groups = cgroups.paths(addresses.name)
    namespaces = [f"--{kind}" for kind in machine.NAMESPACES]
    # slave: what the machine unmounts, the node lets go of; what the node mounts, it keeps.
    command = ["unshare", *namespaces, "--propagation=slave", "--fork", "--kill-child", "--"]
    command += [sys.executable, "-B", str(INIT), str(folder / machine.FILES), str(addresses.slot)]
    unshare = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/",
        preexec_fn=lambda: cgroups.join(groups))
    process = unshare.stdout.readline().strip()
    if not process.isdigit():
        raise Problem(f"no namespaces could be made; {folder / machine.LOGS / 'keeper.log'} says why (root is needed)")
    cgroups.settle(groups, [unshare.pid, int(process)])
    network.connect(addresses, int(process))
    unshare.stdin.write("go\n")
    unshare.stdin.flush()
    if unshare.stdout.readline() != "ready\n":
        raise Problem(f"the namespaces could not be furnished; {folder / machine.LOGS / 'keeper.log'} says why")
    return unshare, int(process)


def wait(unshare, lifeline, woken):
    """Until the node has to end, or has ended. Whether it was `up` that gave it up."""
    poll = select.poll()
    poll.register(woken)
    poll.register(sys.stdin.fileno())
    if lifeline is not None:
        poll.register(lifeline)
    while unshare.poll() is None:
        for file, _ in poll.poll():
            try:
                heard = os.read(file, 4096)
            except OSError:  # such as a terminal that is gone
                heard = b""
            if file == woken:
                if bytes([signal.SIGTERM]) in heard:
                    return False
            elif file == sys.stdin.fileno() and heard:
                poll.unregister(file)  # `up` is done and will leave
            elif not heard:
                return file == sys.stdin.fileno()
    return False


def main():
    folder = Path(sys.argv[1])
    lifeline = int(sys.argv[3]) if sys.argv[2:] else None
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lock = open(folder / machine.LOCK, "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print(json.dumps({"error": f"{folder} holds a cluster already; end it with `scripts/cluster down {folder}`"}))
        return
    unshare, addresses, opened, given_up = None, None, [], True
    try:
        addresses = network.reserve()
        # Before there is anything to clean up, so that `down` knows it.
        machine.write_state(folder, keeper=os.getpid(), slot=addresses.slot)
        opened = cgroups.open_root()
        cgroups.create(addresses.name)
        unshare, init = start_init(folder, addresses)
        machine.write_state(folder, keeper=os.getpid(), slot=addresses.slot, init=init)
        print("{}", flush=True)
        given_up = wait(unshare, lifeline, read)
    except Problem as problem:
        print(json.dumps({"error": str(problem)}), flush=True)
    finally:
        if unshare:
            unshare.stdin.close()  # pid 1 ends
            unshare.kill()  # and dies where it did not get as far as to read
            unshare.wait()
        if addresses:
            machine.clean(folder, addresses, opened)
    sys.exit(0 if given_up else machine.ENDED)


if __name__ == "__main__":
    main()
