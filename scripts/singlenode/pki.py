"""Throw-away certificates, by openssl: Python's library can read but not write them."""

import subprocess
from pathlib import Path

from .problem import Problem

DAYS = "3650"
NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def openssl(*arguments, text=None):
    done = subprocess.run(["openssl", *arguments], input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise Problem(f"openssl {arguments[0]}: {done.stderr.strip()}")
    return done.stdout


class Authority:
    """Signs for all; `ca.crt` in its folder is what the components trust."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.certificate, self.key = self.folder / "ca.crt", self.folder / "ca.key"
        openssl("req", "-x509", *NEW_KEY, "-keyout", str(self.key), "-out", str(self.certificate), "-days", DAYS,
                "-subj", "/CN=e2e-ca", "-addext", "keyUsage=critical,keyCertSign,cRLSign")

    def client(self, user, group=None):
        """For a user: Kubernetes reads the name from CN and a group from O."""
        subject = (f"/O={group}" if group else "") + f"/CN={user}"
        return self._issue(f"client-{user.replace(':', '-')}", subject, "extendedKeyUsage=clientAuth")

    def server(self, name, names):
        """For a server, with its names and addresses as openssl writes them: DNS:…, IP:…"""
        extensions = f"extendedKeyUsage=serverAuth\nsubjectAltName={','.join(names)}"
        return self._issue(f"server-{name}", f"/CN={name}", extensions)

    def signing_key(self, name):
        """A key pair that signs tokens of service accounts."""
        private, public = self.folder / f"{name}.key", self.folder / f"{name}.pub"
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private))
        openssl("ec", "-in", str(private), "-pubout", "-out", str(public))
        return private, public

    def _issue(self, file, subject, extensions):
        certificate, key = self.folder / f"{file}.crt", self.folder / f"{file}.key"
        request = openssl("req", "-new", *NEW_KEY, "-keyout", str(key), "-subj", subject)
        with_extensions = self.folder / f"{file}.extensions"
        with_extensions.write_text(f"keyUsage=critical,digitalSignature\n{extensions}\n")
        openssl("x509", "-req", "-CA", str(self.certificate), "-CAkey", str(self.key), "-set_serial", str(_serial()),
                "-days", DAYS, "-extfile", str(with_extensions), "-out", str(certificate), text=request)
        return certificate, key


def _serial():
    _serial.last += 1
    return _serial.last


_serial.last = 1
