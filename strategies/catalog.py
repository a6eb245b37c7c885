"""STRATEGIES: the strategies that a pipeline can name. Imports no torch; builders are named by strings."""

from collections.abc import Mapping
from types import MappingProxyType

from strategies.agem import AgemConfig
from strategies.averaging import AveragingConfig
from strategies.base import StrategySpec, StrategyUnknownError
from strategies.combined import CombinedConfig
from strategies.cumulative import CumulativeConfig
from strategies.der import DerConfig
from strategies.ema import EmaConfig
from strategies.er_ace import ErAceConfig
from strategies.er_aml import ErAmlConfig
from strategies.ewc import EwcConfig
from strategies.gdumb import GdumbConfig
from strategies.gem import GemConfig
from strategies.icarl import IcarlConfig
from strategies.joint import JointConfig
from strategies.lwf import LwfConfig
from strategies.mas import MasConfig
from strategies.mir import MirConfig
from strategies.naive import NaiveConfig
from strategies.replay import ReplayConfig
from strategies.scr import ScrConfig
from strategies.si import SiConfig
from strategies.slda import SldaConfig

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
        name="er-ace",
        config=ErAceConfig,
        builder="strategies.er_ace:build",
        summary="Replay whose loss on new records leaves old classes alone, for classes that come.",
        paper="arXiv:2104.05025",
    ),
    StrategySpec(
        name="er-aml",
        config=ErAmlConfig,
        builder="strategies.er_aml:build",
        summary="Replay that learns new records by the nearness of their features, for classes that come.",
        paper="arXiv:2104.05025",
    ),
    StrategySpec(
        name="mir",
        config=MirConfig,
        builder="strategies.mir:build",
        summary="Replays those of a sample of past records that a step on the new ones would hurt most.",
        paper="arXiv:1908.04742",
    ),
    StrategySpec(
        name="der",
        config=DerConfig,
        builder="strategies.der:build",
        summary="Replays records with what the network answered to them once; DER++ where beta is above 0.",
        paper="arXiv:2004.07211",
    ),
    StrategySpec(
        name="a-gem",
        config=AgemConfig,
        builder="strategies.agem:build",
        summary="Takes no step along which the loss on kept records would rise.",
        paper="arXiv:1812.00420",
    ),
    StrategySpec(
        name="gem",
        config=GemConfig,
        builder="strategies.gem:build",
        summary="Takes no step along which the loss on any group of kept records would rise.",
        paper="arXiv:1706.08840",
    ),
    StrategySpec(
        name="gdumb",
        config=GdumbConfig,
        builder="strategies.gdumb:build",
        summary="Learns a fresh network on a balanced sample at every experience; a baseline for replay.",
        paper="ECCV 2020",
    ),
    StrategySpec(
        name="icarl",
        config=IcarlConfig,
        builder="strategies.icarl:build",
        summary="Answers by the mean of the exemplars of each class; the network before teaches the new one.",
        paper="arXiv:1611.07725",
    ),
    StrategySpec(
        name="scr",
        config=ScrConfig,
        builder="strategies.scr:build",
        summary="Draws records of a class together, and answers by the mean of those kept.",
        paper="arXiv:2103.13885",
    ),
    StrategySpec(
        name="slda",
        config=SldaConfig,
        builder="strategies.slda:build",
        summary="Counts means and one covariance of features that stay as they are; keeps no record.",
        paper="arXiv:1909.01520",
    ),
    StrategySpec(
        name="ewc",
        config=EwcConfig,
        builder="strategies.ewc:build",
        summary="Holds weights that mattered near where they were; keeps no record.",
        paper="arXiv:1612.00796, arXiv:1805.06370",
    ),
    StrategySpec(
        name="si",
        config=SiConfig,
        builder="strategies.si:build",
        summary="Holds weights that did much for the loss on their way; keeps no record.",
        paper="arXiv:1703.04200",
    ),
    StrategySpec(
        name="mas",
        config=MasConfig,
        builder="strategies.mas:build",
        summary="Holds weights that the answers depend on; keeps no record.",
        paper="arXiv:1711.09601",
    ),
    StrategySpec(
        name="lwf",
        config=LwfConfig,
        builder="strategies.lwf:build",
        summary="The network before the experience teaches the new one; keeps no record.",
        paper="arXiv:1606.09282",
    ),
    StrategySpec(
        name="averaging",
        config=AveragingConfig,
        builder="strategies.averaging:build",
        summary="Mixes the weights before an experience with those after it; keeps no record.",
        paper="arXiv:2109.01903",
    ),
    StrategySpec(
        name="ema",
        config=EmaConfig,
        builder="strategies.ema:build",
        summary="Leaves the moving average of the weights over the steps; keeps no record.",
        paper="arXiv:2306.16817",
    ),
    StrategySpec(
        name="combined",
        config=CombinedConfig,
        builder="strategies.combined:build",
        summary="Several at once, such as replay and lwf: what each does to a step is added up.",
        paper="",
    ),
    StrategySpec(
        name="cumulative",
        config=CumulativeConfig,
        builder="strategies.cumulative:build",
        summary="Trains on all records so far; the upper bound, and it grows without end.",
        paper="",
    ),
    StrategySpec(
        name="joint",
        config=JointConfig,
        builder="strategies.joint:build",
        summary="A fresh network on all records so far; what is reached without any order of arrival.",
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
