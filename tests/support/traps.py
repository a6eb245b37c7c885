"""Servers on loopback that nothing may connect to and that count whoever comes; files that stay shut."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

CANARY = "canary-5d1f"
"""What every file holds that must not be read."""


@dataclass
class Listener:
    """A server that takes a connection, notes it, and hangs up."""

    socket: socket.socket
    came: list[bytes] = field(default_factory=list)

    @property
    def port(self) -> int:
        port: int = self.socket.getsockname()[1]
        return port

    def serve(self) -> None:
        while True:
            try:
                found, _ = self.socket.accept()
            except OSError:
                return
            with found:
                found.settimeout(0.2)
                try:
                    self.came.append(found.recv(65536))
                except OSError:
                    self.came.append(b"")


@contextmanager
def listener(
    address: tuple[str, int] | str, family: socket.AddressFamily = socket.AF_INET
) -> Iterator[Listener]:
    """A server at an address of this machine, until the block ends."""
    with socket.socket(family) as door:
        door.bind(address)
        door.listen(64)
        found = Listener(door)
        thread = threading.Thread(target=found.serve, daemon=True)
        thread.start()
        try:
            yield found
        finally:
            door.shutdown(socket.SHUT_RDWR)
            thread.join(5)


@dataclass(frozen=True)
class Traps:
    """One server that may be reached, three that may not, and files in and out of a root."""

    allowed: Listener
    other_address: Listener
    """On 127.0.0.9."""
    other_port: Listener
    """On 127.0.0.1."""
    other_socket: Listener
    socket_path: Path
    inside: Path
    """The root."""
    outside: Path

    def came(self) -> list[bytes]:
        return [*self.other_address.came, *self.other_port.came, *self.other_socket.came]


@contextmanager
def traps(folder: Path) -> Iterator[Traps]:
    """Servers and files below a folder, whose path must be short enough for a socket's."""
    inside, outside = folder / "in", folder / "out"
    for place in (inside, outside):
        place.mkdir()
        (place / "cert.pem").write_text(f"{CANARY}\n")
        os.mkfifo(place / "pipe")
    (outside / "a.ndjson").write_text(f'{{"id": "{CANARY}", "features": [0, 0], "label": "up"}}\n')
    (inside / "link").symlink_to(outside)
    (inside / "file-link").symlink_to(outside / "cert.pem")
    (inside / "ring").symlink_to(inside / "ring")
    path = outside / "s"
    with ExitStack() as stack:
        yield Traps(
            stack.enter_context(listener(("127.0.0.1", 0))),
            stack.enter_context(listener(("127.0.0.9", 0))),
            stack.enter_context(listener(("127.0.0.1", 0))),
            stack.enter_context(listener(str(path), socket.AF_UNIX)),
            path,
            inside,
            outside,
        )
