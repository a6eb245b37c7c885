"""Reads one Kafka topic through librdkafka: its partitions, its messages in order, and broker errors.

The caller assigns the offsets. Nothing is skipped or committed automatically, and an offset that the broker
no longer has is an error.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from streams.allowed import Allowed, Server
from streams.base import SourceError, SourceStoppedError
from streams.sources.kafka.config import ALLOWED, KafkaConfig, properties_from_environment

log = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
"""How long a broker may take to answer a question."""


DEFAULT_QUEUE_BYTES = 64 * 2**20
"""What is fetched ahead where nothing else is said: the library's own default."""


@dataclass(frozen=True)
class Fault:
    """An error of one partition, which came instead of its next message."""

    partition: int
    lost: bool
    """Whether the broker no longer has the offset that was asked for."""
    reason: str


class KafkaTopic:
    """A connection to one topic, made when it is first needed, and again after `disconnect`."""

    def __init__(self, config: KafkaConfig, *, group: str, patience_seconds: float, allowed: Allowed) -> None:
        """`group` is named to the broker, whose access rules may ask for it; it is never joined.

        `patience_seconds` is how long brokers may be away, since librdkafka connects again by itself.
        """
        self._config = config
        self._allowed = allowed
        self._group = group
        self._patience_seconds = patience_seconds
        self._consumer: Any = None
        self._trouble: tuple[float, str] | None = None
        self._failing: dict[int, float] = {}
        self._ends: dict[int, int] = {}

    def disconnect(self) -> None:
        """Close the connections and forget what was fetched and not taken."""
        consumer, self._consumer, self._trouble = self._consumer, None, None
        if consumer is not None:
            consumer.close()

    def partitions(self) -> list[int]:
        """Numbers of the partitions that exist now.

        Raises:
            SourceError: the broker cannot be asked, or does not give the topic.
            SourceStoppedError: it names other brokers, which the installation does not allow.
        """
        topic = self._config.topic
        answer = self._ask(self._connected().list_topics, topic)
        self._require_brokers(answer.brokers.values())
        found = answer.topics[topic]
        if found.error is not None:
            raise SourceError(f"Kafka does not give topic {topic!r}: {_plain(found.error)}.")
        return sorted(found.partitions)

    def bounds(self, partition: int) -> tuple[int, int]:
        """Offsets of the oldest message of a partition, and of the one that will come next into it.

        Raises:
            SourceError: the broker cannot be asked.
        """
        low, high = self._ask(self._connected().get_watermark_offsets, self._topic_partition(partition))
        self._ends[partition] = int(high)
        return int(low), int(high)

    def known_end(self, partition: int) -> int:
        """The offset after the newest message that the broker has reported so far; does not ask it."""
        _, high = self._connected().get_watermark_offsets(self._topic_partition(partition), cached=True)
        self._ends[partition] = max(int(high), self._ends.get(partition, 0))
        return self._ends[partition]

    def assign(self, offsets: Mapping[int, int]) -> None:
        """Read these partitions from these offsets on."""
        self._failing = {}
        assigned = [self._topic_partition(partition, offset) for partition, offset in offsets.items()]
        self._connected().assign(assigned)

    def take(self, count: int, wait_seconds: float) -> tuple[Sequence[Any], list[Fault]]:
        """The next messages that have been fetched, waiting for the first one at most so long.

        Returns:
            Messages, in order within each partition and none of a partition after its fault; and the faults.
        """
        consumer = self._connected()
        found = consumer.consume(count, 0)
        if not found and wait_seconds > 0:
            # A larger batch would be waited for until it is full.
            found = consumer.consume(1, wait_seconds)
            if found and count > 1:
                found += consumer.consume(count - 1, 0)
        faults: dict[int, Fault] = {}
        if any(message.error() is not None for message in found):
            found = self._without_faulty(found, faults)
        if found:
            self._trouble = None
            if self._failing:
                for partition in {message.partition() for message in found}:
                    self._failing.pop(partition, None)
        return found, list(faults.values())

    def _without_faulty(self, found: Sequence[Any], faults: dict[int, Fault]) -> list[Any]:
        """The messages without those that follow a fault of their partition; the faults go to `faults`."""
        good = []
        for message in found:
            partition, error = message.partition(), message.error()
            if error is None:
                if partition not in faults:
                    good.append(message)
            elif error.code() not in _transient() or self._fails_for_long(partition):
                faults.setdefault(partition, _fault(partition, error))
        return good

    def _fails_for_long(self, partition: int) -> bool:
        now = time.monotonic()
        return now - self._failing.setdefault(partition, now) >= self._patience_seconds

    def check_trouble(self) -> None:
        """Ask the broker for its partitions, once the connections have failed for too long.

        Raises:
            SourceError: it does not answer.
        """
        if self._trouble is None or time.monotonic() - self._trouble[0] < self._patience_seconds:
            return
        self.partitions()
        self._trouble = None

    @property
    def troubled(self) -> bool:
        """Whether connections have failed since the last message."""
        return self._trouble is not None

    def _require_brokers(self, brokers: Iterable[Any]) -> None:
        """Stop before messages are asked of a broker that another one has named and nobody has listed."""
        secret = self._config.properties_env
        for broker in brokers:
            server = Server.of(broker.host, broker.port)
            if server is None or not self._allowed.reaches(server, secret=secret):
                self.disconnect()
                raise SourceStoppedError(
                    "Kafka names a broker of its cluster that may not be reached from here: list all of "
                    f"them, in HOLDFAST_SOURCE_{'SECRETS' if secret else 'HOSTS'}."
                )

    def _connected(self) -> Any:
        if self._consumer is not None:
            return self._consumer
        from confluent_kafka import Consumer, KafkaException

        self._config.require_allowed(self._allowed)
        secret = properties_from_environment(self._config.properties_env)
        settings = {
            "group.id": self._group,
            "client.id": "holdfast",
            "queued.max.messages.kbytes": min(DEFAULT_QUEUE_BYTES, self._allowed.queue_bytes) // 1024,
            **self._config.properties,
            **secret,
            # As they were read, not as they were written: the library reads more spellings.
            "bootstrap.servers": ",".join(map(str, self._config.servers)),
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",  # never "earliest" or "latest": both skip
            "isolation.level": "read_committed",
            "allow.auto.create.topics": False,
            "check.crcs": True,
            "error_cb": self._on_error,
        }
        try:
            self._consumer = Consumer(settings, logger=log)
        except (KafkaException, ValueError, TypeError) as error:
            raise SourceError(_misfit(str(error))) from None
        return self._consumer

    def _ask(self, question: Any, about: Any) -> Any:
        from confluent_kafka import KafkaException

        try:
            found = question(about, timeout=ANSWER_SECONDS)
        except KafkaException as error:
            found, reason = None, _plain(error.args[0])
        else:
            reason = "no answer in time"
        if found is None:
            why = f" ({self._trouble[1]})" if self._trouble else ""
            raise SourceError(f"Kafka at {self._config.bootstrap_servers} cannot be asked: {reason}{why}.")
        return found

    def _on_error(self, error: Any) -> None:
        since = self._trouble[0] if self._trouble else time.monotonic()
        self._trouble = (since, _plain(error))

    def _topic_partition(self, partition: int, *offset: int) -> Any:
        from confluent_kafka import TopicPartition

        return TopicPartition(self._config.topic, partition, *offset)


def _plain(error: Any) -> str:
    """The library's name of an error. Its text may hold what a server said, and any server may be there."""
    return str(error.name())


def _misfit(text: str) -> str:
    """One sentence whether a file is missing or wrong; of the library's text only the settings' names."""
    named = sorted(name for name in ALLOWED if name in text)
    which = f" ({', '.join(named)})" if named else ""
    return f"The settings of librdkafka do not fit{which}: see the values, and the files that they name."


def _fault(partition: int, error: Any) -> Fault:
    from confluent_kafka import KafkaError

    lost = error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)
    return Fault(partition, lost, _plain(error))


@cache
def _transient() -> frozenset[int]:
    """Errors of a broker after which librdkafka reads the same offset again by itself."""
    from confluent_kafka import KafkaError

    return frozenset(
        {
            KafkaError.UNKNOWN,
            KafkaError.REQUEST_TIMED_OUT,
            KafkaError.NETWORK_EXCEPTION,
            KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
            KafkaError.LEADER_NOT_AVAILABLE,
            KafkaError.NOT_LEADER_FOR_PARTITION,
            KafkaError.REPLICA_NOT_AVAILABLE,
            KafkaError.KAFKA_STORAGE_ERROR,
            KafkaError.THROTTLING_QUOTA_EXCEEDED,
            KafkaError._TRANSPORT,
            KafkaError._TIMED_OUT,
            KafkaError._ALL_BROKERS_DOWN,
        }
    )
