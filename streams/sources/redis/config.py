"""Configuration of a Redis source, and what of it an installation must allow."""

from typing import Annotated, Literal, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import ConfigDict, Field, StringConstraints, field_validator, model_validator

from streams.allowed import Allowed, Server
from streams.base import SourceConfig

StreamName = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]+$")]
EnvironmentName = Annotated[str, StringConstraints(max_length=200, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

_URL_OPTIONS = {"db"}
_TLS_OPTIONS = {
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_keyfile",
}
_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_PORT = 6379


class RedisConfig(SourceConfig):
    """Redis Streams, version 7 or newer."""

    # An error about one field would otherwise print all of them, and the URL may hold a password.
    model_config = ConfigDict(hide_input_in_errors=True)

    kind: Literal["redis"] = "redis"
    url: str | None = Field(
        None,
        repr=False,
        description="Where Redis is, such as redis://host:6379/0 or rediss://host:6380/0; without a "
        "password, since the API shows it.",
    )
    url_env: EnvironmentName | None = Field(
        None,
        description="Instead of url: the environment variable of the ingest role that holds it, password "
        "and all.",
    )
    streams: tuple[StreamName, ...] = Field(
        min_length=1, max_length=100, description="Keys of the streams; each is a partition."
    )
    field: StreamName = Field("record", description="The field of an entry that holds the record.")
    wire: Literal["json", "msgpack"] = Field("json", description="How a record is written.")
    start: Literal["beginning", "oldest"] = Field(
        "beginning",
        description="beginning: refuse a stream that has lost entries already; oldest: take what is left.",
    )
    trim: bool = Field(
        False, description="Delete entries once they are in experiences; only if nobody else reads them."
    )

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, url: str | None) -> str | None:
        problem = None if url is None else url_problem(url)
        if problem:
            raise ValueError(problem)
        if url is not None and holds_password(url):
            raise ValueError(
                "the url must hold no password, since the API shows it: put the whole URL into a variable of "
                "the ingest role's environment, and name that with url_env"
            )
        return url

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.url is None) == (self.url_env is None):
            raise ValueError("either url or url_env must say where Redis is, and not both")
        if len(set(self.streams)) != len(self.streams):
            raise ValueError("streams must not repeat a key")
        return self

    def refusal(self, allowed: Allowed) -> str | None:
        """See `SourceConfig`. What a variable holds is known to ingest alone, which asks again."""
        if self.url is not None:
            return url_refusal(self, self.url, allowed)
        refused = allowed.variable_refusal(self.url_env or "")
        return refused or (_trim_refusal(self, None, allowed) if self.trim else None)


def url_refusal(config: RedisConfig, url: str, allowed: Allowed, *, secret: str | None = None) -> str | None:
    """Why an installation does not let this URL be used, as a sentence; None when it does.

    `secret` names the variable that the URL is from: its files and options are the operator's own choice,
    and its server must be one that the variable is bound to.
    """
    parts = urlsplit(url)
    server = None
    if parts.scheme == "unix":
        if not allowed.reaches_socket(unquote(parts.path), secret=secret):
            return allowed.server_refusal("The socket", f"unix://{parts.path}", secret=secret)
    else:
        server = Server.of(parts.hostname or "localhost", parts.port or _PORT)
        if server is None or not allowed.reaches(server, secret=secret):
            return allowed.server_refusal("The server", server or parts.hostname, secret=secret)
    if secret is None:
        for name, path in parse_qsl(parts.query):
            if name == "ssl_ca_path":
                return "The url may not name a folder of certificates: name one file, with ssl_ca_certs."
            if name in _TLS_FILES and not allowed.reads_file(path):
                return allowed.path_refusal(f"The file of {name},", path)
    return _trim_refusal(config, server, allowed) if config.trim else None


def _trim_refusal(config: RedisConfig, server: Server | None, allowed: Allowed) -> str | None:
    for stream in config.streams:
        if not allowed.trims_stream(server, stream):
            return (
                f"Entries of {stream!r} may not be deleted: HOLDFAST_SOURCE_TRIMS lists what trim may empty."
            )
    return None


def url_problem(url: str) -> str | None:
    """What is wrong with a URL, without quoting it; None when nothing is."""
    try:
        parts = urlsplit(url)
        _ = parts.port
        named = {name for name, _ in parse_qsl(parts.query)}
    except ValueError:
        return "the url cannot be read; a password in it must be percent-encoded"
    if not url.startswith(f"{parts.scheme}://"):
        return "the url must begin with redis://, rediss:// or unix://"
    if parts.scheme not in ("redis", "rediss", "unix"):
        return "the url must begin with redis://, rediss:// or unix://"
    taken = _URL_OPTIONS | (_TLS_OPTIONS if parts.scheme == "rediss" else set())
    if not named <= taken:
        return f"of options in a {parts.scheme}:// url, only {', '.join(sorted(taken))} are taken"
    return None


def holds_password(url: str) -> bool:
    """Whether a URL that can be read holds a password."""
    return bool(urlsplit(url).password)
