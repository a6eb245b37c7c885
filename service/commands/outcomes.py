"""What the gate decided of a pipeline's latest updates, in lines."""

from collections.abc import Mapping
from typing import Any

KINDS = (("promoted", "promoted"), ("asked", "asked about"), ("rejected", "rejected"))
"""Field of the API's answer, and how a line names it."""
NAMES = {"first_update": "first version"}
"""Guards that a line names otherwise than the verdict."""
LEFT_OUT = (
    ("nothing_to_learn", "without anything to learn"),
    ("failed", "failed"),
    ("cancelled", "cancelled"),
)


def outcome_lines(outcomes: Mapping[str, Any]) -> list[str]:
    """Counts with their causes, the same of 100 updates with 95 % intervals, and what was not counted.

    Args:
        outcomes: as the API answers, in the `outcomes` of a pipeline.
    """
    judged = outcomes["updates"]
    lines = []
    if judged:
        counts = [f"{outcomes[kind]['count']} {name}{_causes(outcomes, kind)}" for kind, name in KINDS]
        rates = [f"{_rate(outcomes[kind])} {name}" for kind, name in KINDS]
        lines.append(f"last {judged} update{'' if judged == 1 else 's'}: {', '.join(counts)}")
        lines.append(f"of 100 updates: {', '.join(rates)}")
    else:
        lines.append("no update was judged yet")
    left_out = [
        f"{outcomes['left_out'][kind]} {name}" for kind, name in LEFT_OUT if outcomes["left_out"][kind]
    ]
    return [*lines, f"not counted: {', '.join(left_out)}"] if left_out else lines


def _rate(rate: Mapping[str, Any]) -> str:
    return f"{rate['per_100']:.0f} ({rate['low']:.0f} to {rate['high']:.0f})"


def _causes(outcomes: Mapping[str, Any], kind: str) -> str:
    causes: Mapping[str, Any] = outcomes.get(f"{kind}_by", {})
    named = [f"{NAMES.get(cause, cause.replace('_', ' '))} {rate['count']}" for cause, rate in causes.items()]
    return f" ({', '.join(named)})" if named else ""
