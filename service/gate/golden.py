"""Answers on a golden set: curated records that are never trained on and stay a holdout for good."""

from dataclasses import dataclass

from service.gate.pairs import Bits


@dataclass(frozen=True)
class GoldenAnswers:
    """Right/wrong bits of three models on the records of one golden set, in their order."""

    number: int
    """0, 1, 2 ... within the pipeline."""
    name: str
    records: int
    """Records of the set; other numbers of answers are refused as evidence."""
    baseline: Bits | None
    """(records,) of the champion; None: they are missing, or there is no champion."""
    challenger: Bits | None
    """(records,)."""
    anchor: Bits | None = None
    """(records,) of the anchor; None: they are missing, or the champion is the anchor."""
    anchor_version: int | None = None
    """The version that is the anchor; None: there was none when the update was planned."""
    margin: float | None = None
    """What may truly be lost less than; None: no right answer may be lost."""
    looks: int = 0
    """Earlier updates that were compared on it."""
