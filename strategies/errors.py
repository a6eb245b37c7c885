"""The errors of the learning side, as a tree.

StrategyError
├── StrategyUnknownError   no strategy of that name in the catalog
├── ExperienceUnfitError   the experience does not fit what this learner learns
├── LearningDivergedError  the loss became NaN or infinite
└── StateError             a saved state is missing, damaged, or of an unknown version
"""


class StrategyError(Exception):
    """Any failure of the learning side. The message says what is wrong and what to do about it."""


class StrategyUnknownError(StrategyError):
    """No strategy of that name in the catalog."""


class ExperienceUnfitError(StrategyError):
    """The experience does not fit what this learner learns."""


class LearningDivergedError(StrategyError):
    """The loss became NaN or infinite."""


class StateError(StrategyError):
    """A saved state is missing, damaged, or of an unknown version."""
