"""One crash run: one source, database and variant; a producer, and one ingest process after the other."""

import os
import random
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from service.pipelines import PipelineSpec, parse
from service.state.database import connect
from streams.state.manifest import Manifest
from tests.chaos.crashes.files import FilesStream
from tests.chaos.crashes.life import NEEDS_MORE, Place, Wanted, live
from tests.chaos.crashes.plan import TURNS, Counts, Plan
from tests.chaos.crashes.points import CRASHED, FORGETS, STATEMENT, Bomb
from tests.chaos.crashes.processes import Child, Pace, Production, fork, wait_until
from tests.chaos.crashes.records import RECORDS, WINDOW, complete, schema_of, truth
from tests.chaos.crashes.streams import PIPELINE, KafkaStream, PushedStream, RedisStream, Stream, make_topic
from tests.chaos.crashes.verdict import judge
from tests.support import kafka_mock, redis_server

AHEAD = 4 * RECORDS
"""Records that wait while processes crash. With many more, a life would read once and then cut for long."""
_PATIENCE = 3
"""Two at once live longer, so that they get into each other's way."""
_TURN_SECONDS = 45.0
_KILL_WITHIN_SECONDS = 0.3
_LAST_LIVES = 10


def run(plan: Plan, folder: Path, *, database: str, remote: str) -> Counts:
    """Crash, and crash again; then let one process end in peace, and judge what it left."""
    assert threading.active_count() == 1, "only a process of one thread can be forked safely"
    began = time.monotonic()
    experiences = folder / "experiences"
    experiences.mkdir(parents=True)
    with _stream(plan, folder, database) as (stream, break_server):
        place = Place(_spec(plan, stream), database, experiences, remote)
        # With a lag, labels come later than their features.
        pace = Pace()
        production = Production(stream, folder, pace, lag=1 if plan.variant == "late" else 0)
        crashing = _Run(plan, place, stream, production, pace, break_server)
        try:
            crashing.crash_all()
            chunks = crashing.end()
        finally:
            production.kill()
        counts = crashing.counts
        counts.verdict = judge(place, plan.variant, chunks, stream.partitions(chunks))
    counts.seconds = round(time.monotonic() - began, 1)
    shutil.rmtree(folder)
    return counts


class _Run:
    def __init__(
        self,
        plan: Plan,
        place: Place,
        stream: Stream,
        production: Production,
        pace: Pace,
        break_server: Callable[[], None] | None,
    ) -> None:
        self.counts = Counts()
        self._plan, self._place, self._production, self._pace = plan, place, production, pace
        self._promised = 0
        self._stream, self._break_server = stream, break_server
        self._chance = random.Random(f"{plan.name} {plan.seed}")
        self._bombs = list(plan.bombs)
        self._last_bombs: deque[tuple[str, int]] = deque(maxlen=2)

    def crash_all(self) -> None:
        turn = 0
        while self.counts.exits + self.counts.kills < self._plan.crashes:
            self._turn(TURNS[turn % len(TURNS)].split(), turn)
            turn += 1

    def end(self) -> int:
        """The last lives, which nothing ends early; the chunks that were sent of every lane."""
        for _ in range(_LAST_LIVES):
            self._production.finish()
            chunks = self._pace.chunks
            poison = sum(len(partition.poison) for partition in self._stream.partitions(chunks).values())
            wanted = Wanted(truth(self._plan.variant, chunks).records.total(), poison)
            child = self._start(Bomb, wanted)
            wait_until(child.ended, "end of the last life")
            self._note(child)
            if child.status == 0:
                return chunks
            if child.status != NEEDS_MORE:
                break
        raise AssertionError(f"{self._plan.name}: the last life ended with {child.status}")

    def _turn(self, ends: list[str], turn: int) -> None:
        began = time.monotonic()
        self._production.check()
        if turn == 0 or (self._stream.killable and turn % 3 == 1):
            self._restart_producer(first=turn == 0)
        patience, gone = _PATIENCE if len(ends) > 1 else 1, self._tidy() and len(ends) == 1
        children = [
            self._start(self._bomb(patience=patience, gone=gone) if end == "exit" else Bomb, None)
            for end in ends
        ]
        strikes = [
            (began + self._chance.uniform(0.0, _KILL_WITHIN_SECONDS), child)
            for end, child in zip(ends, children, strict=True)
            if end == "kill"
        ]
        breaks = began + self._chance.uniform(0.0, 0.1) if turn % 3 == 2 and self._break_server else None
        try:
            while not all([child.ended() for child in children]):
                now = time.monotonic()
                if now - began > _TURN_SECONDS:
                    raise self._overdue(children)
                for due, child in strikes:
                    if now >= due:
                        child.kill()
                if breaks is not None and now >= breaks:
                    self._break()
                    breaks = None
                self._let_send()
                time.sleep(0.002)
        finally:
            for child in children:
                child.kill()
                self._note(child)
                self._count(child)
        if breaks is not None:
            self._break()

    def _overdue(self, children: Sequence[Child]) -> AssertionError:
        for child in children:
            child.tell_where_it_is()
        counts = f"{self._promised} records were sent, {self._pace.taken} taken"
        return AssertionError(
            f"{self._plan.name}: within {_TURN_SECONDS:.0f} s a process did not end; the last bombs were for "
            f"{list(self._last_bombs)}; {counts}"
        )

    def _let_send(self) -> None:
        """Keep some records ahead of what is in experiences."""
        if self._promised - self._pace.taken < AHEAD:
            self._promised += complete(self._plan.variant, self._pace.chunks)
            self._pace.allow(1)

    def _restart_producer(self, *, first: bool) -> None:
        if not first:
            time.sleep(self._chance.uniform(0.0, 0.01))
            self._production.kill()
            self.counts.producer_kills += 1
        self._production.start()

    def _break(self) -> None:
        if self._break_server is not None:
            self._break_server()
            self.counts.server_kills += 1

    def _bomb(self, *, patience: int, gone: bool) -> Callable[..., Bomb]:
        """The next one; those that want a file to be gone wait until one is."""
        possible = [place for place, name in enumerate(self._bombs) if gone or name not in FORGETS]
        boundary = self._bombs.pop(possible[0]) if possible else STATEMENT
        most = self._plan.boundaries[boundary]
        # What a process reaches once in its life, it may never reach again.
        occurrence = self._chance.randint(1, most if most == 1 else patience * most)
        self._last_bombs.append((boundary, occurrence))
        return lambda *, report: Bomb(boundary, occurrence, report=report)

    def _tidy(self) -> bool:
        """Of files, take away those that are done; whether the cursor of one that is gone is left."""
        if not isinstance(self._stream, FilesStream):
            return False
        engine = connect(self._place.database)
        cursors = Manifest(engine).cursors(PIPELINE)
        engine.dispose()
        return self._stream.tidy(cursors, self._production.sent())

    def _start(self, bomb: Callable[..., Bomb], wanted: Wanted | None) -> Child:
        self.counts.lives += 1
        place = self._place
        return fork(lambda pipe: live(place, bomb(report=pipe), self._pace, wanted))

    def _note(self, child: Child) -> None:
        for line in child.said():
            self.counts.fenced += line == "fenced"
            self.counts.source_away += line == "away"
            if line.startswith("died "):
                self.counts.boundaries[line.removeprefix("died ")] += 1

    def _count(self, child: Child) -> None:
        if child.status == CRASHED:
            self.counts.exits += 1
        elif child.status == -signal.SIGKILL:
            self.counts.kills += 1
        else:
            raise AssertionError(f"{self._plan.name}: a process ended with {child.status}")


@contextmanager
def _stream(plan: Plan, folder: Path, database: str) -> Iterator[tuple[Stream, Callable[[], None] | None]]:
    """The stream, and what kills its server and starts it again, where it has one that may be."""
    incoming = folder / "incoming"
    incoming.mkdir()
    if plan.kind == "files":
        yield FilesStream(incoming, plan.variant), None
    elif plan.kind == "pushed":
        yield PushedStream(database, plan.variant, incoming), None
    elif plan.kind == "redis":
        with redis_server.server() as server:

            def break_server() -> None:
                server.kill()
                time.sleep(0.02)
                server.start()

            yield RedisStream(server.url, plan.variant), break_server
    else:
        with kafka_mock.cluster() as cluster:
            topic = f"crashes-{os.getpid()}"
            make_topic(cluster, topic)
            yield KafkaStream(cluster.bootstrap_servers, topic, plan.variant), None


def _spec(plan: Plan, stream: Stream) -> PipelineSpec:
    document = {
        "name": PIPELINE,
        "schema": schema_of(plan.variant).model_dump(mode="json"),
        "trigger": {"kind": "records", "records": RECORDS},
        "duplicate_window": WINDOW if plan.variant == "window" else 0,
        "strategy": {"name": "naive"},
        **stream.declared(),
    }
    return parse(document)
