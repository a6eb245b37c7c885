"""What an installation lets declarations name: folders, servers, and variables that hold secrets.

A declaration comes over the network, so none of these may be its author's choice alone. Servers are compared
as they are written, since a name means what the installation's own resolver says; of addresses only the
canonical spelling is taken, since 2130706433 and 127.1 are read as addresses too.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple, Self

S3_SCHEME = "s3://"
SOCKET_SCHEME = "unix://"
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.ASCII)
_NUMERIC = re.compile(r"(.*\.)?(\d+|0x[0-9a-f]*)", re.ASCII)
_WRITTEN = re.compile(r"(?P<host>\[[^\]]*\]|[^\[\]:]+)(:(?P<port>\d{1,5}))?", re.ASCII)


class Server(NamedTuple):
    """Where a connection goes: a name in small letters or the canonical form of an address, and a port."""

    host: str
    port: int

    @classmethod
    def of(cls, host: str, port: int) -> Self | None:
        """The server of a host without brackets; None where it is no name and no canonical address."""
        found = _canonical(host.lower())
        return cls(found, port) if found and 0 < port < 65536 else None

    @classmethod
    def parse(cls, text: str, *, port: int) -> Self | None:
        """The server that "host:port" names, or "host" with this port; None where it is written otherwise."""
        found = _WRITTEN.fullmatch(text)
        return None if found is None else cls.of(found["host"].strip("[]"), int(found["port"] or port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Peer:
    """Servers that a setting names: one host, or all below a suffix, at one port or at any."""

    host: str
    """A name or address; what begins with "." is a suffix; "unix:///path" is one socket."""
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """The servers of `host`, `host:port`, `*.suffix`, `*.suffix:port` or `unix:///path`.

        Raises:
            ValueError: it is written otherwise.
        """
        if text.startswith(f"{SOCKET_SCHEME}/"):
            return cls(text)
        starred, plain = text.startswith("*."), text.removeprefix("*.")
        if is_address(text):
            plain = f"[{text}]" if ":" in text else text
        found = _WRITTEN.fullmatch(plain)
        server = Server.parse(plain, port=1)
        if found is None or server is None or (starred and is_address(server.host)):
            raise ValueError(f"{text!r} names no servers: write host, host:port, *.suffix or unix:///path")
        return cls(f".{server.host}" if starred else server.host, server.port if found["port"] else None)

    def is_of(self, server: Server) -> bool:
        """Whether a server is one of these."""
        within = server.host.endswith(self.host) if self.host.startswith(".") else server.host == self.host
        return within and self.port in (None, server.port)

    def __str__(self) -> str:
        host = f"*{self.host}" if self.host.startswith(".") else self.host
        return host if self.port is None else str(Server(host, self.port))


LOOPBACK = (Peer("localhost"), Peer("127.0.0.1"), Peer("::1"))
"""This machine under its usual names; other addresses of 127.0.0.0/8 must be listed."""


@dataclass(frozen=True)
class Trim:
    """Streams that may be deleted from: a server, and a pattern of the streams' keys."""

    peer: Peer
    streams: str = "*"

    @classmethod
    def parse(cls, text: str) -> Self:
        """`server`, or `server/pattern`.

        Raises:
            ValueError: it is written otherwise.
        """
        socket = text.startswith(SOCKET_SCHEME)
        server, _, streams = (text, "", "*") if socket else text.partition("/")
        return cls(Peer.parse(server), streams or "*")


@dataclass(frozen=True)
class Allowed:
    """The one allow-list of an installation. Every source asks it, when declared and when opened."""

    roots: tuple[str, ...] = ()
    """Folders and s3:// prefixes that files are read from: records, datasets, certificates and keys."""
    hosts: tuple[Peer, ...] = LOOPBACK
    """Servers that are reached without a secret."""
    secrets: Mapping[str, tuple[Peer, ...]] = field(default_factory=dict)
    """Variable -> the servers that what it holds may be sent to. No other variable may be named."""
    trims: tuple[Trim, ...] = ()
    """Redis streams whose entries may be deleted once they are read."""
    queue_bytes: int = 256 * 2**20
    """What one source may fetch ahead into memory."""

    def reads(self, location: str) -> bool:
        """Whether a folder, file or s3:// prefix is below a root, once links are followed."""
        return any(_is_within(location, root) for root in self.roots)

    def reads_file(self, path: str) -> bool:
        """Whether a path is below a root and is no folder, pipe or device."""
        return self.reads(path) and not path.startswith(S3_SCHEME) and _is_plain(path)

    def reaches(self, server: Server, *, secret: str | None = None) -> bool:
        """Whether a server may be connected to; with a secret, the server must be bound to it."""
        return any(peer.is_of(server) for peer in self._peers(secret))

    def reaches_socket(self, path: str, *, secret: str | None = None) -> bool:
        """The same for a unix socket, which must be listed by its path."""
        wanted = _resolved(path)
        sockets = (peer.host for peer in self._peers(secret) if peer.host.startswith(SOCKET_SCHEME))
        return wanted is not None and any(
            _resolved(name.removeprefix("unix://")) == wanted for name in sockets
        )

    def trims_stream(self, server: Server | None, stream: str) -> bool:
        """Whether entries of a stream may be deleted; no server: whether any server's may, or a socket's."""
        return any(
            (server is None or trim.peer.is_of(server)) and fnmatchcase(stream, trim.streams)
            for trim in self.trims
        )

    def path_refusal(self, what: str, path: str) -> str:
        """The one sentence about a path that may not be read, whether it is there or not."""
        named = ", ".join(self.roots) or "none"
        return f"{what} {_shown(path)} is not within those that may be read here ({named})."

    def server_refusal(self, what: str, server: object, *, secret: str | None = None) -> str:
        """The one sentence about a server that may not be reached, whether it is there or not."""
        if secret is not None:
            return (
                f"{what} {_shown(str(server))} is no server that HOLDFAST_SOURCE_SECRETS binds {secret} to: "
                "what a variable holds is sent to no other one."
            )
        named = ", ".join(str(peer) for peer in self.hosts) or "none"
        return f"{what} {_shown(str(server))} is no server that may be reached from here ({named})."

    def variable_refusal(self, name: str) -> str | None:
        """The one sentence about a variable that may not be named, whether it is set or not; None: it may."""
        if name in self.secrets:
            return None
        return f"The variable {name} may not be named: HOLDFAST_SOURCE_SECRETS lists those that may."

    def _peers(self, secret: str | None) -> Iterable[Peer]:
        return self.hosts if secret is None else self.secrets.get(secret, ())


def bound_secrets(text: str) -> dict[str, tuple[Peer, ...]]:
    """Variables and their servers out of `NAME=server|server,OTHER=server`.

    Raises:
        ValueError: it is written otherwise.
    """
    found: dict[str, tuple[Peer, ...]] = {}
    for entry in listed(text):
        name, _, servers = (part.strip() for part in entry.partition("="))
        if not VARIABLE.fullmatch(name) or name in found:
            raise ValueError(f"{name!r} is no name of a variable, or stands twice: write NAME=server|server")
        found[name] = tuple(Peer.parse(server.strip()) for server in servers.split("|"))
    return found


def listed(text: str | None) -> list[str]:
    """The entries of a setting that are separated by commas."""
    return [entry.strip() for entry in (text or "").split(",") if entry.strip()]


def _shown(text: str) -> str:
    return repr(text[:200])[1:-1]


def _canonical(host: str) -> str | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host if _NAME.fullmatch(host) and not _NUMERIC.fullmatch(host) else None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return None
        return str(address.ipv4_mapped or address)
    return str(address)


def is_address(host: str) -> bool:
    """Whether a host is an IP address, and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_within(location: str, root: str) -> bool:
    if location.startswith(S3_SCHEME) or root.startswith(S3_SCHEME):
        steps = location.removeprefix(S3_SCHEME).split("/")
        climbs = any(step in (".", "..") or "%" in step or "\\" in step for step in steps)
        return not climbs and f"{location.rstrip('/')}/".startswith(f"{root.rstrip('/')}/")
    path, folder = _resolved(location), _resolved(root)
    return path is not None and folder is not None and path.is_relative_to(folder)


def _is_plain(path: str) -> bool:
    found = _resolved(path)
    return found is not None and (found.is_file() or not found.exists())


def _resolved(text: str) -> Path | None:
    """The path with its links followed; None where it is not absolute, or leads nowhere."""
    try:
        return Path(text).resolve() if Path(text).is_absolute() else None
    except (OSError, RuntimeError, ValueError):  # too long, a ring of links, a null byte
        return None
