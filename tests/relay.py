"""A way to the API server that a test can cut: a network that fails for one process alone."""

import contextlib
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import yaml


class Relay:
    """Passes bytes on between whoever uses ``kubeconfig`` and the API server of another one, but while it is cut."""

    def __init__(self, original: Path, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self._open: list[socket.socket] = []
        document = yaml.safe_load(original.read_text())
        cluster = document["clusters"][0]["cluster"]
        server = urlsplit(cluster["server"])
        self._server = (str(server.hostname), int(server.port or 443))
        self._address = ("127.0.0.1", 0)
        self.mend()
        cluster["server"] = f"https://127.0.0.1:{self._address[1]}"
        kubeconfig.write_text(yaml.safe_dump(document))

    def cut(self) -> None:
        """End every connection, and take no other."""
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open.clear()

    def mend(self) -> None:
        """Take connections again, at the same address."""
        self._listener = socket.create_server(self._address)
        self._address = self._listener.getsockname()
        threading.Thread(target=self._take, args=(self._listener,), daemon=True).start()

    def _take(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(self._server)
                self._open += [client, server]
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=_pass_on, args=ends, daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
