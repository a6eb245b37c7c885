"""The strategies a pipeline can name. Reading this, and validating a config, needs no torch."""

from collections.abc import Mapping
from types import MappingProxyType

from strategies.base import StrategySpec, StrategyUnknownError
from strategies.cumulative import CumulativeConfig
from strategies.ewc import EwcConfig
from strategies.lwf import LwfConfig
from strategies.naive import NaiveConfig
from strategies.replay import ReplayConfig

_SPECS = (
    StrategySpec(
        name="naive",
        config=NaiveConfig,
        builder="strategies.naive:build",
        summary="Plain training on each experience; the baseline that forgets.",
        paper="",
    ),
    StrategySpec(
        name="replay",
        config=ReplayConfig,
        builder="strategies.replay:build",
        summary="Mixes a bounded sample of past records into every step; the first to try.",
        paper="arXiv:1811.11682",
    ),
    StrategySpec(
        name="ewc",
        config=EwcConfig,
        builder="strategies.ewc:build",
        summary="Holds weights that mattered near where they were; keeps no record.",
        paper="arXiv:1612.00796, arXiv:1805.06370",
    ),
    StrategySpec(
        name="lwf",
        config=LwfConfig,
        builder="strategies.lwf:build",
        summary="The network before the experience teaches the new one; keeps no record.",
        paper="arXiv:1606.09282",
    ),
    StrategySpec(
        name="cumulative",
        config=CumulativeConfig,
        builder="strategies.cumulative:build",
        summary="Trains on all records so far; the upper bound, and it grows without end.",
        paper="",
    ),
)

STRATEGIES: Mapping[str, StrategySpec] = MappingProxyType({spec.name: spec for spec in _SPECS})


def find(name: str) -> StrategySpec:
    """The strategy of that name.

    Raises:
        StrategyUnknownError: there is none.
    """
    try:
        return STRATEGIES[name]
    except KeyError:
        raise StrategyUnknownError(
            f"there is no strategy {name!r}; the catalog has {', '.join(STRATEGIES)}"
        ) from None
