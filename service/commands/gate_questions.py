"""Text output of `holdfast gate questions`: how often a person is asked without need, and why."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from operator import attrgetter
from typing import Any

from service.gate import sentences as say
from service.gate.base import GateConfig
from service.gate.simulation.questions import Asked, HarmlessLifetime, Rate, causes_per_100, per_100

KINDS = ("promoted", "asked", "rejected", "freezes")


def rates(found: Sequence[Asked]) -> dict[str, Rate]:
    """Of 100 updates: how many were promoted, asked about and rejected, and how many audits froze."""
    return {kind: per_100(found, attrgetter(kind)) for kind in KINDS}


def lines(lifetime: HarmlessLifetime, config: GateConfig, found: Sequence[Asked]) -> Iterator[str]:
    """The table, then what it means."""
    new = f", new data {say.points(lifetime.better)} points better" if lifetime.better else ""
    yield (
        f"{len(found)} lifetimes of {lifetime.updates} updates that lose nothing: "
        f"{lifetime.records:,} records an experience, {lifetime.gate_records:,} to judge by and "
        f"{lifetime.sealed_records:,} sealed; "
        f"{say.percent(lifetime.churn)} of the answers flip{new}; margin {say.with_unit(config.margin)}."
    )
    yield ""
    yield f"{'of 100 updates':<30}{'on average':>12}{'95 % interval':>18}"
    for kind, rate in rates(found).items():
        interval = f"{rate.low:.1f} to {rate.high:.1f}"
        yield f"{_NAMES[kind]:<30}{rate.mean:>12.1f}{interval:>18}"
    causes = causes_per_100(found)
    for cause, rate_of_100 in causes.items():
        yield f"{'  asked by ' + cause:<30}{rate_of_100:>12.1f}"
    yield ""
    asked = per_100(found, lambda each: each.asked).mean
    yield f"About {asked:.0f} of 100 harmless updates would wait for a person."


_NAMES = {
    "promoted": "promoted",
    "asked": "a person is asked",
    "rejected": "rejected",
    "freezes": "promotion is frozen",
}


def document(lifetime: HarmlessLifetime, config: GateConfig, found: Sequence[Asked]) -> dict[str, Any]:
    """All of it as JSON."""
    return {
        "lifetime": asdict(lifetime),
        "gate": config.model_dump(mode="json"),
        "lifetimes": len(found),
        "per_100_updates": {kind: asdict(rate) for kind, rate in rates(found).items()},
        "asked_by": dict(causes_per_100(found)),
    }
