"""Disputes: rejections by past holdouts that become a question to a person.

Where a concept changed in a way that near duplicates do not show (`gate.obsolete`), every update would be
rejected by the same holdouts, for ever. So the second time a person is asked whether their labels still hold.
A person is also asked where all that was lost is of experiences that little of today's traffic is like.
A dispute turns a rejection into a question, and never into a promotion.
"""

from collections.abc import Sequence
from dataclasses import replace

from service.gate import sentences as say
from service.gate.base import DISPUTE, TRAFFIC, Evidence, Finding, GateConfig, failed_on
from service.gate.blocks import history_of
from service.gate.guards import classes, judgements
from service.gate.guards import retention as retention_guard

_RETENTION = "retention"


def question(evidence: Evidence, config: GateConfig, findings: Sequence[Finding]) -> Finding | None:
    """The question that a rejection with these findings becomes; None: it stays a rejection.

    It becomes one where nothing fails but retention (and rare classes by the records of the same holdouts),
    no finding fails on kept holdouts alone, and either all would pass without those that are not kept and
    failed in the verdict before as well, or all that failed lost less than `margin` of today's traffic.

    Args:
        config: with what this try may spend of alpha.
    """
    failed = [each for each in findings if each.answer == "fail"]
    lost = [each for each in failed if each.guard == _RETENTION]
    kept = _kept(evidence, config)
    if any(each.about <= kept for each in lost):
        return None
    others = [each for each in failed if each.guard != _RETENTION]

    def explains(about: frozenset[int], gone: frozenset[int]) -> bool:
        """Whether nothing fails without the first, nor any rare class without the second."""
        if not about or _fails_without(about, evidence, config):
            return False
        return _lost_there(others, gone, evidence, config, findings)

    repeated = (_about(lost) - kept) & set(evidence.disputed)
    if explains(repeated, _about(lost)):
        alone = {each.experience for each in lost if each.experience is not None and not each.experiences}
        named = sorted(alone & repeated or repeated)
        one = named[0] if len(named) == 1 else None
        return Finding(DISPUTE, "undecided", _sentence(named), one, {}, tuple(named))
    seldom = _seldom(lost, config)
    return _little_traffic(seldom) if explains(_about(seldom), _about(seldom)) else None


def _about(findings: Sequence[Finding]) -> frozenset[int]:
    return frozenset[int]().union(*(each.about for each in findings))


def _seldom(lost: Sequence[Finding], config: GateConfig) -> list[Finding]:
    """The failing findings by which less than the margin of the traffic was lost at worst."""
    found = []
    for each in lost:
        share, most = each.numbers.get("traffic"), each.numbers.get("loss_upper")
        if share is not None and most is not None and share * most < config.margin:
            found.append(each)
    return found


def _fails_without(experiences: frozenset[int], evidence: Evidence, config: GateConfig) -> bool:
    """Whether retention fails by the others alone: then nothing that is said of these can change it."""
    again = retention_guard.retention(_without(evidence, experiences), config)
    return bool(failed_on([each for each in again if isinstance(each, Finding)]))


def _without(evidence: Evidence, experiences: frozenset[int]) -> Evidence:
    """The evidence without the past holdouts of these; blocks stay as they were."""
    rest = tuple(each for each in evidence.past if each.experience not in experiences)
    return replace(evidence, past=rest, history=history_of(evidence.history, evidence.past))


def _little_traffic(lost: Sequence[Finding]) -> Finding:
    """The question on losses that little of the traffic would see; the sentence is on the worst."""
    # An experience by itself says more than the block that it makes fail.
    named = [each for each in lost if not each.experiences] or lost
    worst = max(named, key=lambda each: each.numbers["traffic"] * each.numbers["loss_upper"])
    numbers, members = worst.numbers, sorted(worst.about)
    loss = say.between(numbers["loss_lower"], numbers["loss_upper"], numbers["margin"])
    stands = "stands" if len(members) == 1 else "together stand"
    sentence = (
        f"{say.experiences(members)} lost {loss}, but {stands} for {say.percent(numbers['traffic'])} of the "
        "traffic: approve the update if that may be lost there, else reject it"
    )
    about = _about(lost)
    return Finding(
        TRAFFIC,
        "undecided",
        sentence,
        worst.experience if len(about) == 1 else None,
        {key: numbers[key] for key in ("traffic", "loss_lower", "loss_upper", "margin")},
        tuple(sorted(about)),
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
    again = classes.rare_classes(_without(evidence, gone), config)
    failed = [each for each in again if isinstance(each, Finding) and each.answer == "fail"]
    still = {each.numbers.get("class") for each in failed}
    return still.isdisjoint(each.numbers.get("class") for each in others)


def _sentence(experiences: Sequence[int]) -> str:
    one = len(experiences) == 1
    stopped = f"{say.experiences(experiences)} stopped this update and the one before"
    labels = f"are the labels of {'its holdout' if one else 'their holdouts'} still true"
    it = "it" if one else "them"
    return (
        f"{stopped}: {labels}? If not, retire {it} (holdfast holdout retire), or correct them (holdfast "
        f"holdout relabel); if they are, keep {it} (holdfast holdout keep), and reject the update"
    )
