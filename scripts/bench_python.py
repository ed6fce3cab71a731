"""Python interpreters that have the peers, for scripts/bench and scripts/gpu-check."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
REFERENCE, BENCH, INFINITY = (SCRIPTS / f"requirements-{it}.txt" for it in ("reference", "bench", "infinity"))


def peers():
    """BENCH_PYTHON, as it was set or made."""
    return os.environ["BENCH_PYTHON"] if "BENCH_PYTHON" in os.environ else environment("peers", REFERENCE, BENCH)


def environment(name, *requirements, borrow=None):
    """The interpreter that has these requirements, made on the first run; nothing if that fails.
    It sees the packages of the interpreter `borrow` too, where it has none of that name."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kagent-embeddings"
    recipe = "%d.%d %s" % (*sys.version_info[:2], borrow)
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in requirements) + recipe.encode())
    venv = cache / f"bench-{name}-{digest.hexdigest()[:12]}"
    python = venv / "bin" / "python"
    complete = venv / ".complete"
    if complete.exists():
        return str(python)
    print(f"bench: making {venv} (minutes, once)", file=sys.stderr)

    def run(*command):
        if subprocess.run(command).returncode != 0:
            raise ChildProcessError(command[0])

    try:
        # What an interrupted run left.
        shutil.rmtree(venv, ignore_errors=True)
        run(sys.executable, "-m", "venv", venv)
        if borrow:
            code = "import sysconfig; print(sysconfig.get_path('purelib'))"
            ask = [[it, "-c", code] for it in (python, borrow)]
            own, other = (subprocess.check_output(command, text=True).strip() for command in ask)
            # Not its path alone: what it borrows itself is seen as well.
            Path(own, "borrowed.pth").write_text(f"import site; site.addsitedir({other!r})\n")
        options = ["--quiet", "--disable-pip-version-check", "--requirement"]
        run(python, "-m", "pip", "install", *options, requirements[-1])
    except (ChildProcessError, OSError) as error:
        print(f"bench: {name} is left out: {error} failed", file=sys.stderr)
        return ""
    complete.touch()
    return str(python)
