"""What scripts/images asks of an image before it counts as built.

Each check starts the image under runc as careful people do (not as root, without a
capability, on a read-only root file system) and sees it work. It returns what it saw,
or raises `Failed`, whose text continues a sentence that begins with the image's name.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

# The user of both images.
USER = 65532
# Seconds for a model that starts from a slow disk.
PATIENCE = 120
# A text, and the first values of its vector by Python's sentence-transformers.
HELLO = ("Hello, world!", [-0.03817716, 0.03291105, -0.00545946, 0.01436989])
# Where the cache has the model of that vector.
MODEL = "models--sentence-transformers--all-MiniLM-L6-v2"


class Failed(Exception):
    pass


class Container:
    """An image's files and configuration, and one container of it, until the `with` block ends."""

    def __init__(self, buildah, image):
        self.buildah, self.image = buildah, image
        self.name = f"kagent-check-{os.getpid()}"
        self.runc = [buildah.path("runc"), "--root", str(buildah.here / "run" / "runc")]
        self.process = None

    def __enter__(self):
        with contextlib.ExitStack() as undo:
            folder = tempfile.TemporaryDirectory(prefix=".images-", dir=self.buildah.here)
            self.folder = Path(undo.enter_context(folder))
            self.folder.chmod(0o755)
            working = self.buildah("from", "--pull-never", self.image)
            undo.callback(self.buildah, "rm", working)
            self.config = json.loads(self.buildah("inspect", "--type", "image", self.image))["Docker"]["config"]
            self.root = Path(self.buildah("mount", working))
            undo.callback(self.end)
            self.undo = undo.pop_all()
        if self.config["User"] != f"{USER}:{USER}":
            raise Failed(f"runs as {self.config['User'] or 'root'}, not as {USER}")
        return self

    def __exit__(self, *_):
        self.undo.close()

    def end(self):
        if self.process:
            self.do("delete", "--force", self.name)
            self.process.wait()

    def log(self):
        return (self.folder / "log").read_text()

    def start(self, *arguments, environment=None, mounts=()):
        """Runs the image's program. Of `mounts` each is a directory and where it is to be."""
        variables = dict(word.split("=", 1) for word in self.config["Env"]) | (environment or {})
        sets = ("bounding", "effective", "inheritable", "permitted", "ambient")
        spec = {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": USER, "gid": USER},
                "args": [*self.config["Entrypoint"], *arguments],
                "env": [f"{name}={value}" for name, value in variables.items()],
                "cwd": self.config.get("WorkingDir") or "/",
                "capabilities": {name: [] for name in sets},
                "noNewPrivileges": True,
            },
            "root": {"path": str(self.root), "readonly": True},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                *({"destination": inside, "type": "bind", "source": str(outside), "options": ["rbind", "ro"]}
                  for outside, inside in mounts),
            ],
            # The network is the host's, so that the server can be reached.
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]},
        }
        (self.folder / "config.json").write_text(json.dumps(spec))
        command = [*self.runc, "run", "--bundle", str(self.folder), self.name]
        with open(self.folder / "log", "w") as log:
            self.process = subprocess.Popen(command, env=self.buildah.environment, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=subprocess.STDOUT)

    def do(self, *words):
        return subprocess.run([*self.runc, *words], env=self.buildah.environment, capture_output=True, text=True)


def ask(url, body=None):
    """The answer's status and JSON; 0 where nobody answers."""
    request = urllib.request.Request(url, headers={"Content-Type": "application/json"})
    data = json.dumps(body).encode() if body else None
    # Without the system's proxies.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, data, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, None
    except OSError:
        return 0, None


def cached_model(into):
    """A copy of the default model's cache that another user may read, as homes often are not."""
    cache = Path(os.environ.get("RUSTBERT_CACHE") or Path.home() / ".cache" / ".rustbert")
    if not (cache / MODEL).is_dir():
        raise Failed(f"has to be tried with the default model, which is not in {cache}: run `make model`")
    shutil.copytree(cache / MODEL, into / "models" / MODEL)
    return into / "models"


def memory(container):
    """What the server has of the memory, and had at most, in MB."""
    pid = json.loads(container.do("state", container.name).stdout)["pid"]
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return [int(status[name].split()[0]) / 1000 for name in ("VmRSS", "VmHWM")]


def fused_server(buildah, image):
    """Vectors of the real model without LibTorch; on a CPU that cannot, the refusal."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
        # In bfloat16 where the CPU has it, whose vectors are Python's within less than a hundredth of their length.
        return server(buildah, image, {}, 2e-3)
    with Container(buildah, image) as container:
        mounts = [(cached_model(container.folder), "/app/.cache/.rustbert")]
        container.start(environment={"HF_HUB_OFFLINE": "1"}, mounts=mounts)
        code = container.process.wait(timeout=PATIENCE)
        if code == 0 or "without LibTorch" not in container.log():
            raise Failed(f"does not say that this CPU lacks AVX-512 ({code}): {container.log()}")
        return "NOT RUN on this CPU, which lacks AVX-512: it says so, and ends"


def server(buildah, image, numerics={"EMBEDDING_DTYPE": "float32"}, within=1e-5):
    """Vectors of the real model, or of the one that comes with the image."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with Container(buildah, image) as container:
        health = container.config.get("Healthcheck", {}).get("Test") or []
        if health[:1] != ["CMD"]:
            raise Failed(f"has no HEALTHCHECK that needs no shell: {health}")
        baked = [word for word in container.config["Env"] if word.startswith("EMBEDDING_MODEL=") and word[16:]]
        mounts = [] if baked else [(cached_model(container.folder), "/app/.cache/.rustbert")]
        environment = {"PORT": str(port), "EMBEDDING_HOST": "127.0.0.1", **numerics}
        begun = time.monotonic()
        container.start(environment=environment | {"HF_HUB_OFFLINE": "1"}, mounts=mounts)
        while ask(f"{url}/health")[0] != 200:
            if container.process.poll() is not None or time.monotonic() - begun > PATIENCE:
                raise Failed(f"does not become healthy:\n{container.log()}")
            time.sleep(0.01)
        ready = time.monotonic() - begun
        text, expected = HELLO
        status, answer = ask(f"{url}/embeddings", {"texts": [text]})
        if status != 200:
            raise Failed(f"answers with {status}:\n{container.log()}")
        [vector] = answer["embeddings"]
        if not baked and any(abs(ours - python) > within for ours, python in zip(vector, expected)):
            raise Failed(f"gives a wrong vector: {vector[:4]}, and Python gives {expected}")
        now, most = memory(container)
        begun = time.monotonic()
        asked = container.do("exec", "--user", f"{USER}:{USER}", container.name, *health[1:])
        took = time.monotonic() - begun
        if asked.returncode != 0:
            raise Failed(f"fails its own HEALTHCHECK: {asked.stderr.strip()}")
        begun = time.monotonic()
        container.do("kill", container.name, "TERM")
        if code := container.process.wait(timeout=60):
            raise Failed(f"ends with {code} when it is told to stop:\n{container.log()}")
        stopped = time.monotonic() - begun
    return (f"it is healthy after {ready:.2f} s with {now:.0f} MB of memory ({most:.0f} at most), gives {'a' if baked else 'the right'} vector, passes its HEALTHCHECK "
            f"in {took:.2f} s, and stops in {stopped:.1f} s: as {USER}, with nothing that it could write to")


def operator(buildah, image):
    """It is one program that starts; what it does needs a cluster."""
    with Container(buildah, image) as container:
        files = sorted(str(path.relative_to(container.root)) for path in container.root.rglob("*") if path.is_file())
        if files != ["embedding-operator"]:
            raise Failed(f"holds more than its program: {files}")
        container.start("--version")
        code = container.process.wait(timeout=60)
        if code != 0 or not container.log().startswith("embedding-operator "):
            raise Failed(f"does not start ({code}): {container.log()}")
        return f"it starts as {USER}, with nothing that it could write to: {container.log().strip()}"


CHECKS = {"server": server, "fused-server": fused_server, "operator": operator}
