"""A Kafka topic as a source, over TCP against librdkafka's own mock cluster: see `kafka_mock`."""

import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from pydantic import ValidationError

from streams.allowed import LOOPBACK, Allowed, Peer
from streams.base import DataLostError, RawBatch, SourceError, SourceStoppedError
from streams.sources.kafka.config import KafkaConfig
from streams.sources.kafka.source import KafkaSource
from streams.wire.decode import decode, encode_batch
from tests.support import kafka_mock
from tests.support.stream_parts import SCHEMA, payload, records
from tests.support.wire_parts import ipc

Read = list[tuple[str, str, str]]

ALLOWED = Allowed(secrets={"KAFKA_OF_THE_TEST": LOOPBACK})
REAL = os.environ.get("HOLDFAST_TEST_KAFKA")
"""Brokers of a real Kafka, which makes topics when they are first written to."""

AUTHORIZATION_FAILED, NOT_LEADER, REQUEST_TIMED_OUT, UNKNOWN_SERVER_ERROR = 29, 6, 7, -1


@pytest.fixture(scope="module")
def cluster() -> Iterator[kafka_mock.Cluster]:
    with kafka_mock.cluster() as found:
        yield found


@pytest.fixture
def topic() -> str:
    return f"t-{uuid.uuid4().hex[:12]}"


def config(cluster: kafka_mock.Cluster, topic: str, **changes: object) -> KafkaConfig:
    fields = {"bootstrap_servers": cluster.bootstrap_servers, "topic": topic} | changes
    return KafkaConfig.model_validate(fields)


@contextmanager
def opened(
    config: KafkaConfig, cursors: Mapping[str, str] | None = None, **knobs: float
) -> Iterator[KafkaSource]:
    source = KafkaSource(config, group="test", allowed=ALLOWED, **knobs)
    try:
        source.open(cursors or {})
        yield source
    finally:
        source.close()


def taken(batches: object) -> Read:
    """(partition, position, id)."""
    found: Read = []
    assert isinstance(batches, list)
    for batch in batches:
        assert isinstance(batch, RawBatch)
        decoded = decode(batch, SCHEMA)
        assert not decoded.rejected
        ids = decoded.records.ids.to_pylist()
        found += [(batch.partition, *both) for both in zip(decoded.positions, ids, strict=True)]
    return found


def read(source: KafkaSource, *, size: int = 100, seconds: float = 0.0) -> Read:
    found: Read = []
    while batches := source.poll(size, seconds):
        found += taken(batches)
    return found


def read_until(source: KafkaSource, count: int, *, into: Read, size: int = 100) -> None:
    deadline = time.monotonic() + 30
    while len(into) < count:
        assert time.monotonic() < deadline, f"{len(into)} of {count} came"
        into += taken(source.poll(size, 0.2))


def names(found: Read) -> list[str]:
    return [name for _, _, name in found]


def payloads(*names: object) -> list[bytes]:
    return [payload(str(name)) for name in names]


def test_a_source_resumes_at_every_cursor(cluster: kafka_mock.Cluster, topic: str) -> None:
    cluster.create(topic, 2)
    for partition in (0, 1):
        cluster.produce(topic, payloads(*(f"{partition}-{n}" for n in range(6))), partition=partition)
    with opened(config(cluster, topic)) as source:
        assert source.partitions() == ["0", "1"]
        whole = read(source, size=4)
    for name in ("0", "1"):
        mine = [entry for entry in whole if entry[0] == name]
        assert [entry[1:] for entry in mine] == [(str(n + 1), f"{name}-{n}") for n in range(6)]
    for index in range(len(whole)):
        cursors = {partition: position for partition, position, _ in whole[: index + 1]}
        with opened(config(cluster, topic), cursors) as source:
            assert sorted(read(source)) == sorted(whole[index + 1 :])


def test_opening_again_reads_from_the_other_cursors(cluster: kafka_mock.Cluster, topic: str) -> None:
    cluster.create(topic)
    cluster.produce(topic, payloads(*range(50)))
    with opened(config(cluster, topic)) as source:
        assert names(read(source, size=7)) == [str(n) for n in range(50)]
        for begin in (40, 3):
            source.open({"0": str(begin)})
            assert names(read(source)) == [str(n) for n in range(begin, 50)]


def test_a_poll_waits_for_the_next_message_and_no_longer(cluster: kafka_mock.Cluster, topic: str) -> None:
    cluster.create(topic)
    with opened(config(cluster, topic)) as source:
        began = time.monotonic()
        assert source.poll(10, 0.15) == []
        assert 0.1 < time.monotonic() - began < 15
        cluster.produce(topic, payloads("x"))
        (batch,) = source.poll(10, 20.0)
        assert time.monotonic() - began < 18, "twenty seconds were allowed"
        assert abs(batch.arrived_at - time.time()) < 60


def test_nothing_is_committed_to_the_broker(cluster: kafka_mock.Cluster, topic: str) -> None:
    cluster.create(topic)
    cluster.produce(topic, payloads(1, 2, 3))
    with opened(config(cluster, topic)) as source:
        read(source)
    other = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "test"})
    (committed,) = other.committed([TopicPartition(topic, 0)], timeout=10)
    other.close()
    assert committed.offset < 0


def test_poison_and_tombstones_become_dead_letters(cluster: kafka_mock.Cluster, topic: str) -> None:
    cluster.create(topic)
    cluster.produce(topic, [payload("a"), None, b"\xff\x00{", b"", payload("b")])
    found = []
    with opened(config(cluster, topic)) as source:
        while batches := source.poll(10, 0.0):
            found += [decode(batch, SCHEMA) for batch in batches]
    assert [name for each in found for name in each.records.ids.to_pylist()] == ["a", "b"]
    assert [letter.position for each in found for letter in each.rejected] == ["2", "3", "4"]


def arrow(*names: str) -> bytes:
    return encode_batch(records(names), SCHEMA)


def test_a_message_of_many_records_is_read_in_steps(cluster: kafka_mock.Cluster, topic: str) -> None:
    cluster.create(topic, 2)
    rows = [[f"{m}-{n}" for n in range(size)] for m, size in enumerate((3, 1, 5))]
    cluster.produce(topic, [arrow(*each) for each in rows])
    cluster.produce(topic, [arrow("other")], partition=1)
    settings = config(cluster, topic, wire="arrow")
    with opened(settings) as source:
        whole = read(source, size=2)
    first = [entry for entry in whole if entry[0] == "0"]
    assert [position for _, position, _ in first] == ["0:1", "0:2", "1", "2", "2:1", "2:2", "2:3", "2:4", "3"]
    assert names(first) == [name for each in rows for name in each]
    for index in range(len(whole)):
        cursors = {partition: position for partition, position, _ in whole[: index + 1]}
        for size in (1, 100):
            with opened(settings, cursors) as source:
                assert sorted(read(source, size=size)) == sorted(whole[index + 1 :])


@pytest.mark.parametrize("file", [False, True], ids=["stream", "file"])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_every_record_of_an_arrow_message_is_read_in_whatever_form_it_is_written(
    cluster: kafka_mock.Cluster, topic: str, file: bool, compression: str | None
) -> None:
    count = 20_000
    whole = encode_batch(records([str(index) for index in range(count)]), SCHEMA)
    written = ipc(pa.ipc.open_stream(whole).read_all(), file=file, compression=compression)
    cluster.create(topic)
    cluster.produce(topic, [written, arrow("after")])
    found: list[str] = []
    with opened(config(cluster, topic, wire="arrow")) as source:
        while batches := source.poll(7_000, 0.0):
            for batch in batches:
                decoded = decode(batch, SCHEMA)
                assert not decoded.rejected
                found += decoded.records.ids.to_pylist()
    assert found == [*(str(index) for index in range(count)), "after"]


def test_a_message_of_many_records_that_cannot_be_read_is_one_dead_letter(
    cluster: kafka_mock.Cluster, topic: str
) -> None:
    cluster.create(topic)
    empty = encode_batch(records(["x"]).take(slice(0)), SCHEMA)
    cluster.produce(topic, [b"no arrow", empty, None, arrow("a", "b")[:-40], arrow("c", "d")])
    found, cursors = [], [""]
    with opened(config(cluster, topic, wire="arrow")) as source:
        while batches := source.poll(10, 0.0):
            for batch in batches:
                assert batch.start == cursors[-1]
                cursors.append(batch.positions[-1])
                found.append(decode(batch, SCHEMA))
    assert [name for each in found for name in each.records.ids.to_pylist()] == ["c", "d"]
    assert [letter.position for each in found for letter in each.rejected] == ["1", "3", "4"]


@pytest.mark.parametrize("start", ["beginning", "oldest"])
def test_what_is_deleted_before_the_first_commit_is_noticed(
    cluster: kafka_mock.Cluster, topic: str, start: str
) -> None:
    cluster.create(topic, 2)
    cluster.produce(topic, payloads(*range(10)))
    if start == "oldest":
        cluster.delete_records(topic, 0, 3)
    settings = config(cluster, topic, start=start)
    with opened(settings) as source:
        found: Read = []
        read_until(source, 7 if start == "oldest" else 10, into=found)
        committed = source.arrived({})
    assert committed == {"0": "3" if start == "oldest" else "0"}, "the other partition holds nothing yet"
    with opened(settings, committed) as source:
        again: Read = []
        read_until(source, len(found), into=again)
        cluster.produce(topic, payloads("late"), partition=1)
        read_until(source, len(found) + 1, into=again)
        assert source.arrived(committed) == {"1": "0"}, "it held nothing when it was opened"
    assert again[:-1] == found
    cluster.delete_records(topic, 0, 6)
    with pytest.raises(DataLostError, match="deleted unread"), opened(settings, committed):
        pass


def test_deleted_messages_are_noticed_when_opening(cluster: kafka_mock.Cluster, topic: str) -> None:
    cluster.create(topic)
    cluster.produce(topic, payloads(*range(10)))
    cluster.delete_records(topic, 0, 6)
    for cursors in ({}, {"0": "0"}, {"0": "5"}):
        with pytest.raises(DataLostError, match=r"partition 0 .* still holds has offset 6"):
            KafkaSource(config(cluster, topic), group="test").open(cursors)
    with opened(config(cluster, topic), {"0": "6"}) as source:
        assert names(read(source)) == ["6", "7", "8", "9"]
    with opened(config(cluster, topic, start="oldest")) as source:
        batches = source.poll(10, 0.0)
        assert batches[0].start == ""
        assert names(taken(batches)) == ["6", "7", "8", "9"]


def test_messages_trimmed_before_they_were_read_are_noticed_while_reading(
    cluster: kafka_mock.Cluster, topic: str
) -> None:
    """The mock keeps 5 MiB a partition, and drops the oldest without a word, as retention does."""
    cluster.create(topic)
    size = 100_000
    cluster.produce(topic, [b"x" * size] * 20)
    # So little is fetched ahead that the trim overtakes it.
    slow = {
        "queued.max.messages.kbytes": "200",
        "queued.min.messages": "1",
        "fetch.message.max.bytes": "100000",
    }
    with opened(config(cluster, topic, properties=slow)) as source:
        assert source.poll(1, 5.0)[0].positions[-1] == "1"
        cluster.produce(topic, [b"x" * size] * 100)
        positions = ["1"]
        with pytest.raises(DataLostError, match=r"partition 0 .*deleted unread") as caught:
            drain(source, positions)
        assert positions == [str(n + 1) for n in range(len(positions))]
        last = positions[-1]
        assert f"has offset {last}," in str(caught.value)
        with pytest.raises(DataLostError, match=f"has offset {last},"):
            source.poll(1, 0.0)
    with pytest.raises(DataLostError, match=f"has offset {last},"):
        KafkaSource(config(cluster, topic), group="test").open({"0": last})


def drain(source: KafkaSource, positions: list[str]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for batch in source.poll(1, 0.1):
            positions += batch.positions


@pytest.mark.parametrize("wire", ["json", "arrow"])
def test_a_topic_made_anew_is_noticed(cluster: kafka_mock.Cluster, topic: str, wire: str) -> None:
    cluster.create(topic, 2)
    cluster.produce(topic, payloads("new"))
    for cursors in ({"0": "2"}, {"0": "1:1"}):
        with pytest.raises(DataLostError, match=r"partition 0 .*ends at 1"):
            KafkaSource(config(cluster, topic, wire=wire), group="test").open(cursors)
    with pytest.raises(DataLostError, match="no partition 2 any more"):
        KafkaSource(config(cluster, topic), group="test").open({"2": "7"})


@pytest.mark.parametrize("cursor", ["0:3", "0:9"])
def test_a_message_that_is_shorter_than_what_was_read_of_it_is_noticed(
    cluster: kafka_mock.Cluster, topic: str, cursor: str
) -> None:
    cluster.create(topic)
    cluster.produce(topic, [arrow("a", "b", "c"), arrow("d")])
    with opened(config(cluster, topic, wire="arrow"), {"0": cursor}) as source:
        for _ in range(2):
            with pytest.raises(DataLostError, match="not the one that was read up"):
                source.poll(10, 1.0)


@pytest.mark.parametrize("cursor", ["x", "-1", "1:", "1:2:3", "5-0", "٣"])
def test_a_cursor_of_something_else_is_refused(cluster: kafka_mock.Cluster, cursor: str) -> None:
    with pytest.raises(SourceError, match="not a cursor"):
        KafkaSource(config(cluster, "t"), group="test").open({"0": cursor})


def test_a_topic_that_is_not_there_is_an_error_and_is_not_made(
    cluster: kafka_mock.Cluster, topic: str
) -> None:
    source = KafkaSource(config(cluster, topic), group="test")
    for _ in range(2):
        with pytest.raises(SourceError, match="UNKNOWN_TOPIC"):
            source.open({})
    with pytest.raises(SourceError, match="UNKNOWN_TOPIC"):
        source.partitions()
    source.close()
    with pytest.raises(SourceError, match="before it was opened"):
        source.poll(1, 0.0)


def test_partitions_that_a_topic_is_given_later_are_read(cluster: kafka_mock.Cluster, topic: str) -> None:
    """The mock cannot add partitions: an empty topic is replaced by one with more, which looks the same."""
    cluster.create(topic, 1)
    with opened(config(cluster, topic), look_seconds=0.2) as source:
        assert source.poll(10, 0.0) == []
        cluster.remove(topic)
        cluster.create(topic, 3)
        for partition in range(3):
            cluster.produce(topic, payloads(f"p{partition}"), partition=partition)
        found: Read = []
        read_until(source, 3, into=found)
        assert sorted(found) == [(str(n), "1", f"p{n}") for n in range(3)]


def test_a_broker_that_goes_and_comes_back_costs_nothing(cluster: kafka_mock.Cluster, topic: str) -> None:
    cluster.create(topic, 2)
    found: Read = []
    with opened(config(cluster, topic)) as source:
        for turn in range(2):
            for partition in (0, 1):
                values = payloads(*(f"{partition}-{turn}-{n:02d}" for n in range(50)))
                cluster.produce(topic, values, partition=partition)
            read_until(source, 100 * turn + 30, into=found, size=17)
            cluster.down()
            for _ in range(3):
                found += taken(source.poll(17, 0.05))
            cluster.up()
            read_until(source, 100 * (turn + 1), into=found, size=17)
    for which in ("0", "1"):
        mine = [entry[1:] for entry in found if entry[0] == which]
        assert [position for position, _ in mine] == [str(n + 1) for n in range(100)]
        assert [name for _, name in mine] == sorted(name for _, name in mine)


def test_a_broker_that_stays_away_is_an_error_until_it_is_back(
    cluster: kafka_mock.Cluster, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.create(topic)
    cluster.produce(topic, payloads("a"))
    found: Read = []
    with opened(config(cluster, topic), patience_seconds=0.3) as source:
        read_until(source, 1, into=found)
        monkeypatch.setattr("streams.sources.kafka.topic.ANSWER_SECONDS", 0.5)
        cluster.down()
        try:
            with pytest.raises(SourceError, match=f"{cluster.bootstrap_servers} cannot be asked"):
                drain(source, [])
            began = time.monotonic()
            source.close()
            assert time.monotonic() - began < 20
        finally:
            cluster.up()
        monkeypatch.undo()
        source.open({"0": "1"})
        cluster.produce(topic, payloads("b"))
        read_until(source, 2, into=found)
    assert names(found) == ["a", "b"]


def test_failing_and_slow_reads_lose_nothing(cluster: kafka_mock.Cluster, topic: str) -> None:
    cluster.create(topic, 2)
    for partition in (0, 1):
        cluster.produce(topic, payloads(*(f"{partition}-{n:03d}" for n in range(300))), partition=partition)
    cluster.round_trip(20)
    cluster.fail(kafka_mock.FETCH, NOT_LEADER, REQUEST_TIMED_OUT, UNKNOWN_SERVER_ERROR)
    found: Read = []
    try:
        with opened(config(cluster, topic)) as source:
            read_until(source, 600, into=found, size=50)
    finally:
        cluster.round_trip(0)
    for which in ("0", "1"):
        assert [int(position) for name, position, _ in found if name == which] == list(range(1, 301))


def test_an_error_of_one_partition_is_told_and_the_next_poll_goes_on(
    cluster: kafka_mock.Cluster, topic: str
) -> None:
    cluster.create(topic, 2)
    for partition in (0, 1):
        cluster.produce(topic, payloads(*(f"{partition}-{n}" for n in range(5))), partition=partition)
    cluster.fail_partition(topic, 0, AUTHORIZATION_FAILED)
    found: Read = []
    message = []
    with opened(config(cluster, topic)) as source:
        deadline = time.monotonic() + 20
        while len(found) < 10 and time.monotonic() < deadline:
            try:
                found += taken(source.poll(3, 0.2))
            except SourceError as error:
                message.append(str(error))
    # The mock repeats the error once when it is asked again.
    assert 1 <= len(message) <= 2
    assert all("does not give partition 0" in text for text in message)
    assert sorted(found) == [(str(p), str(n + 1), f"{p}-{n}") for p in (0, 1) for n in range(5)]


def test_a_broker_that_another_one_names_and_nobody_listed_stops_the_source(
    cluster: kafka_mock.Cluster, topic: str
) -> None:
    cluster.create(topic)
    port = int(cluster.bootstrap_servers.rpartition(":")[2])
    settings = config(cluster, topic, bootstrap_servers=f"localhost:{port}")
    source = KafkaSource(settings, group="test", allowed=Allowed(hosts=(Peer("localhost", port),)))
    with pytest.raises(SourceStoppedError, match=r"names a broker .* HOLDFAST_SOURCE_HOSTS"):
        source.open({})
    source.close()


def test_secrets_come_from_the_environment_and_are_never_shown(
    cluster: kafka_mock.Cluster, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hidden-9f3a"
    settings = config(cluster, topic, properties_env="KAFKA_OF_THE_TEST")
    cluster.create(topic)
    bad = [
        None,
        secret,
        f'["{secret}"]',
        json.dumps({"sasl.password": 3}),
        json.dumps({"x" + secret: "y"})[:-1],
    ]
    for text in bad:
        if text is not None:
            monkeypatch.setenv("KAFKA_OF_THE_TEST", text)
        with pytest.raises(SourceError, match="KAFKA_OF_THE_TEST must hold") as caught:
            KafkaSource(settings, group="test", allowed=ALLOWED).open({})
        assert secret not in str(caught.value)
    for given in (
        {"security.protocol": secret},
        {"enable.auto.commit": "true"},
        {"plugin.library.paths": secret},
    ):
        monkeypatch.setenv("KAFKA_OF_THE_TEST", json.dumps(given))
        with pytest.raises(SourceError, match=r"(do not fit|may not be set)") as caught:
            KafkaSource(settings, group="test", allowed=ALLOWED).open({})
        assert secret not in f"{caught.value} {caught.value.__cause__}"
    monkeypatch.setenv("KAFKA_OF_THE_TEST", json.dumps({"sasl.password": secret, "fetch.min.bytes": "1"}))
    with opened(settings) as source:
        assert source.poll(1, 0.0) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"properties": {"sasl.password": "x"}},
        {"properties": {"enable.auto.commit": "true"}},
        {"properties": {"auto.offset.reset": "latest"}},
        {"properties": {"sasl.kerberos.kinit.cmd": "touch /tmp/x"}},
        {"properties": {"plugin.library.paths": "/tmp/x.so"}},
        {"properties": {"ssl.engine.location": "/tmp/x.so"}},
        {"properties": {"group.instance.id": "x"}},
        {"topic": "^all.*"},
        {"topic": ""},
        {"wire": "csv"},
        {"bootstrap_servers": ""},
        {"properties_env": "NOT A NAME"},
        {"group": "g"},
    ],
)
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        KafkaConfig.model_validate({"bootstrap_servers": "host:9092", "topic": "t"} | wrong)


@pytest.mark.skipif(
    REAL is None,
    reason="HOLDFAST_TEST_KAFKA names no real Kafka; no package brings one, so this is left out in CI too",
)
def test_a_real_kafka_is_read_like_the_mock(topic: str) -> None:
    assert REAL is not None
    producer = Producer({"bootstrap.servers": REAL, "acks": "all"})
    for number in range(2000):
        producer.produce(topic, payload(str(number)))
    assert producer.flush(60) == 0
    settings = KafkaConfig(bootstrap_servers=REAL, topic=topic)
    with opened(settings) as source:
        whole: Read = []
        read_until(source, 2000, into=whole, size=300)
    assert len(set(names(whole))) == 2000
    for index in (0, 700, 1998):
        cursors = {partition: position for partition, position, _ in whole[: index + 1]}
        with opened(settings, cursors) as source:
            rest: Read = []
            read_until(source, 1999 - index, into=rest)
            assert sorted(rest) == sorted(whole[index + 1 :])
    last = {partition: str(int(position) + 10**6) for partition, position, _ in whole}
    with pytest.raises(DataLostError, match="ends at"):
        KafkaSource(settings, group="test").open(last)
