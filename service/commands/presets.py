"""Output of `holdfast gate presets`: what each preset sets, asks and lets pass, and its table as a module."""

from collections.abc import Iterator, Mapping
from typing import Any

from service.gate import sentences as say
from service.gate.base import GATE_VERSION, GateConfig
from service.gate.presets import PRESETS, Preset
from service.gate.simulation.asked import AUDIT, CHURNS, GATE, MORE, SIZES, Cell, asked
from service.gate.simulation.asked_table import LIFETIMES, UPDATES
from service.gate.simulation.planning import one_experience, plan

Cells = Mapping[tuple[Preset, float], Mapping[int, Cell]]


def lines() -> Iterator[str]:
    """A table of the fields, one of the questions a churn, one of what one experience may lose."""
    plans = {name: plan(GateConfig(preset=name), gate=GATE, audit=AUDIT, records=None) for name in PRESETS}
    yield _row("", PRESETS)
    for title, value in _FIELDS.items():
        yield _row(title, [say.points(getattr(GateConfig(preset=name), value)) for name in PRESETS])
    yield _row("gate records of a block", [f"{each.block_records:,}" for each in plans.values()])
    for churn in CHURNS:
        yield ""
        yield f"asked of 100 updates that lose nothing and flip {say.percent(churn)} (95 % interval)"
        yield _row("records of an experience", PRESETS)
        for size in SIZES:
            yield _row(f"{size:,}", [_asked(name, size, churn) for name in PRESETS])
    yield ""
    yield "points that one experience may lose unseen"
    yield _row("records of an experience", PRESETS)
    for size in SIZES:
        losses = (one_experience(GateConfig(preset=name), round(size * GATE)).loss for name in PRESETS)
        yield _row(f"{size:,}", [say.points(loss) for loss in losses])
    yield ""
    yield (
        f"Averages over {LIFETIMES} simulated pipelines of {UPDATES} updates each{_more()}, with split.gate "
        f"at {GATE:g} and split.audit at {AUDIT:g}. Alpha is {GateConfig().alpha:g} in all."
    )


_FIELDS = {
    "points that a block may lose": "margin",
    "points of the new experience": "learning_margin",
    "points in all (budget)": "budget",
    "widest of one experience": "single_margin",
    "planned churn, %": "planned_churn",
}


def _more() -> str:
    return "".join(f" ({LIFETIMES * times} at {size:,} records)" for size, times in MORE.items())


def _row(title: str, cells: Any) -> str:
    return f"{title:<30}" + "".join(f"{each:>22}" for each in cells)


def _asked(preset: Preset, size: int, churn: float) -> str:
    rate = asked(GateConfig(preset=preset), gate=round(size * GATE), sealed=round(size * AUDIT), churn=churn)
    return "not known" if rate is None else f"{rate.mean:.1f} ({rate.low:.1f} to {rate.high:.1f})"


def document() -> dict[str, Any]:
    """All of it as JSON."""
    return {
        "gate_version": GATE_VERSION,
        "lifetimes": LIFETIMES,
        "updates": UPDATES,
        "split": {"gate": GATE, "audit": AUDIT},
        "presets": {
            name: {
                "gate": GateConfig(preset=name).model_dump(mode="json"),
                "sizes": [_size(name, size) for size in SIZES],
            }
            for name in PRESETS
        },
    }


def _size(preset: Preset, size: int) -> dict[str, Any]:
    config, gate, sealed = GateConfig(preset=preset), round(size * GATE), round(size * AUDIT)
    rates = ((churn, asked(config, gate=gate, sealed=sealed, churn=churn)) for churn in CHURNS)
    return {
        "records": size,
        "unseen_loss": one_experience(config, gate).loss,
        "asked": [
            {"churn": churn, "per_100": rate.mean, "low": rate.low, "high": rate.high}
            for churn, rate in rates
            if rate is not None
        ],
    }


def module(cells: Cells, *, lifetimes: int, updates: int, seed: int) -> Iterator[str]:
    """The lines of `service/gate/simulation/asked_table.py`, with these cells."""
    yield from _HEAD.format(gate=GATE_VERSION, updates=updates, lifetimes=lifetimes, seed=seed).splitlines()
    for (preset, churn), sizes in cells.items():
        yield f'    ("{preset}", {churn}): {{'
        for size, cell in sorted(sizes.items()):
            yield f"        {size}: ("
            yield f"            {cell.asked},"
            yield f"            {cell.budget},"
            yield "        ),"
        yield "    },"
    yield "}"
    yield from _TAIL.splitlines()


_HEAD = '''"""Updates that were asked about, of simulated lifetimes that lose nothing: data of `asked`.

Written by `holdfast gate presets --simulate`; do not edit.
"""

from collections.abc import Mapping

OF_GATE = {gate}
"""GATE_VERSION that judged the lifetimes."""
UPDATES = {updates}
"""Updates of each lifetime."""
LIFETIMES = {lifetimes}
SEED = {seed}
"""Of the first lifetime; the others have the next ones."""

Counts = tuple[int, ...]

ASKED: Mapping[tuple[str, float], Mapping[int, tuple[Counts, Counts]]] = {{'''

_TAIL = '''"""(preset, churn) -> records of an experience -> of each lifetime, updates that a person was
asked about, and those of them that the budget guard asked about."""'''
