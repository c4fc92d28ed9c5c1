"""A client of ComfyUI's websocket, as a page is one: enough of the protocol to read what the server sends."""

import base64
import contextlib
import json
import os
import socket
import threading
import urllib.parse
from collections.abc import Iterator


def messages(file) -> Iterator[tuple[int, bytes]]:
    """The kind (1 text, 2 binary) and the content of every message, until the connection ends (RFC 6455)."""
    kind, content = 0, b""
    while head := file.read(2):
        length = head[1] & 127
        if length >= 126:
            length = int.from_bytes(file.read(2 if length == 126 else 8), "big")
        kind, content = head[0] & 15 or kind, content + file.read(length)  # 0 continues the message before
        if head[0] & 128:
            yield kind, content
            content = b""


class Listener:
    """What arrived so far: ``events`` as (type, data), and binary messages in ``binary``."""

    def __init__(self, client_id: str):
        self.client_id = client_id
        self.events: list[tuple[str, dict]] = []
        self.binary: list[bytes] = []

    def read(self, file) -> None:
        with contextlib.suppress(OSError, ValueError):  # the connection was closed
            for kind, content in messages(file):
                if kind == 1:
                    message = json.loads(content)
                    self.events.append((message["type"], message["data"]))
                elif kind == 2:
                    self.binary.append(content)

    def of(self, event: str) -> list[dict]:
        return [data for kind, data in self.events if kind == event]


@contextlib.contextmanager
def listen(url: str, client_id: str) -> Iterator[Listener]:
    """Connect to a server, and read in a thread until the end of the block."""
    address = urllib.parse.urlparse(url)
    key = base64.b64encode(os.urandom(16)).decode()
    headers = f"Host: {address.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
    with socket.create_connection((address.hostname, address.port)) as connection:
        request = f"GET /ws?clientId={client_id} HTTP/1.1\r\n{headers}Sec-WebSocket-Version: 13\r\n\r\n"
        connection.sendall(request.encode())
        file = connection.makefile("rb")
        while file.readline().strip():  # the answer's header
            pass
        listener = Listener(client_id)
        thread = threading.Thread(target=listener.read, args=[file], daemon=True)
        thread.start()
        yield listener
        connection.shutdown(socket.SHUT_RDWR)
        thread.join(10)
