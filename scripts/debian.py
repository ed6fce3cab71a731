"""Debian packages, unpacked and not installed: for programs that PATH lacks."""

import shutil
import subprocess


class Failed(Exception):
    """Why packages cannot be unpacked, for the user."""


def unpack(packages, scratch):
    """A folder in `scratch` with these packages of this system and all that they need and it
    lacks. apt's own lists and archives are left alone; they may be old."""
    for program in ("apt-get", "dpkg-deb"):
        if not shutil.which(program):
            raise Failed(f"install {' and '.join(packages)}; there is no {program} here to get them with")
    archives, root = scratch / "archives", scratch / "root"
    for folder in (scratch / "lists" / "partial", archives / "partial", root):
        folder.mkdir(parents=True)
    options = {"Dir::State::lists": scratch / "lists", "Dir::Cache": scratch, "Dir::Cache::archives": archives,
               "APT::Sandbox::User": "root", "Debug::NoLocking": "true"}
    apt = ["apt-get", "--quiet", "--yes", *(f"-o{name}={value}" for name, value in options.items())]
    run("apt-get update", [*apt, "update"])
    run("apt-get install", [*apt, "install", "--download-only", "--no-install-recommends", *packages])
    for archive in sorted(archives.glob("*.deb")):
        run("dpkg-deb", ["dpkg-deb", "--extract", str(archive), str(root)])
    return root


def run(what, command):
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise Failed("\n".join([f"{what} failed:", *done.stdout.splitlines()[-10:]]))
