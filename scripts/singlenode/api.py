"""A client of the API server: JSON over HTTPS with the standard library, one connection."""

import http.client
import json
import socket
import ssl


class Refused(Exception):
    """An answer that says no."""

    def __init__(self, method, path, status, body):
        super().__init__(f"{method} {path}: {status} {body.get('message', body)}")
        self.status = status


class Api:
    def __init__(self, address, port, authority, certificate, key, name=None):
        """`name` is what the server's certificate has, where that is not the address."""
        self._address, self._port, self._name = address, port, name
        self._context = ssl.create_default_context(cafile=str(authority))
        self._context.load_cert_chain(str(certificate), str(key))
        self._connection = None

    def _connect(self):
        connection = http.client.HTTPSConnection(self._address, self._port, context=self._context, timeout=10)
        if self._name:
            plain = socket.create_connection((self._address, self._port), timeout=10)
            connection.sock = self._context.wrap_socket(plain, server_hostname=self._name)
        return connection

    def request(self, method, path, body=None, kind="application/json"):
        """The answer as JSON, or as text where it is none. OSError where there is no server."""
        for fresh in (False, True):  # a kept connection may have been closed meanwhile
            if self._connection is None or fresh:
                self._connection = self._connect()
            try:
                self._connection.request(method, path, body and json.dumps(body), {"Content-Type": kind})
                answer = self._connection.getresponse()
                text = answer.read()
                break
            except http.client.HTTPException as error:
                if fresh:
                    raise OSError(f"{self._address}:{self._port}: {error}") from error
            except ConnectionRefusedError:
                raise
            except OSError:
                if fresh:
                    raise
        try:
            found = json.loads(text)
        except ValueError:
            found = text.decode(errors="replace")
        if answer.status >= 300:
            raise Refused(method, path, answer.status, found if isinstance(found, dict) else {"message": found})
        return found

    def get(self, path):
        return self.request("GET", path)

    def list(self, path):
        # From the API server's memory: this is asked often.
        return self.request("GET", f"{path}?resourceVersion=0")["items"]

    def delete(self, path):
        return self.request("DELETE", path)

    def apply(self, path, thing):
        """Server-side apply; `path` is that of the collection."""
        name = thing["metadata"]["name"]
        path = f"{path}/{name}?fieldManager=e2e&force=true"
        return self.request("PATCH", path, thing, "application/apply-patch+yaml")

    def works(self, path="/readyz"):
        try:
            self.get(path)
            return True
        except (OSError, Refused):
            return False
