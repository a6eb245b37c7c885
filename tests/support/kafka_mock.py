"""A Kafka cluster of the tests' own: librdkafka's mock, in a process of its own, reached over TCP.

No real broker can be installed where the tests run, so this is the one that the client library itself is
tested with: real sockets and Kafka's protocol, in memory, about 5 MiB a partition. Reached through ctypes,
since the Python client does not show it. The process takes one JSON list a line, [function, arguments...],
and answers each with a line.
"""

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import confluent_kafka
from confluent_kafka import Producer

from tests.support.repository import ROOT

FETCH = 1
"""Kafka's number of the request that reads messages."""

_POINTER = ctypes.c_void_p


@dataclass
class Cluster:
    """A running cluster of one broker."""

    bootstrap_servers: str
    process: subprocess.Popen[bytes]

    def create(self, topic: str, partitions: int = 1) -> None:
        self._call("create", topic, partitions)

    def remove(self, topic: str) -> None:
        self._call("remove", topic)

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        self._call("delete_records", topic, partition, before)

    def down(self) -> None:
        self._call("down")

    def up(self) -> None:
        self._call("up")

    def round_trip(self, milliseconds: int) -> None:
        self._call("round_trip", milliseconds)

    def fail(self, request: int, *codes: int) -> None:
        """The next requests of that kind are answered with these error codes, one after the other."""
        self._call("fail", request, list(codes))

    def fail_partition(self, topic: str, partition: int, code: int) -> None:
        """The next read of one partition is answered with this error code."""
        self._call("fail_partition", topic, partition, code)

    def produce(self, topic: str, values: Sequence[bytes | None], *, partition: int = 0) -> None:
        """Send, and wait until all is confirmed."""
        failures: list[Any] = []
        producer = Producer({"bootstrap.servers": self.bootstrap_servers, "linger.ms": 2, "acks": "all"})

        def confirmed(error: Any, _message: Any) -> None:
            if error is not None:
                failures.append(error)

        for value in values:
            producer.produce(topic, value, partition=partition, on_delivery=confirmed)
            producer.poll(0)
        assert producer.flush(30) == 0
        assert not failures

    def _call(self, *words: Any) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(words).encode() + b"\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert answer == "done", answer


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.kafka_mock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # librdkafka's log of a cluster that is made to fail
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        try:
            yield Cluster(json.loads(process.stdout.readline()), process)
        finally:
            process.kill()
            process.wait()


def _library() -> ctypes.CDLL:
    """librdkafka as the Python client ships it, with the types of what is called."""
    folder = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    (path,) = folder.glob("librdkafka*.so*")
    library = ctypes.CDLL(str(path))
    text, number = ctypes.c_char_p, ctypes.c_int32
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "conf_new": (_POINTER, []),
        "new": (_POINTER, [ctypes.c_int, _POINTER, text, ctypes.c_size_t]),
        "mock_cluster_new": (_POINTER, [_POINTER, ctypes.c_int]),
        "mock_cluster_bootstraps": (text, [_POINTER]),
        "mock_topic_create": (ctypes.c_int, [_POINTER, text, ctypes.c_int, ctypes.c_int]),
        "mock_topic_delete": (ctypes.c_int, [_POINTER, text]),
        "mock_partition_delete_records": (ctypes.c_int, [_POINTER, text, number, ctypes.c_int64]),
        "mock_broker_set_down": (ctypes.c_int, [_POINTER, number]),
        "mock_broker_set_up": (ctypes.c_int, [_POINTER, number]),
        "mock_broker_set_rtt": (ctypes.c_int, [_POINTER, number, ctypes.c_int]),
        # C takes any number of codes; one is declared.
        "mock_partition_push_request_errors": (
            ctypes.c_int,
            [_POINTER, text, number, ctypes.c_int16, ctypes.c_size_t, ctypes.c_int],
        ),
        "mock_push_request_errors_array": (None, [_POINTER, ctypes.c_int16, ctypes.c_size_t, _POINTER]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, f"rd_kafka_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def _serve() -> None:
    library = _library()
    reason = ctypes.create_string_buffer(512)
    client = library.rd_kafka_new(0, library.rd_kafka_conf_new(), reason, len(reason))
    mock = library.rd_kafka_mock_cluster_new(client, 1)

    def fail(request: int, codes: list[int]) -> int:
        array = (ctypes.c_int * len(codes))(*codes)
        library.rd_kafka_mock_push_request_errors_array(mock, request, len(codes), array)
        return 0

    actions: dict[str, Callable[..., int]] = {
        "create": lambda topic, count: library.rd_kafka_mock_topic_create(mock, topic.encode(), count, 1),
        "remove": lambda topic: library.rd_kafka_mock_topic_delete(mock, topic.encode()),
        "delete_records": lambda topic, partition, before: library.rd_kafka_mock_partition_delete_records(
            mock, topic.encode(), partition, before
        ),
        "down": lambda: library.rd_kafka_mock_broker_set_down(mock, 1),
        "up": lambda: library.rd_kafka_mock_broker_set_up(mock, 1),
        "round_trip": lambda milliseconds: library.rd_kafka_mock_broker_set_rtt(mock, 1, milliseconds),
        "fail": fail,
        "fail_partition": lambda topic, partition, code: library.rd_kafka_mock_partition_push_request_errors(
            mock, topic.encode(), partition, FETCH, 1, code
        ),
    }
    _answer(library.rd_kafka_mock_cluster_bootstraps(mock).decode())
    for line in sys.stdin:
        action, *words = json.loads(line)
        code = actions[action](*words)
        _answer("done" if not code else f"error {code}")


def _answer(what: str) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _serve()
