"""The parts of Avalanche that strategies build on: the only module that imports it, without its warnings.

The import takes about four seconds on top of torch, because Avalanche imports its whole self; so only what
a builder reaches may import this module.
"""

import warnings

with warnings.catch_warnings():
    # Avalanche imports its GEM plugin, and that warns when no quadratic solver is installed.
    warnings.filterwarnings("ignore", message="no QP solver found", category=UserWarning)
    from avalanche.training.plugins import SupervisedPlugin
    from avalanche.training.plugins.clock import Clock
    from avalanche.training.templates import SupervisedTemplate
    from avalanche.training.templates.base_sgd import PeriodicEval

__all__ = [
    "Clock",
    "PeriodicEval",
    "SupervisedPlugin",
    "SupervisedTemplate",
]
