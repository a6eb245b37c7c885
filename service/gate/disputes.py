"""Disputes: a rejection by the same past holdouts as the one before becomes a question to a person.

Where a concept changed in a way that near duplicates do not show (`gate.obsolete`), every update would be
rejected by the same holdouts, for ever. So the second time a person is asked whether their labels still hold.
A dispute turns a rejection into a question, and never into a promotion.
"""

from collections.abc import Sequence
from dataclasses import replace

from service.gate import sentences as say
from service.gate.base import DISPUTE, Evidence, Finding, GateConfig
from service.gate.guards import classes, judgements
from service.gate.guards import retention as retention_guard

_RETENTION = "retention"


def question(evidence: Evidence, config: GateConfig, findings: Sequence[Finding]) -> Finding | None:
    """The question that a rejection with these findings becomes; None: it stays a rejection.

    It becomes one where nothing fails but retention (and rare classes by the records of the same holdouts),
    no finding fails on kept holdouts alone, and one that is not kept failed in the verdict before as well.

    Args:
        config: with what this try may spend of alpha.
    """
    failed = [each for each in findings if each.answer == "fail"]
    lost = [each for each in failed if each.guard == _RETENTION]
    kept = _kept(evidence, config)
    if any(each.about <= kept for each in lost):
        return None
    about = frozenset[int]().union(*(each.about for each in lost))
    repeated = (about - kept) & set(evidence.disputed)
    others = [each for each in failed if each.guard != _RETENTION]
    if not repeated or not _lost_there(others, about, evidence, config, findings):
        return None
    alone = {each.experience for each in lost if each.experience is not None and not each.experiences}
    named = sorted(alone & repeated or repeated)
    return Finding(
        DISPUTE, "undecided", _sentence(named), named[0] if len(named) == 1 else None, {}, tuple(named)
    )


def _kept(evidence: Evidence, config: GateConfig) -> frozenset[int]:
    """Experiences whose mark `keep` counts: there is no new evidence that what they hold has moved."""
    shifted = evidence.shift is not None and evidence.shift.verdict == "shifted"
    marked = set(evidence.kept) & set(evidence.kept_shifted if shifted else evidence.kept)
    near = {each.experience: each.near_duplicates for each in evidence.past if each.experience in marked}
    return frozenset(
        experience
        for experience in marked
        if (found := near.get(experience)) is None or judgements.obsolete_part(found, config.alpha) is None
    )


def _lost_there(
    others: Sequence[Finding],
    about: frozenset[int],
    evidence: Evidence,
    config: GateConfig,
    findings: Sequence[Finding],
) -> bool:
    """Whether all that fails besides retention are rare classes, by the records of these holdouts alone."""
    if not others:
        return True
    if any(each.guard != classes.GUARD for each in others):
        return False
    gone = about | retention_guard.obsolete(evidence.past, findings)
    rest = tuple(each for each in evidence.past if each.experience not in gone)
    again = classes.rare_classes(replace(evidence, past=rest), config)
    failed = [each for each in again if isinstance(each, Finding) and each.answer == "fail"]
    still = {each.numbers.get("class") for each in failed}
    return still.isdisjoint(each.numbers.get("class") for each in others)


def _sentence(experiences: Sequence[int]) -> str:
    one = len(experiences) == 1
    stopped = f"{say.experiences(experiences)} stopped this update and the one before"
    labels = f"are the labels of {'its holdout' if one else 'their holdouts'} still true"
    it = "it" if one else "them"
    return (
        f"{stopped}: {labels}? If not, retire {it} (holdfast holdout retire); if they are, keep {it} "
        "(holdfast holdout keep), and reject the update"
    )
