"""Configuration of a Kafka source, and the librdkafka settings that it may pass on.

Only listed settings may be passed on: some of librdkafka's run a shell command or load a library, and a
declaration comes over the network. Secrets are read from the environment only, so that none is stored or
shown.
"""

import json
import os
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator

from streams.allowed import Allowed, Server
from streams.base import SourceConfig, SourceError

EnvironmentName = Annotated[str, StringConstraints(max_length=200, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_PORT = 9092
_PLAIN_PROTOCOLS = ("plaintext", "sasl_plaintext")
_UNVERIFIED = {
    "enable.ssl.certificate.verification": ("false", "f", "0", "no", "off"),
    "ssl.endpoint.identification.algorithm": ("none", ""),
    "security.protocol": _PLAIN_PROTOCOLS,
}
"""Values under which a secret could reach another server than its own, or be read on its way."""

_BYTES = {
    "fetch.max.bytes": 1,
    "fetch.message.max.bytes": 1,
    "max.partition.fetch.bytes": 1,
    "queued.max.messages.kbytes": 1024,
    "receive.message.max.bytes": 1,
}
"""Settings of what is held in memory, and the bytes of one unit."""

TopicName = Annotated[str, StringConstraints(max_length=249, pattern=r"^[a-zA-Z0-9._-]+$")]

SECRET = frozenset(
    {
        "sasl.password",
        "sasl.oauthbearer.client.secret",
        "ssl.key.password",
        "ssl.key.pem",
        "ssl.keystore.password",
    }
)
"""Settings that are read from the environment only."""

OPERATORS = frozenset({"sasl.oauthbearer.token.endpoint.url"})
"""Settings that send a secret somewhere: the operator's, in what `properties_env` names."""

TRUST = frozenset({"ssl.ca.location", "ssl.ca.pem"})
"""Settings that say which servers are genuine: with a secret they are the operator's too."""

ALLOWED = (
    SECRET
    | OPERATORS
    | {
        "broker.address.family",
        "client.id",
        "client.rack",
        "enable.ssl.certificate.verification",
        "fetch.error.backoff.ms",
        "fetch.max.bytes",
        "fetch.message.max.bytes",
        "fetch.min.bytes",
        "fetch.wait.max.ms",
        "group.id",
        "max.partition.fetch.bytes",
        "queued.max.messages.kbytes",
        "queued.min.messages",
        "receive.message.max.bytes",
        "sasl.mechanism",
        "sasl.mechanisms",
        "sasl.oauthbearer.client.id",
        "sasl.oauthbearer.extensions",
        "sasl.oauthbearer.method",
        "sasl.oauthbearer.scope",
        "sasl.username",
        "security.protocol",
        "socket.connection.setup.timeout.ms",
        "socket.keepalive.enable",
        "socket.timeout.ms",
        "ssl.ca.location",
        "ssl.ca.pem",
        "ssl.certificate.location",
        "ssl.certificate.pem",
        "ssl.endpoint.identification.algorithm",
        "ssl.key.location",
        "ssl.keystore.location",
    }
)
"""Settings of librdkafka that may be passed on. None of them affects exactly-once reading."""


class KafkaConfig(SourceConfig):
    """A topic of Kafka, or of a broker that speaks its protocol."""

    kind: Literal["kafka"] = "kafka"
    bootstrap_servers: str = Field(
        min_length=1, max_length=2000, description="Brokers to begin with, as host:port,host:port."
    )
    topic: TopicName = Field(description="The topic; each of its partitions is a partition.")
    wire: Literal["json", "msgpack", "arrow"] = Field(
        "json", description="How a message is written; an arrow message holds many records."
    )
    start: Literal["beginning", "oldest"] = Field(
        "beginning",
        description="beginning: refuse a topic that has deleted messages already; oldest: take what is left.",
    )
    properties: dict[str, str] = Field(
        {}, max_length=100, description="Settings of librdkafka, such as security.protocol; no secrets."
    )
    properties_env: EnvironmentName | None = Field(
        None,
        description="The environment variable of the ingest role that holds more of them as a JSON object, "
        "secrets too.",
    )

    @field_validator("properties")
    @classmethod
    def _may_be_passed_on(cls, properties: dict[str, str]) -> dict[str, str]:
        for name in properties:
            if name in SECRET:
                raise ValueError(f"{name} is a secret: put it into what properties_env names")
            if name not in ALLOWED:
                known = ", ".join(sorted(ALLOWED - SECRET - OPERATORS))
                raise ValueError(f"{name[:100]!r} may not be set here; {known} may")
        return properties

    @property
    def servers(self) -> tuple[Server, ...]:
        """The brokers to begin with; empty where they are not written as host:port,host:port."""
        found = [Server.parse(text.strip(), port=_PORT) for text in self.bootstrap_servers.split(",")]
        return tuple(server for server in found if server is not None) if all(found) else ()

    def refusal(self, allowed: Allowed) -> str | None:
        """See `SourceConfig`."""
        if self.properties_env is not None and (refused := allowed.variable_refusal(self.properties_env)):
            return refused
        if not self.servers:
            return (
                "The bootstrap_servers must be written as host:port,host:port, with plain names or addresses."
            )
        for server in self.servers:
            if not allowed.reaches(server, secret=self.properties_env):
                return allowed.server_refusal("The server", server, secret=self.properties_env)
        return self._property_refusal(allowed)

    def _property_refusal(self, allowed: Allowed) -> str | None:
        for name, value in self.properties.items():
            if name in OPERATORS or (name in TRUST and self.properties_env is not None):
                return f"{name} may stand only in what properties_env names: it decides who gets a secret."
            if name.endswith(".location") and not allowed.reads_file(value):
                return allowed.path_refusal(f"The file of {name},", value)
            # Plain digits: the library reads 0x7fffffff too.
            if name in _BYTES and not (
                re.fullmatch(r"[0-9]{1,12}", value) and int(value) * _BYTES[name] <= allowed.queue_bytes
            ):
                return f"{name} must be a number of at most {allowed.queue_bytes // _BYTES[name]} here."
            if self.properties_env is not None and value.strip().lower() in _UNVERIFIED.get(name, ()):
                return (
                    f"{name} may not be {value.strip()[:40]!r} together with properties_env: the secret "
                    "would be sent to a server that proves nothing. What properties_env names may say so."
                )
        return None


def properties_from_environment(name: str | None) -> Mapping[str, str]:
    """The settings that an environment variable holds as a JSON object; none without a name.

    Raises:
        SourceError: it is not set, is not such an object, or names a setting that may not be passed on. The
            message shows no value.
    """
    if name is None:
        return {}
    try:
        found = json.loads(os.environ.get(name, ""))
    except ValueError:
        found = None  # the parser's message may quote a secret
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise SourceError(
            f"The environment variable {name} must hold settings of librdkafka where ingest runs, as a JSON "
            'object of texts such as {"sasl.password": "..."}.'
        )
    refused = sorted(found.keys() - ALLOWED)
    if refused:
        raise SourceError(f"{name} names {refused[0][:100]!r}, which may not be set.")
    return found
