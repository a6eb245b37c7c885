"""Presets: defaults of the gate's fields, under one name each."""

from collections.abc import Mapping
from typing import Any, Literal

Preset = Literal["cautious", "balanced", "eager"]

PRESETS: Mapping[Preset, Mapping[str, float]] = {
    "cautious": {"margin": 0.015, "learning_margin": 0.015, "planned_churn": 0.06, "budget": 0.04},
    "balanced": {},
    "eager": {"margin": 0.03, "learning_margin": 0.03, "single_margin": 0.2, "budget": 0.075},
}
"""Preset -> fields of `GateConfig` in which it differs from their defaults, which are those of `balanced`.

Chosen by simulation (docs/how-to/choose-margins.md). None touches `alpha`: the error rate of the promises is
the same in all.
"""


def resolved(document: Any) -> Any:
    """A gate as declared, with the values of its preset; fields that it gives itself win.

    What is no mapping, or names no preset, is returned as it is, for its validation to refuse.
    """
    if not isinstance(document, Mapping):
        return document
    chosen = document.get("preset", "balanced")
    values = next((fields for name, fields in PRESETS.items() if name == chosen), {})
    return {**values, **document}
