"""The node's namespaces, as seen by the commands: start them, run things in them, end them.

DIR/.lock is held by the keeper as long as the node lives, however it ends; DIR/.state says
which processes and which network it has.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from . import cgroups, network
from .problem import Problem, wait_for

KEEPER = Path(__file__).resolve().parent / "keeper.py"
# In the words of `unshare`, and of /proc/PID/ns.
NAMESPACES = {"mount": "mnt", "net": "net", "uts": "uts", "ipc": "ipc", "cgroup": "cgroup", "pid": "pid"}
LOCK, STATE = ".lock", ".state"
# Below DIR: what the node writes to its own /var/lib and the like. It goes with the node.
FILES = "node"
# What it shows to people and tests; only the logs stay.
KUBECONFIG, ENV, HOSTS, LOGS = "kubeconfig", "env", "hosts", "logs"
# What the node has its own of, or none. Nothing that it needs can lie there.
COVERED = ["/dev", "/proc", "/run", "/sys", "/var/lib", "/var/log"]

_libc = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG = 1
# The keeper's exit status where others than `up` ended the node.
ENDED = 3


def _setns(file):
    """os.setns is there only since Python 3.12."""
    if _libc.setns(file, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")


def write_state(folder, **state):
    scratch = folder / f"{STATE}.new"
    scratch.write_text(json.dumps(state))
    scratch.replace(folder / STATE)


def _read_state(folder):
    try:
        return json.loads((folder / STATE).read_text())
    except FileNotFoundError:
        return {}


def is_up(folder):
    """Whether a keeper holds a node there."""
    try:
        with open(folder / LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except OSError:
        return True


def clean(folder, addresses, opened=()):
    """Removes what a node that has ended leaves. Its mounts and processes went with it."""
    network.disconnect(addresses)
    cgroups.remove(cgroups.paths(addresses.name))
    cgroups.close_root(opened)
    for name in (FILES, HOSTS):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (KUBECONFIG, ENV, STATE, LOCK):
        (folder / name).unlink(missing_ok=True)


def check_place(path, what):
    for covered in COVERED:
        if path.resolve().is_relative_to(covered):
            raise Problem(f"{what} {path} lies in {covered}, which the node has its own of; choose another place")


def check_rights():
    if os.geteuid() != 0:
        raise Problem("root is needed, for namespaces, mounts and control groups")
    for program, package in (("unshare", "util-linux"), ("ip", "iproute2"), ("openssl", "openssl")):
        if not shutil.which(program):
            raise Problem(f"the program {program} is needed (Debian: apt install {package})")


class Machine:
    """A node that is up."""

    def __init__(self, folder, keeper=None):
        check_rights()
        state = _read_state(folder)
        if not is_up(folder) or "init" not in state:
            raise Problem(f"there is no cluster in {folder}; start one with `scripts/cluster up {folder}`")
        self.folder = folder
        self.files = folder / FILES
        self.network = network.Network(state["slot"])
        self._groups = cgroups.paths(self.network.name)
        self._namespaces = {
            kind: os.open(f"/proc/{state['init']}/ns/{kind}", os.O_RDONLY) for kind in NAMESPACES.values()}
        self._own = os.open("/proc/self/ns/pid", os.O_RDONLY)
        self._keeper = keeper

    @classmethod
    def start(cls, folder, lifeline=None):
        """A new one. It ends with this process until `leave` is called; and, if there is a
        lifeline, when its last writer is gone."""
        check_place(folder, "the folder")
        check_place(KEEPER, "the checkout")
        if is_up(folder):
            raise Problem(f"{folder} holds a cluster already; end it with `scripts/cluster down {folder}`")
        end(folder)  # what is left of a node whose keeper was killed
        logs = folder / LOGS
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
        command = [sys.executable, "-B", str(KEEPER), str(folder)]
        if lifeline is not None:
            command += ["--lifeline", str(lifeline)]
        with open(logs / "keeper.log", "w") as log:
            keeper = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd="/",
                start_new_session=True, pass_fds=[] if lifeline is None else [lifeline])
        try:
            answer = keeper.stdout.readline()
        except BaseException:  # a signal
            keeper.stdin.close()
            keeper.wait()
            raise
        answer = json.loads(answer or json.dumps({"error": f"the keeper ended; {log.name} says why"}))
        if "error" in answer:
            keeper.wait()  # it cleans up
            raise Problem(answer["error"])
        return cls(folder, keeper)

    def leave(self):
        """Lets the node live on without this process."""
        self._keeper.stdin.write("\n")
        self._keeper.stdin.close()

    def give_up(self):
        """Ends the node. Whether others were faster: then nothing else has to be explained."""
        with contextlib.suppress(OSError):
            self._keeper.stdin.close()

        def ended():
            _bury_children(but=self._keeper.pid)
            return self._keeper.poll() is not None

        wait_for(f"the end of the node in {self.folder}", ended, 30)
        return self._keeper.returncode == ENDED

    def spawn(self, command, **options):
        """Starts a program on the node; options are those of subprocess.Popen. It is in all
        namespaces of the node and so ends with it."""
        folder = options.pop("cwd", "/")
        before = options.pop("preexec_fn", None)

        def enter():
            cgroups.join_system(self._groups)  # by paths that the node does not have
            for kind, file in self._namespaces.items():
                if kind != "pid":
                    _setns(file)
            os.chdir(folder)  # a mount namespace is entered at its root
            if before:
                before()

        with self._as_parent():
            return subprocess.Popen(command, preexec_fn=enter, **options)

    @contextlib.contextmanager
    def _as_parent(self):
        """A PID namespace is entered by children only, so they have to be born in it."""
        _setns(self._namespaces["pid"])
        try:
            yield
        finally:
            _setns(self._own)

    def execute(self, command, environment):
        """Runs a program on the node in the foreground, and returns its exit status. It gets
        the signals that this process gets, and dies with it."""
        try:
            child = self.spawn(command, cwd=os.getcwd(), env=environment, preexec_fn=die_with_parent)
        except FileNotFoundError:
            raise Problem(f"there is no program {command[0]} on the node; it has the files of this machine") from None
        except subprocess.SubprocessError:
            raise Problem(f"the node could not be entered; is {os.getcwd()} in one of {', '.join(COVERED)}?") from None
        return wait_with_signals(child)


def _bury_children(but):
    """A PID namespace lasts until the last of its processes is not only dead but also waited
    for, and `up` is the parent of the components."""
    with contextlib.suppress(ChildProcessError):
        while child := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if child.si_pid == but:
                return
            os.waitpid(child.si_pid, 0)


def die_with_parent():
    """For a new process: when this one is killed, so is that."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def wait_with_signals(child):
    """Waits for a child and hands on the signals that ask this process to end."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: child.send_signal(number))
    status = child.wait()
    return status if status >= 0 else 128 - status


def end(folder):
    """Ends the node, if there is one, and returns when nothing of it is left."""
    def ended():
        if not is_up(folder):
            return True
        with contextlib.suppress(KeyError, ProcessLookupError):  # hardly begun, or about to end
            os.kill(_read_state(folder)["keeper"], signal.SIGTERM)
        return False

    wait_for(f"the end of the node in {folder}", ended, 30)
    state = _read_state(folder)
    if state:  # the keeper was killed
        clean(folder, network.Network(state["slot"]))
