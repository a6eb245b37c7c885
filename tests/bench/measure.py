"""One measured number against its goal; an area is a list of them."""

import json
import operator
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

HOLDS: Mapping[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Measured:
    name: str
    value: float
    unit: str
    goal: float
    better: Literal["<=", ">="]
    interval: tuple[float, float] | None = None
    """95 % interval of the value; None: it was not estimated."""

    @property
    def ok(self) -> bool:
        return HOLDS[self.better](self.value, self.goal)


def report(area: str, results: list[Measured]) -> None:
    """A table for a person, and one JSON object as the last line."""
    for result in results:
        sign = "ok" if result.ok else "FALLS SHORT"
        between = "" if result.interval is None else "  ({:,.1f} to {:,.1f})".format(*result.interval)
        sys.stdout.write(
            f"{result.name:<40} {result.value:>12,.3f} {result.unit:<12} "
            f"goal {result.better} {result.goal:,.3f}  {sign}{between}\n"
        )
    document = {"area": area, "results": [{**asdict(result), "ok": result.ok} for result in results]}
    sys.stdout.write(json.dumps(document) + "\n")
