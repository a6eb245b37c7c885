"""Redis Streams as a source, against a real server: what it forgets is noticed, and nothing is skipped."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from pydantic import ValidationError
from redis import Redis
from redis.exceptions import RedisError

from streams.allowed import LOOPBACK, Allowed, Peer, Trim
from streams.base import DataLostError, SourceError, TrimmedSource
from streams.sources.redis.config import RedisConfig
from streams.sources.redis.source import RedisSource
from streams.wire.decode import decode
from tests.support import redis_server
from tests.support.stream_parts import SCHEMA, payload

Read = list[tuple[str, str]]

BOUND = (*LOOPBACK, Peer("host"))
ALLOWED = Allowed(secrets={"REDIS_OF_THE_TEST": BOUND}, trims=tuple(map(Trim, LOOPBACK)))


@pytest.fixture(scope="module")
def server() -> Iterator[redis_server.Server]:
    with redis_server.server() as found:
        yield found


@pytest.fixture
def client(server: redis_server.Server) -> Iterator[Redis]:
    with server.client() as found:
        found.flushall()
        yield found


def config(server: redis_server.Server, *streams: str, **changes: object) -> RedisConfig:
    fields = {"url": server.url, "streams": streams or ("s",)} | changes
    return RedisConfig.model_validate(fields)


@contextmanager
def opened(config: RedisConfig, cursors: dict[str, str] | None = None) -> Iterator[RedisSource]:
    source = RedisSource(config, allowed=ALLOWED)
    try:
        source.open(cursors or {})
        yield source
    finally:
        source.close()


def add(client: Redis, names: list[str], *, stream: str = "s") -> None:
    commands = client.pipeline(transaction=False)
    for name in names:
        commands.xadd(stream, {"record": payload(name)})
    commands.execute()


def numbered(client: Redis, *numbers: int) -> None:
    """Entries whose ids tell their number."""
    for number in numbers:
        client.xadd("s", {"record": payload(str(number))}, id=f"{number}-0")


def read(source: RedisSource, *, size: int = 100, into: Read | None = None) -> Read:
    """(position, id) of all that is there now; with `into`, what was read before an error is there."""
    found: Read = [] if into is None else into
    while batches := source.poll(size, 0.0):
        for batch in batches:
            decoded = decode(batch, SCHEMA)
            assert not decoded.rejected
            found += zip(decoded.positions, decoded.records.ids.to_pylist(), strict=True)
    return found


def names(found: Read) -> list[str]:
    return [name for _, name in found]


def test_a_source_resumes_at_every_cursor(server: redis_server.Server, client: Redis) -> None:
    add(client, [str(number) for number in range(12)])
    with opened(config(server)) as source:
        whole = read(source, size=5)
    assert names(whole) == [str(number) for number in range(12)]
    for index, (position, _) in enumerate(whole):
        with opened(config(server), {"s": position}) as source:
            assert read(source) == whole[index + 1 :]


def test_an_entry_id_alone_is_a_cursor(server: redis_server.Server, client: Redis) -> None:
    numbered(client, 1, 2, 3)
    with opened(config(server), {"s": "2-0"}) as source:
        assert read(source) == [("3-0", "3")]
    client.xtrim("s", maxlen=1, approximate=False)
    with pytest.raises(DataLostError, match="what was in between is not known"):
        RedisSource(config(server)).open({"s": "1-0"})
    client.xtrim("s", maxlen=0, approximate=False)
    with opened(config(server), {"s": "3-0"}) as source:
        assert source.poll(1, 0.0) == []


@pytest.mark.parametrize("cursor", ["x", "5", "5-0:", "-1-0", "5-0:1:2", "5-0\n", "12:340", "٣-٣"])
def test_a_cursor_of_something_else_is_refused(server: redis_server.Server, cursor: str) -> None:
    with pytest.raises(SourceError, match="not a cursor"):
        RedisSource(config(server)).open({"s": cursor})


def test_every_stream_gets_its_share(server: redis_server.Server, client: Redis) -> None:
    for stream in ("a", "b", "c"):
        add(client, [f"{stream}{number}" for number in range(10)], stream=stream)
    with opened(config(server, "a", "b", "c", "not-there-yet")) as source:
        batches = source.poll(8, 0.0)
        assert {batch.partition: len(batch.payloads) for batch in batches} == {"a": 2, "b": 2, "c": 2}
        one_by_one = [source.poll(1, 0.0) for _ in range(24)]
        assert all(sum(len(batch.payloads) for batch in each) == 1 for each in one_by_one)
        assert source.poll(1, 0.0) == []
        add(client, ["late"], stream="not-there-yet")
        assert names(read(source)) == ["late"]


def test_a_poll_waits_for_the_next_entry_and_no_longer(server: redis_server.Server, client: Redis) -> None:
    with opened(config(server, "a", "b")) as source:
        began = time.monotonic()
        assert source.poll(10, 0.15) == []
        assert 0.1 < time.monotonic() - began < 15
        later = threading.Timer(0.2, add, (client, ["x"]), {"stream": "b"})
        later.start()
        (batch,) = source.poll(10, 20.0)
        later.join()
        assert time.monotonic() - began < 18, "twenty seconds were allowed"
        assert batch.partition == "b"


def test_the_time_of_arrival_is_in_the_id(server: redis_server.Server, client: Redis) -> None:
    add(client, ["x"])
    with opened(config(server)) as source:
        (batch,) = source.poll(10, 0.0)
    assert abs(batch.arrived_at - time.time()) < 60
    client.delete("s")
    numbered(client, 5)
    with opened(config(server)) as source:
        (batch,) = source.poll(10, 0.0)
    assert math.isnan(batch.arrived_at)


def test_an_entry_without_the_field_becomes_a_dead_letter(server: redis_server.Server, client: Redis) -> None:
    numbered(client, 1)
    client.xadd("s", {"other": b"x"}, id="2-0")
    client.xadd("s", {"record": b"\xff\x00{"}, id="3-0")
    numbered(client, 4)
    with opened(config(server)) as source:
        (batch,) = source.poll(10, 0.0)
    decoded = decode(batch, SCHEMA)
    assert decoded.records.ids.to_pylist() == ["1", "4"]
    assert [letter.position for letter in decoded.rejected] == ["2-0:2", "3-0:3"]


def test_large_entries_are_read_few_at_a_time(
    server: redis_server.Server, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.sources.redis.source.MAX_POLL_BYTES", 3000)
    for number in range(1, 30):
        client.xadd("s", {"record": b"x" * 1000}, id=f"{number}-0")
    with opened(config(server)) as source:
        sizes = [len(source.poll(10, 0.0)[0].payloads) for _ in range(3)]
    assert sizes == [10, 3, 3]


@pytest.mark.parametrize(
    "trim", [lambda r: r.xtrim("s", maxlen=2, approximate=False), lambda r: r.xdel("s", "3-0")]
)
def test_what_is_gone_after_the_cursor_is_noticed_when_opening(
    server: redis_server.Server, client: Redis, trim: Callable[[Redis], object]
) -> None:
    numbered(client, *range(1, 6))
    with opened(config(server)) as source:
        cursor = source.poll(2, 0.0)[0].positions[-1]
    trim(client)
    with pytest.raises(DataLostError, match=r"Stream 's' .* up to 2-0 .*(begins at 4-0|3-0 was deleted)"):
        RedisSource(config(server)).open({"s": cursor})


@pytest.mark.parametrize(
    "trim", [lambda r: r.xtrim("s", maxlen=2, approximate=False), lambda r: r.xdel("s", "3-0")]
)
def test_what_is_gone_after_the_last_read_is_noticed_while_reading(
    server: redis_server.Server, client: Redis, trim: Callable[[Redis], object]
) -> None:
    numbered(client, *range(1, 6))
    with opened(config(server)) as source:
        source.poll(2, 0.0)
        trim(client)
        for _ in range(2):
            with pytest.raises(DataLostError, match="up to 2-0"):
                source.poll(1, 0.0)


def test_entries_that_came_and_went_between_two_polls_are_noticed(
    server: redis_server.Server, client: Redis
) -> None:
    numbered(client, 1, 2)
    with opened(config(server)) as source:
        cursor = read(source)[-1][0]
        client.xadd("s", {"record": b""}, id="3-0", maxlen=0, approximate=False)
        with pytest.raises(DataLostError, match="it is empty, and 1 entries"):
            source.poll(1, 0.0)
        numbered(client, 4)
        with pytest.raises(DataLostError, match="begins at 4-0, and 1 entries"):
            source.poll(1, 0.0)
    with pytest.raises(DataLostError, match="begins at 4-0, and 1 entries"):
        RedisSource(config(server)).open({"s": cursor})


def test_trimming_what_was_read_is_no_loss(server: redis_server.Server, client: Redis) -> None:
    numbered(client, *range(1, 6))
    with opened(config(server)) as source:
        cursor = source.poll(3, 0.0)[0].positions[-1]
        client.xtrim("s", minid="4-0", approximate=False)
        assert names(read(source)) == ["4", "5"]
        client.xtrim("s", maxlen=0, approximate=False)
        numbered(client, 6)
        assert names(read(source)) == ["6"]
        client.xdel("s", "6-0")
        numbered(client, 7, 8)
        assert names(read(source)) == ["7", "8"]
        assert source.poll(1, 0.0) == []
    with pytest.raises(DataLostError):
        RedisSource(config(server)).open({"s": cursor})


def test_deleting_entries_that_were_read_is_no_loss(server: redis_server.Server, client: Redis) -> None:
    numbered(client, *range(1, 7))
    with opened(config(server)) as source:
        cursor = source.poll(4, 0.0)[0].positions[-1]
    client.xdel("s", "2-0", "4-0")
    with opened(config(server), {"s": cursor}) as source:
        assert names(read(source)) == ["5", "6"]
    client.xdel("s", "1-0", "3-0")
    with opened(config(server), {"s": cursor}) as source:
        assert names(read(source)) == ["5", "6"]


@pytest.mark.parametrize("what", ["deleted", "created again", "older state"])
def test_a_stream_that_is_not_the_one_that_was_read_is_noticed(
    server: redis_server.Server, client: Redis, what: str
) -> None:
    numbered(client, *range(1, 6))
    with opened(config(server)) as source:
        cursor = read(source)[-1][0]
    client.delete("s")
    if what == "created again":
        numbered(client, 6, 7)
    elif what == "older state":
        numbered(client, 1, 2)
    message = {"deleted": "is gone", "created again": "created again", "older state": "newest id is 2-0"}[
        what
    ]
    with pytest.raises(DataLostError, match=message):
        RedisSource(config(server)).open({"s": cursor})


def test_a_server_that_lost_its_newest_data_and_went_on_is_noticed(
    server: redis_server.Server, client: Redis
) -> None:
    numbered(client, 1, 2)
    before = client.dump("s")
    numbered(client, 3)
    with opened(config(server)) as source:
        cursor = read(source)[-1][0]
    client.restore("s", 0, before, replace=True)  # type: ignore[arg-type]
    numbered(client, 4)
    with pytest.raises(DataLostError, match="3-0 itself was never deleted"):
        RedisSource(config(server)).open({"s": cursor})


def test_a_stream_that_lost_entries_before_the_beginning_is_refused_unless_asked(
    server: redis_server.Server, client: Redis
) -> None:
    numbered(client, *range(1, 8))
    client.xtrim("s", maxlen=5, approximate=False)
    client.xdel("s", "5-0")
    with pytest.raises(DataLostError, match="start: oldest"):
        RedisSource(config(server)).open({})
    with opened(config(server, start="oldest")) as source:
        found = read(source, size=1)
    assert names(found) == ["3", "4", "6", "7"]
    # The hole at 5-0 is forgiven at every place, and new ones are not.
    for index, (position, _) in enumerate(found):
        with opened(config(server, start="oldest"), {"s": position}) as source:
            assert read(source) == found[index + 1 :]
    client.xdel("s", "6-0")
    with pytest.raises(DataLostError, match="6-0 was deleted"):
        RedisSource(config(server, start="oldest")).open({"s": found[0][0]})


@pytest.mark.parametrize("start", ["beginning", "oldest"])
@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("loss", ["trimmed", "deleted", "gone"])
def test_what_is_lost_before_the_first_commit_is_noticed(
    server: redis_server.Server, client: Redis, start: str, running: bool, loss: str
) -> None:
    numbered(client, *range(1, 8))
    if start == "oldest":
        client.xtrim("s", maxlen=6, approximate=False)
    with opened(config(server, start=start)) as source:
        if not running:
            assert len(read(source)) >= 6
        committed = source.arrived({})
        assert list(committed) == ["s"]
        assert source.arrived(committed) == {}
        if loss == "trimmed":
            client.xtrim("s", maxlen=3, approximate=False)
        elif loss == "deleted":
            client.xdel("s", "4-0")
        else:
            client.delete("s")
        other = RedisSource(config(server, start=start))
        look = partial(source.poll, 5, 0.0) if running else partial(other.open, committed)
        with pytest.raises(DataLostError, match="no longer holds all that came after"):
            look()


def test_a_stream_that_is_still_whole_is_read_from_where_it_began(
    server: redis_server.Server, client: Redis
) -> None:
    numbered(client, *range(1, 8))
    client.xtrim("s", maxlen=6, approximate=False)
    settings = config(server, start="oldest")
    with opened(settings) as source:
        whole, committed = read(source), dict(source.arrived({}))
    with opened(settings, committed) as source:
        (batch,) = source.poll(2, 0.0)
        assert batch.start == committed["s"]
        assert [position for position, _ in whole[:2]] == list(batch.positions)
        assert read(source) == whole[2:]


def test_only_what_is_committed_is_trimmed_and_only_when_asked(
    server: redis_server.Server, client: Redis
) -> None:
    add(client, [str(number) for number in range(500)])
    with opened(config(server)) as source:
        assert isinstance(source, TrimmedSource)
        found = read(source)
        source.trim({"s": found[-1][0]})
    assert client.xlen("s") == 500
    with opened(config(server, "s", "other", trim=True)) as source:
        assert len(read(source)) == 500
        for _ in range(2):
            source.trim({"s": found[349][0]})
        left = client.xlen("s")
        assert 151 <= left < 350
        assert read(source) == []
        add(client, ["new"])
        assert names(read(source)) == ["new"]
    with opened(config(server, trim=True), {"s": found[349][0]}) as source:
        assert names(read(source)) == [*names(found[350:]), "new"]


def test_a_trim_that_redis_refuses_is_an_error(server: redis_server.Server, client: Redis) -> None:
    numbered(client, 1)
    with opened(config(server, trim=True)) as source:
        cursor = read(source)[-1][0]
        client.delete("s")
        client.set("s", "text")
        with pytest.raises(SourceError, match=r"cannot be trimmed .*WRONGTYPE"):
            source.trim({"s": cursor})


def test_a_key_that_is_no_stream_is_an_error(server: redis_server.Server, client: Redis) -> None:
    client.set("s", "text")
    with pytest.raises(SourceError, match=r"stream 's' .*WRONGTYPE"):
        RedisSource(config(server)).open({})


def test_polling_before_opening_is_an_error(server: redis_server.Server) -> None:
    with pytest.raises(SourceError, match="before it was opened"):
        RedisSource(config(server)).poll(1, 0.0)


def test_every_confirmed_record_is_read_once_though_the_server_is_killed() -> None:
    confirmed: list[str] = []
    done = threading.Event()

    def produce(url: str) -> None:
        number = 0
        with Redis.from_url(url) as client:
            while not done.is_set():
                try:
                    client.xadd("s", {"record": payload(str(number))})
                    confirmed.append(str(number))
                except RedisError:
                    time.sleep(0.01)
                number += 1

    with redis_server.server() as server:
        producer = threading.Thread(target=produce, args=(server.url,))
        producer.start()
        found: Read = []
        with opened(config(server)) as source:
            for turn in range(3):
                enough = len(confirmed) + 200
                while len(confirmed) < enough:
                    read(source, size=37, into=found)
                if turn < 2:
                    server.kill()
                    for _ in range(2):
                        with pytest.raises(SourceError, match="cannot be read"):
                            read(source, into=found)
                    server.start()
            done.set()
            producer.join()
            read(source, into=found)
            resumed = [position for position, _ in found[:: max(1, len(found) // 7)]]
        got = names(found)
        assert got == sorted(got, key=int)
        assert len(set(got)) == len(got)
        # A record whose answer was lost with the server may be there too; a confirmed one must be.
        assert set(confirmed) <= set(got)
        for position in resumed:
            with opened(config(server), {"s": position}) as source:
                index = [at for at, _ in found].index(position)
                assert read(source) == found[index + 1 :]


SECRET = "p@ss:word"


@pytest.fixture(scope="module")
def guarded() -> Iterator[redis_server.Server]:
    with redis_server.server(password=SECRET) as found:
        yield found


def test_the_url_can_come_from_the_environment(
    guarded: redis_server.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = RedisConfig(url_env="REDIS_OF_THE_TEST", streams=("s",))
    with pytest.raises(SourceError, match=r"REDIS_OF_THE_TEST must hold"):
        RedisSource(settings, allowed=ALLOWED).open({})
    monkeypatch.setenv("REDIS_OF_THE_TEST", f"https://:{SECRET}@host")
    with pytest.raises(SourceError, match=r"REDIS_OF_THE_TEST must hold") as caught:
        RedisSource(settings, allowed=ALLOWED).open({})
    assert SECRET not in str(caught.value)
    monkeypatch.setenv("REDIS_OF_THE_TEST", guarded.url.replace(SECRET, "p%40ss%3Aword"))
    with opened(settings) as source:
        assert source.poll(1, 0.0) == []


@pytest.mark.parametrize(
    "url",
    [
        "redis://:{}@127.0.0.1:{port}/0",
        "redis://nobody:{}@127.0.0.1:{port}/0",
        "redis://:{}@127.0.0.1:1/0",
        "redis://:{}@127.0.0.1:{port}/zero",
        "rediss://:{}@127.0.0.1:{port}/0",
    ],
)
def test_no_error_and_no_text_of_a_source_shows_the_password(
    guarded: redis_server.Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "streams.sources.redis.source._SECONDS_ON_THE_SOCKET", 0.5
    )  # where TLS meets a server without
    secret = "hidden-9f3a"
    monkeypatch.setenv("REDIS_OF_THE_TEST", url.format(secret, port=guarded.port))
    settings = RedisConfig(url_env="REDIS_OF_THE_TEST", streams=("s",))
    source = RedisSource(settings, allowed=ALLOWED)
    with pytest.raises(SourceError) as caught:
        source.open({})
    source.close()
    whole = [repr(settings), str(settings), repr(source), *_texts_of(caught.value)]
    assert not any(secret in text for text in whole)


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "redis://:hidden-9f3a/b@host:6379"},
        {"url": "redis://:hidden-9f3a@host:6379/0"},
        {"url": "http://:hidden-9f3a@host"},
        {"url": "redis://host?password=hidden-9f3a"},
        {"url": "redis://host?decode_responses=yes"},
        {"url": "redis://host?ssl_keyfile=/tmp/key"},
        {"url": "rediss://host?ssl_nonsense=1"},
        {"url": "redis://:hidden-9f3a@host", "streams": []},
        {"url": "redis://:hidden-9f3a@host", "streams": ["s", "s"]},
        {"url": "redis://:hidden-9f3a@host", "url_env": "NAME"},
        {"url": "redis://:hidden-9f3a@host", "wire": "arrow"},
        {"url": "redis://:hidden-9f3a@host", "group": "g"},
        {"url_env": "NOT A NAME"},
        {"url": "redis://host", "streams": ["a\0b"]},
        {},
    ],
)
def test_wrong_configs_are_refused_without_showing_the_password(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        RedisConfig.model_validate({"streams": ["s"]} | wrong)
    assert "hidden-9f3a" not in str(caught.value)


def _texts_of(error: BaseException | None) -> list[str]:
    found = []
    while error is not None:
        found += [str(error), repr(error)]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found
