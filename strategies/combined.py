"""Combination of strategies: one that replays kept records, and others that regularise the network.

A combination has the plugins of all its parts, in the order in which they are named, after those of the part
that composes a step; averages of weights are taken before any part reads the result. Declaring a combination
that cannot work is refused: two parts that both compose a step, and strategies with nothing to add.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_serializer, field_validator, model_validator

from strategies import agem, averaging, der, ema, er_ace, er_aml, ewc, gem, lwf, mas, mir, replay, si
from strategies.agem import AgemConfig
from strategies.averaging import AveragingConfig
from strategies.base import Learner, StrategyConfig, StreamInfo
from strategies.der import DerConfig
from strategies.ema import EmaConfig
from strategies.er_ace import ErAceConfig
from strategies.er_aml import ErAmlConfig
from strategies.ewc import EwcConfig
from strategies.gem import GemConfig
from strategies.lwf import LwfConfig
from strategies.mas import MasConfig
from strategies.mir import MirConfig
from strategies.replay import ReplayConfig
from strategies.si import SiConfig

if TYPE_CHECKING:
    from strategies.learning.avalanche import SupervisedPlugin

Part = Annotated[
    ReplayConfig
    | ErAceConfig
    | ErAmlConfig
    | MirConfig
    | DerConfig
    | AgemConfig
    | GemConfig
    | EwcConfig
    | SiConfig
    | MasConfig
    | LwfConfig
    | AveragingConfig
    | EmaConfig,
    Field(discriminator="name"),
]
_PLUGINS: Mapping[str, Callable[..., "Sequence[SupervisedPlugin]"]] = {
    "replay": replay.plugins,
    "er-ace": er_ace.plugins,
    "er-aml": er_aml.plugins,
    "mir": mir.plugins,
    "der": der.plugins,
    "a-gem": agem.plugins,
    "gem": gem.plugins,
    "ewc": ewc.plugins,
    "si": si.plugins,
    "mas": mas.plugins,
    "lwf": lwf.plugins,
    "averaging": averaging.plugins,
    "ema": ema.plugins,
}
"""Strategy name -> function that makes the plugins of a part of that strategy."""
_MAKES_STEPS = frozenset({"replay", "er-ace", "er-aml", "mir", "der"})
"""These compose a step: its records and its loss."""
_SETS_WEIGHTS = ("ema", "averaging")
"""These replace the last weights of an experience: before other plugins read them, and in this order."""
_USES_RECORDS = _MAKES_STEPS | {"a-gem", "gem"}
_NOTHING_TO_ADD = {
    "naive": "it adds nothing",
    "gdumb": "it learns a fresh network each time, which nothing may hold",
    "icarl": "it answers by its exemplars, and has a teacher and a loss of its own",
    "scr": "it trains no head, which the others hold or teach",
    "slda": "it takes no step, to which something could be added",
    "cumulative": "it learns from everything anyway",
    "joint": "it learns from everything anyway, with a fresh network",
    "combined": "name its parts instead",
}
_COMMON = frozenset(StrategyConfig.model_fields) - {"name"}


class CombinedConfig(StrategyConfig):
    """Config of a combination: its parts, each with its own settings."""

    name: Literal["combined"] = "combined"
    parts: tuple[Part, ...] = Field(
        (ReplayConfig(), LwfConfig()),
        min_length=2,
        max_length=4,
        description="Strategies, each with its own settings only; what all have belongs to the combination.",
    )

    @field_validator("parts", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """A bare name is a strategy with its defaults."""
        if not isinstance(given, list | tuple):
            return given
        parts = [{"name": part} if isinstance(part, str) else part for part in given]
        for part in parts:
            name = part.get("name") if isinstance(part, Mapping) else None
            if name in _NOTHING_TO_ADD:
                raise ValueError(f"{name} cannot be combined: {_NOTHING_TO_ADD[name]}")
            common = sorted(_COMMON & set(part)) if isinstance(part, Mapping) else []
            if common:
                raise ValueError(f"{', '.join(common)} of {name} belong to the whole combination")
        return parts

    @field_serializer("parts")
    def _own_settings(self, parts: tuple[StrategyConfig, ...]) -> list[dict[str, Any]]:
        return [part.model_dump(mode="json", exclude=set(_COMMON)) for part in parts]

    def not_taken(self) -> Mapping[str, str]:
        return {field: f"{part.name}: {why}" for part in self.parts for field, why in part.refused.items()}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        names = [part.name for part in self.parts]
        if len(set(names)) < len(names):
            raise ValueError("parts must not name a strategy twice")
        keeping = [name for name in names if name in _USES_RECORDS]
        if len(keeping) > 1:
            raise ValueError(
                f"{' and '.join(keeping)} cannot be combined: each decides by kept records what a step does"
            )
        return self


def with_parts(document: Any) -> Any:
    """A declared strategy, unchanged; a list of strategies as the config of their combination."""
    return {"name": "combined", "parts": document} if isinstance(document, list | tuple) else document


def build(config: CombinedConfig, stream_info: StreamInfo) -> Learner:
    """A fresh learner with the plugins of all parts."""
    from strategies.learning.learner import AvalancheLearner

    ordered = sorted(config.parts, key=lambda part: _turn(part.name))
    plugins = [
        plugin for part in ordered for plugin in _PLUGINS[part.name](part, batch_size=config.batch_size)
    ]
    return AvalancheLearner(config, stream_info, plugins=plugins)


def _turn(name: str) -> int:
    if name in _SETS_WEIGHTS:
        return _SETS_WEIGHTS.index(name)
    # Among the penalties on weights, si comes first: it reads the gradient before the others add to it.
    pulls = 1 if name == "si" else 2
    return len(_SETS_WEIGHTS) + (0 if name in _MAKES_STEPS else pulls)
