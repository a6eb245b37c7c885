"""TRIGGERS: every trigger by its kind. A trigger decides when to cut an experience.

It sees the pending records once, in order, and decides where the next experience ends: always a prefix of
them. A new trigger is one file and one line in `streams.triggers.any_of`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import BeforeValidator, Field

from streams.triggers.any_of import SIMPLE_TRIGGERS, AnyOfTrigger, with_kind
from streams.triggers.base import Cut, Judge, TriggerConfig, TriggerContext, TriggerState, Watch
from streams.triggers.cost import CostTrigger
from streams.triggers.performance import PerformanceTrigger
from streams.triggers.records import RecordsTrigger, SecondsTrigger
from streams.triggers.shift import ShiftTrigger

__all__ = [
    "TRIGGERS",
    "AnyOfTrigger",
    "CostTrigger",
    "Cut",
    "Judge",
    "PerformanceTrigger",
    "RecordsTrigger",
    "SecondsTrigger",
    "ShiftTrigger",
    "TriggerChoice",
    "TriggerConfig",
    "TriggerContext",
    "TriggerState",
    "Watch",
]

KINDS: tuple[type[TriggerConfig], ...] = (*SIMPLE_TRIGGERS, AnyOfTrigger)

TRIGGERS: Mapping[str, type[TriggerConfig]] = MappingProxyType(
    {config.model_fields["kind"].default: config for config in KINDS}
)

if TYPE_CHECKING:
    TriggerChoice = TriggerConfig
else:
    TriggerChoice = Annotated[
        Union[KINDS],  # noqa: UP007
        Field(discriminator="kind"),
        BeforeValidator(with_kind),
    ]
