"""What a crash run is of, and what is counted in it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tests.chaos.crashes.points import boundaries
from tests.chaos.crashes.records import Variant
from tests.chaos.crashes.streams import Kind
from tests.chaos.crashes.verdict import Verdict

Database = Literal["sqlite", "postgresql"]
DATABASES: tuple[Database, ...] = ("sqlite", "postgresql")

TURNS = ("exit", "exit", "kill", "exit exit", "exit", "exit kill")
"""What a turn starts, in turn: one process or two at once, each ended by its bomb or by SIGKILL."""


def exits_of(crashes: int) -> int:
    """How many bombs go off in a run of at least so many crashes."""
    exits = ends = turn = 0
    while ends < crashes:
        started = TURNS[turn % len(TURNS)].split()
        ends, exits, turn = ends + len(started), exits + started.count("exit"), turn + 1
    return exits


@dataclass(frozen=True)
class Plan:
    """What one run is of."""

    kind: Kind
    database: Database
    variant: Variant
    crashes: int
    seed: int
    bombs: Sequence[str]
    """The boundaries at which processes end, one after the other and again from the beginning."""

    @property
    def name(self) -> str:
        return f"{self.kind} {self.database} {self.variant}"

    @property
    def boundaries(self) -> Mapping[str, int]:
        """All that there are, each with the highest occurrence to wait for."""
        return boundaries(
            uploads=self.variant == "s3", trims=self.kind == "pushed", forgets=self.kind == "files"
        )


@dataclass
class Counts:
    """What happened, and what was found after it."""

    exits: int = 0
    kills: int = 0
    boundaries: Counter[str] = field(default_factory=Counter)
    fenced: int = 0
    source_away: int = 0
    producer_kills: int = 0
    server_kills: int = 0
    lives: int = 0
    seconds: float = 0.0
    verdict: Verdict = field(default_factory=Verdict)

    def as_json(self) -> dict[str, Any]:
        fields = asdict(self) | {"boundaries": dict(sorted(self.boundaries.items()))}
        verdict: dict[str, Any] = fields.pop("verdict")
        return fields | verdict
