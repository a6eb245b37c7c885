"""Settings of the service, read from environment variables that begin with HOLDFAST_."""

import re
from pathlib import Path
from urllib.parse import unquote

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from strategies.network_choice import Installation, own_networks
from streams.allowed import LOOPBACK, Allowed, Peer, Trim, bound_secrets, is_address, listed

HOST_NAME = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.IGNORECASE)
"""A name, or the suffix of names; without a scheme and without a port."""


USER_INFO = re.compile(r"(https?://)([^/?#]*)@", re.IGNORECASE)
"""The head of a server's URL that holds user and password."""


class Settings(BaseSettings):
    """How this installation runs; the defaults suit one machine."""

    model_config = SettingsConfigDict(env_prefix="HOLDFAST_", frozen=True, extra="ignore")

    home: Path = Field(Path("holdfast-home"), description="Folder that holds everything the service stores.")
    database_url: SecretStr | None = Field(None, description="SQLAlchemy URL; default SQLite in the home.")
    host: str = Field("127.0.0.1", description="Address that the API listens on.")
    port: int = Field(8400, ge=0, le=65535, description="Port of the API.")
    allowed_hosts: str | None = Field(
        None,
        description="Hosts that requests may name besides this machine's own, such as a proxy's: "
        "names or *.suffix, with commas between them.",
    )
    mlflow_tracking_uri: str | None = Field(
        None,
        # It may hold a password.
        repr=False,
        description="MLflow server or store; default SQLite.",
    )
    mlflow_ui: bool = Field(True, description="Whether `holdfast up` starts MLflow's pages.")
    mlflow_host: str = Field(
        "127.0.0.1", description="Address that MLflow's pages listen on, whatever the API listens on."
    )
    mlflow_port: int = Field(8401, ge=0, le=65535, description="Port of MLflow's pages.")
    ray_address: str | None = Field(None, description="Ray cluster to join; default: a local one.")
    trainers: int = Field(
        1, ge=1, le=1024, description="Trainers kept warm: the number of updates that run at once."
    )
    lease_seconds: float = Field(
        15.0, gt=0, description="Seconds of silence after which a worker loses its update."
    )
    max_attempts: int = Field(3, ge=1, description="Attempts at an update before it has failed for good.")
    poll_seconds: float = Field(
        0.1, gt=0, description="Seconds between polls of the sources and of the queue."
    )
    max_backlog_records: int = Field(
        5_000_000, ge=1, description="Pushed records that may wait to be learnt; more are refused with 429."
    )
    max_backlog_bytes: int = Field(
        8 * 2**30,
        ge=2**20,
        description="Memory of records that may wait to be learnt, in each pipeline; more are refused with "
        "429, and a trigger that waits for more is refused.",
    )
    max_duplicate_window: int = Field(
        10_000_000,
        ge=0,
        description="Largest `duplicate_window` that a pipeline may declare; a record in it takes 24 bytes.",
    )
    max_queue_bytes: int = Field(
        256 * 2**20,
        ge=2**20,
        description="Memory that the Kafka client of one pipeline may be told to fetch ahead into.",
    )
    max_bytes_in_flight: int = Field(
        2**29,
        ge=256 * 2**20,
        description="Bytes of bodies of records that the API holds at once; more are answered with 503.",
    )
    source_roots: str | None = Field(
        None,
        description="Folders and s3:// prefixes that pipelines may read files from, with ; between them; "
        "default: incoming in the home.",
    )
    source_hosts: str | None = Field(
        None,
        description="Servers that pipelines may read from without a secret: host, host:port, *.suffix or "
        "unix:///path, with commas between them; default: localhost, 127.0.0.1 and ::1.",
    )
    source_secrets: str | None = Field(
        None,
        description="Variables that pipelines may name, each with the servers that it may be sent to: "
        "NAME=host:port, with a bar between servers and commas between variables.",
    )
    source_trims: str | None = Field(
        None,
        description="Redis servers whose streams `trim: true` may delete from, as host:port or "
        "host:port/pattern-of-keys with commas between them; default: none.",
    )
    store: str | None = Field(
        None, description="s3:// prefix that experiences are kept under; default: a folder in the home."
    )
    cache_bytes: int = Field(
        10 * 2**30,
        ge=2**20,
        description="Size of the local cache of experiences, where HOLDFAST_STORE is set.",
    )
    networks: str | None = Field(
        None,
        description="Own networks that pipelines may name, as name=module:function with ; between them.",
    )
    weights: Path | None = Field(None, description="Folder of weight files that pipelines may name.")
    upkeep_seconds: float = Field(
        600.0, gt=0, description="Seconds between removals of files that nothing needs any more."
    )
    orphan_grace_seconds: float = Field(
        3600.0, ge=60, description="Age in seconds at which a file that no database row names is removed."
    )
    log_format: str = Field("text", pattern="^(text|json)$", description="Format of the log lines.")
    log_level: str = Field(
        "INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Lowest severity that is logged."
    )

    @field_validator("networks")
    @classmethod
    def _networks_parse(cls, networks: str | None) -> str | None:
        own_networks(networks or "")
        return networks

    @field_validator("source_hosts")
    @classmethod
    def _peers_parse(cls, hosts: str | None) -> str | None:
        for host in listed(hosts):
            Peer.parse(host)
        return hosts

    @field_validator("source_secrets")
    @classmethod
    def _secrets_parse(cls, secrets: str | None) -> str | None:
        bound_secrets(secrets or "")
        return secrets

    @field_validator("source_trims")
    @classmethod
    def _trims_parse(cls, trims: str | None) -> str | None:
        for entry in listed(trims):
            Trim.parse(entry)
        return trims

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts_parse(cls, hosts: str | None) -> str | None:
        for host in listed(hosts):
            if not HOST_NAME.fullmatch(host) and not is_address(host):
                raise ValueError(f"{host!r} is no host: write holdfast.example or *.example, without a port")
        return hosts

    @property
    def listed_hosts(self) -> tuple[str, ...]:
        """Hosts that requests may name besides this machine's own; what begins with *. is a suffix."""
        return tuple(host.lower() for host in listed(self.allowed_hosts))

    @property
    def installation(self) -> Installation:
        """Networks and weights that this installation adds to the built-in ones."""
        weights = None if self.weights is None else self.weights.expanduser().resolve()
        return Installation(networks=own_networks(self.networks or ""), weights=weights)

    @property
    def root(self) -> Path:
        """The home as an absolute path."""
        return self.home.expanduser().resolve()

    @property
    def database(self) -> str:
        """The SQLAlchemy URL in force."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.root / 'holdfast.db'}"

    @property
    def tracking_uri(self) -> str:
        """The MLflow tracking URI in force, without user and password of a server: MLflow quotes it."""
        if self.mlflow_tracking_uri is None:
            return f"sqlite:///{self.root / 'mlflow.db'}"
        return USER_INFO.sub(r"\1", self.mlflow_tracking_uri)

    @property
    def tracking_login(self) -> tuple[str, SecretStr] | None:
        """User and password for the MLflow server, where its URI holds them."""
        found = USER_INFO.match(self.mlflow_tracking_uri or "")
        if found is None:
            return None
        user, _, password = found[2].partition(":")
        return unquote(user), SecretStr(unquote(password))

    @property
    def experiences(self) -> Path:
        return self.root / "experiences"

    @property
    def roots(self) -> list[Path | str]:
        """Where pipelines may read files from."""
        if self.source_roots is None:
            return [self.root / "incoming"]
        named = [root.strip() for root in self.source_roots.split(";") if root.strip()]
        return [root if root.startswith("s3://") else Path(root).expanduser().resolve() for root in named]

    @property
    def allowed(self) -> Allowed:
        """What declarations may name: the one allow-list that every source asks."""
        hosts = self.source_hosts
        return Allowed(
            roots=tuple(str(root) for root in self.roots),
            hosts=LOOPBACK if hosts is None else tuple(Peer.parse(host) for host in listed(hosts)),
            secrets=bound_secrets(self.source_secrets or ""),
            trims=tuple(Trim.parse(entry) for entry in listed(self.source_trims)),
            queue_bytes=self.max_queue_bytes,
        )

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def artifacts(self) -> Path:
        return self.root / "mlflow-artifacts"


def url_of(host: str, port: int) -> str:
    """Where this machine reaches what listens on an address; on loopback, if that is every address."""
    reached = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"
