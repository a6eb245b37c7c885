"""No text of a declaration leads out of the allow-list: every text field of every source, hostile values.

The fields are found in the catalog. One that is new must be said to name something outside the installation,
or to name nothing. Forbidden peers are servers of these tests' own on loopback, and must see no connection.
"""

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import ValidationError

from streams.allowed import Allowed, Peer
from streams.base import SourceConfig, SourceStoppedError, StreamError
from streams.catalog import SOURCES
from streams.sources.kafka import topic as kafka_topic
from streams.sources.kafka.config import ALLOWED as KAFKA_PROPERTIES
from tests.support import traps
from tests.support.stream_parts import SCHEMA, sqlite_engine

BOUND, OTHER = "BOUND_OF_THE_TEST", "OTHER_OF_THE_TEST"
NAMING = {
    "datasets": {"folder"},
    "files": {"location"},
    "kafka": {"bootstrap_servers", "properties", "properties_env"},
    "pushed": set[str](),
    "redis": {"url", "url_env"},
}
"""Fields that name a server, a file or a variable."""
HARMLESS = {
    "datasets": set[str](),
    "files": {"pattern", "id", "label", "time", "split_key"},
    "kafka": {"topic"},
    "pushed": set[str](),
    "redis": {"streams", "field"},
}
"""Fields whose text is only compared with what an allowed place holds."""


def holds_text(annotation: Any) -> bool:
    """Whether a value of that type is, or holds, a text that a caller chooses."""
    if get_origin(annotation) is Literal:
        return False
    return annotation is str or any(holds_text(part) for part in get_args(annotation))


def text_fields(config: type[SourceConfig]) -> set[str]:
    return {name for name, field in config.model_fields.items() if holds_text(field.annotation)}


@pytest.fixture(scope="module")
def place() -> Iterator[traps.Traps]:
    folder = Path("/tmp") / f"hf-{uuid.uuid4().hex[:8]}"  # a socket's path has 107 bytes at most
    folder.mkdir()
    with traps.traps(folder) as found:
        yield found


@pytest.fixture
def allowed(place: traps.Traps, monkeypatch: pytest.MonkeyPatch) -> Allowed:
    """One root, one server, one variable, which holds the URL of a server that it is not bound to."""
    peer = Peer("127.0.0.1", place.allowed.port)
    for name in (BOUND, OTHER):
        monkeypatch.setenv(name, f"redis://:{traps.CANARY}@127.0.0.9:{place.other_address.port}/0")
    monkeypatch.setattr(kafka_topic, "ANSWER_SECONDS", 0.2)
    return Allowed(roots=(str(place.inside),), hosts=(peer,), secrets={BOUND: (peer,)})


def bases(kind: str, place: traps.Traps) -> dict[str, Any]:
    """A declaration of that kind that is allowed."""
    server = f"127.0.0.1:{place.allowed.port}"
    found: dict[str, dict[str, Any]] = {
        "datasets": {"protocol": "split-mnist", "folder": str(place.inside)},
        "files": {"location": str(place.inside), "settle_seconds": 0},
        "kafka": {"bootstrap_servers": server, "topic": "t"},
        "pushed": {},
        "redis": {"url": f"redis://{server}/0", "streams": ["s"]},
    }
    return found[kind]


def forbidden_paths(place: traps.Traps) -> list[str]:
    inside, outside = place.inside, place.outside
    return [
        str(outside),
        str(outside / "cert.pem"),
        str(outside / "pipe"),
        str(outside / "is-not-there"),
        f"{inside}/../out",
        f"{inside}/../out/cert.pem",
        f"{inside}/./../out",
        f"{inside}2",
        str(inside / "link"),
        str(inside / "link" / "cert.pem"),
        str(inside / "file-link"),
        str(inside / "ring"),
        f"file://{outside}",
        f"file://{inside}/../out",
        f"{inside}/\0",
        f"{inside}/../{'x' * 900}",
        "/proc/self/environ",
        "/dev/stdin",
        "~",
        "in",
        "s3://bucket",
        f"s3://{str(inside).strip('/')}/x",
    ]


def forbidden_servers(place: traps.Traps) -> list[str]:
    port = place.other_address.port
    spelt = [
        "127.0.0.9",
        "2130706441",
        "0x7f000009",
        "0x7f.0.0.9",
        "0177.0.0.011",
        "127.9",
        "127.0.9",
        "127.0.0.9.",
        "127.0.0.009",
        "127%2e0.0.9",
        "\uff11\uff12\uff17.0.0.9",
        "127\u30020.0.9",
        "[::ffff:127.0.0.9]",
        "[::ffff:7f00:9]",
        "[0:0:0:0:0:ffff:7f00:0009]",
        "[::ffff:127.0.0.9%lo]",
        "::ffff:127.0.0.9",
    ]
    local = [
        "127.0.0.1",
        "localhost",
        "LOCALHOST",
        "[::1]",
        "0.0.0.0",
        "0",
        "[::]",
        "[::ffff:127.0.0.1]",
        "127.1",
    ]
    return [f"{host}:{port}" for host in spelt] + [f"{host}:{place.other_port.port}" for host in local]


def forbidden_urls(place: traps.Traps) -> list[str]:
    good, evil = f"127.0.0.1:{place.allowed.port}", f"127.0.0.9:{place.other_address.port}"
    files = [
        f"rediss://{good}/0?{option}={path}"
        for option in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_ca_path")
        for path in [*forbidden_paths(place), str(place.inside / "pipe"), str(place.inside / "link")]
        if "\0" not in path
    ]
    tricks = [
        f"redis://{good}@{evil}/0",
        f"redis://127.0.0.1@{evil}/0",
        f"redis://{evil}#@{good}",
        f"redis://{evil}?@{good}",
        f"redis://{evil}/@{good}",
        f"redis://{good}\\@{evil}",
        f"redis://{good},{evil}",
        f"redis://{good}%2f@{evil}",
        f" redis://{evil}",
        f"redis:{evil}",
        f"REDIS://{evil}",
        f"http://{evil}",
        f"file://{place.outside}/cert.pem",
        f"redis://{good}/0?host=127.0.0.9&port={place.other_address.port}",
        f"redis://{good}/0?path={place.socket_path}",
        f"unix://{place.socket_path}",
        f"unix://{place.socket_path}?db=1",
        f"unix://user@{place.socket_path}",
        f"unix://{place.inside}/link/s",
        f"unix://{place.inside}/../out/s",
        f"unix://{str(place.socket_path).replace('/', '%2f')}",
        f"unix:{place.socket_path}",
    ]
    return [f"redis://{server}/0" for server in forbidden_servers(place)] + tricks + files


def forbidden(kind: str, name: str, place: traps.Traps) -> list[dict[str, Any]]:
    """Changes of an allowed declaration each of which must be refused."""
    good, evil = f"127.0.0.1:{place.allowed.port}", f"127.0.0.9:{place.other_address.port}"
    if name in ("folder", "location"):
        return [{name: path} for path in forbidden_paths(place)]
    if name == "url":
        return [{name: url} for url in forbidden_urls(place)] + [{"trim": True}]
    if name == "url_env":
        return [{"url": None, name: other} for other in (OTHER, "PATH", "NOT_SET_ANYWHERE")]
    if name == "properties_env":
        others = [{name: other} for other in (OTHER, "PATH", "NOT_SET_ANYWHERE")]
        weak = [
            {name: BOUND, "properties": {setting: value}}
            for setting, value in (
                ("enable.ssl.certificate.verification", "false"),
                ("ssl.endpoint.identification.algorithm", "none"),
                ("security.protocol", "SASL_PLAINTEXT"),
                ("ssl.ca.pem", "mine"),
            )
        ]
        return [*others, *weak, {name: BOUND, "bootstrap_servers": evil}]
    if name == "properties":
        paths = [*forbidden_paths(place), str(place.inside / "pipe"), str(place.inside)]
        located = sorted(setting for setting in KAFKA_PROPERTIES if setting.endswith(".location"))
        changes = [{name: {setting: path}} for setting in located for path in paths]
        unlisted = {
            "sasl.oauthbearer.token.endpoint.url": f"http://{evil}/",
            "plugin.library.paths": str(place.outside / "cert.pem"),
            "bootstrap.servers": evil,
            "metadata.broker.list": evil,
            "sasl.kerberos.kinit.cmd": f"cat {place.outside / 'cert.pem'}",
            "ssl.providers": "legacy",
            "https.ca.location": str(place.outside / "cert.pem"),
        }
        return [*changes, *({name: {setting: value}} for setting, value in unlisted.items())]
    assert name == "bootstrap_servers", f"add hostile values for the field {kind}.{name} to this file"
    tricks = [
        evil,
        f"PLAINTEXT://{evil}",
        f"{good},{evil}",
        f"{good};{evil}",
        f"{good} {evil}",
        f"{good}\n{evil}",
        f"{good}@{evil}",
        f" {evil} ",
        f"{good},PLAINTEXT://{evil}",
        f"unix://{place.socket_path}",
        "127.0.0.9",
        ",",
    ]
    return [{name: servers} for servers in [*forbidden_servers(place), *tricks]]


def attempt(kind: str, config: SourceConfig, allowed: Allowed, tmp_path: Path) -> list[str]:
    """Open and poll a source; what it gave and what it said, of all that is told to callers."""
    engine = sqlite_engine(tmp_path / f"{uuid.uuid4().hex}.db")
    told: list[str] = []

    def run() -> None:
        source = SOURCES[kind].build(config, pipeline="p", schema=SCHEMA, engine=engine, allowed=allowed)
        try:
            source.open({})
            told.extend(str(list(batch.payloads)) for batch in source.poll(5, 0.0))
        except SourceStoppedError as error:
            told.append(f"stopped: {error}")
        except StreamError as error:
            told.append(str(error))
        finally:
            source.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "a source waits for something that it was told to open"
    engine.dispose()
    return told


def read(kind: str, place: traps.Traps, change: dict[str, Any]) -> SourceConfig | None:
    """The declaration, or None where its config does not even take it."""
    try:
        return SOURCES[kind].config.model_validate({"kind": kind, **bases(kind, place), **change})
    except ValidationError:
        return None


def test_every_text_of_every_source_is_said_to_name_something_or_nothing() -> None:
    assert NAMING.keys() == HARMLESS.keys() == SOURCES.keys()
    for kind, spec in SOURCES.items():
        assert text_fields(spec.config) == NAMING[kind] | HARMLESS[kind], kind
        assert not NAMING[kind] & HARMLESS[kind]


@pytest.mark.parametrize("kind", sorted(SOURCES))
def test_what_is_allowed_is_not_refused(kind: str, place: traps.Traps, allowed: Allowed) -> None:
    config = read(kind, place, {})
    assert config is not None
    assert config.refusal(allowed) is None


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in sorted(NAMING) for name in sorted(NAMING[kind])]
)
def test_what_leads_out_is_refused_when_declared_and_when_opened(
    kind: str, name: str, place: traps.Traps, allowed: Allowed, tmp_path: Path
) -> None:
    for change in forbidden(kind, name, place):
        config = read(kind, place, change)
        if config is None:
            continue
        refusal = config.refusal(allowed)
        assert refusal is not None, change
        assert traps.CANARY not in refusal
        (told,) = attempt(kind, config, allowed, tmp_path)
        assert told.startswith("stopped: The installation does not allow this source."), change
        assert refusal in told
    assert place.came() == []


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in sorted(HARMLESS) for name in sorted(HARMLESS[kind])]
)
def test_a_text_that_names_nothing_leads_nowhere(
    kind: str, name: str, place: traps.Traps, allowed: Allowed, tmp_path: Path
) -> None:
    texts = [*forbidden_paths(place)[:12], *forbidden_servers(place)[:3], *forbidden_urls(place)[:3], OTHER]
    listed = name == "streams"
    for text in texts:
        config = read(kind, place, {name: [text] if listed else text})
        if config is not None:
            told = attempt(kind, config, allowed, tmp_path)
            assert not any(traps.CANARY in each for each in told), (text, told)
    assert place.came() == []


def test_a_variable_is_sent_only_to_the_servers_that_it_is_bound_to(
    place: traps.Traps, allowed: Allowed, tmp_path: Path
) -> None:
    config = read("redis", place, {"url": None, "url_env": BOUND})
    assert config is not None
    assert config.refusal(allowed) is None
    (told,) = attempt("redis", config, allowed, tmp_path)
    assert told.startswith("stopped:")
    assert traps.CANARY not in told
    assert place.came() == []


def test_answers_do_not_tell_what_exists(place: traps.Traps, allowed: Allowed) -> None:
    """The same sentence, whether a path or a variable is there or not."""

    def sentence(kind: str, change: dict[str, Any], named: str) -> str:
        config = read(kind, place, change)
        assert config is not None
        refusal = config.refusal(allowed)
        assert refusal is not None
        return refusal.replace(named, "NAMED")

    there, gone = str(place.outside / "cert.pem"), str(place.outside / "is-not-there")
    url = f"rediss://127.0.0.1:{place.allowed.port}/0?ssl_keyfile="
    pairs: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("files", {"location": there}, {"location": gone}),
        ("datasets", {"folder": there}, {"folder": gone}),
        ("redis", {"url": url + there}, {"url": url + gone}),
    ]
    located = (name for name in sorted(KAFKA_PROPERTIES) if name.endswith(".location"))
    pairs += [("kafka", {"properties": {name: there}}, {"properties": {name: gone}}) for name in located]
    for kind, one, other in pairs:
        assert sentence(kind, one, there) == sentence(kind, other, gone)
    for kind, field in (("redis", "url_env"), ("kafka", "properties_env")):
        change = {"url": None} if kind == "redis" else {}
        texts = [sentence(kind, {**change, field: name}, name) for name in (OTHER, "NOT_SET_ANYWHERE")]
        assert texts[0] == texts[1]


def test_the_traps_notice_whoever_comes(place: traps.Traps, tmp_path: Path) -> None:
    """Last in this file: a list that names the traps lets the same declarations reach them."""
    port = place.other_address.port
    open_list = Allowed(hosts=(Peer("127.0.0.9"), Peer(f"unix://{place.socket_path}")))
    for url in (f"redis://127.0.0.9:{port}/0", f"unix://{place.socket_path}"):
        config = read("redis", place, {"url": url})
        assert config is not None
        attempt("redis", config, open_list, tmp_path)
    config = read("kafka", place, {"bootstrap_servers": f"127.0.0.9:{port}"})
    assert config is not None
    attempt("kafka", config, open_list, tmp_path)
    assert len(place.came()) >= 3
