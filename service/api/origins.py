"""Whose requests are answered: those to a host of this service, and no changes from another site's page.

Listening on loopback keeps other machines out, but not the pages that a browser on this machine shows. Such a
page may send requests to any address, and may have its own name resolve to this machine (DNS rebinding).
"""

import ipaddress
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.problems import problem_response
from service.settings import Settings

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing here."""

FOREIGN_SITES = frozenset({"cross-site", "same-site"})
"""Values of Sec-Fetch-Site that pages of other sites, or of other ports and names of this one, send."""

DEFAULT_PORTS = {"http": 80, "https": 443}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class OwnHosts:
    """The hosts that requests may name.

    An address cannot be rebound, a name can: so every address is taken where the service listens on all of
    them, and of the names only `localhost`, HOLDFAST_HOST and those in HOLDFAST_ALLOWED_HOSTS.
    """

    def __init__(self, settings: Settings) -> None:
        self._host = settings.host.lower()
        self._address = _address(self._host)
        self._listens_everywhere = not self._host or (
            self._address is not None and self._address.is_unspecified
        )
        self._listed = settings.listed_hosts

    def __contains__(self, host: str) -> bool:
        address = _address(host)
        if address is None:
            return host in ("localhost", self._host) or self.lists(host)
        return (
            _is_loopback(address) or self._listens_everywhere or address == self._address or self.lists(host)
        )

    def lists(self, host: str) -> bool:
        """Whether HOLDFAST_ALLOWED_HOSTS names it, itself or by a suffix."""
        return any(
            host.endswith(listed[1:]) if listed.startswith("*.") else host == listed
            for listed in self._listed
        )


class OwnCallers:
    """Middleware that refuses what a foreign page sends, before the body is read."""

    def __init__(self, app: ASGIApp, hosts: OwnHosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        named = headers.getlist("host")
        for host in named:
            if (split := _split(f"//{host}")) is None or (split.hostname or "") not in self._hosts:
                return _wrong_host(host)
        if scope["method"] in SAFE_METHODS:
            return None
        for site in headers.getlist("sec-fetch-site"):
            if site.lower() in FOREIGN_SITES:
                return _foreign(f"its Sec-Fetch-Site is {site!r}")
        for origin in headers.getlist("origin"):
            if not self._is_own(origin, scheme=scope["scheme"], named=named):
                return _foreign(f"its Origin is {origin[:100]!r}")
        return None

    def _is_own(self, origin: str, *, scheme: str, named: Sequence[str]) -> bool:
        """Whether an origin is the one that the request is for, or that of a proxy before it."""
        found = _split(origin)
        if found is None or found.scheme not in DEFAULT_PORTS or not found.hostname:
            return False
        if self._hosts.lists(found.hostname):
            return True
        asked = [_split(f"{scheme}://{host}") for host in named]
        return any(each is not None and _whole(each) == _whole(found) for each in asked)


def _split(url: str) -> SplitResult | None:
    """The parts of a URL that is no more than a scheme, a host and a port; None: it is something else."""
    try:
        split = urlsplit(url)
        bare = split.port is None or split.port > 0
    except ValueError:
        return None
    rest = (split.path, split.query, split.fragment, "@" in split.netloc)
    return split if bare and not any(rest) else None


def _whole(url: SplitResult) -> tuple[str, str, int]:
    return url.scheme, url.hostname or "", url.port or DEFAULT_PORTS[url.scheme]


def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_loopback(address: Address) -> bool:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _wrong_host(host: str) -> Response:
    return problem_response(
        421,
        slug="host-unknown",
        title="The request is for another host",
        detail=f"The request's Host is {host[:100]!r}, which is not this service's.",
        fix="If the service is meant to be called by this name, set HOLDFAST_ALLOWED_HOSTS for the API.",
        # What is left of the request is not read, so the connection cannot be used again.
        headers={"Connection": "close"},
    )


def _foreign(why: str) -> Response:
    return problem_response(
        403,
        slug="origin-foreign",
        title="The request comes from another site's page",
        detail=f"A page of another site may change nothing here: {why}.",
        fix="Send it from a program or from /docs; behind a proxy, set HOLDFAST_ALLOWED_HOSTS for the API.",
        headers={"Connection": "close"},
    )
