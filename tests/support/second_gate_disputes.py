"""Disputes and traffic of the second implementation of the gate's outcome."""

from collections.abc import Iterable, Sequence

from service.gate.base import Evidence, GateConfig
from tests.support.second_gate_classes import rare_classes
from tests.support.second_gate_obsolete import trusted
from tests.support.second_gate_retention import Judged, obsolete_ones, retention, without
from tests.support.second_gate_statistics import attempt_alpha, p_margin


def becomes_question(
    judged: Sequence[Judged], classes: Iterable[int], evidence: Evidence, config: GateConfig
) -> bool:
    """Whether a rejection by past holdouts, and by these rare classes, is a question instead.

    As a dispute, or for little traffic.
    """
    failing = [each for each in judged if each.answer == "fail"]
    kept = trusted(evidence, config)
    if any(each.about <= kept for each in failing):
        return False
    waiting = obsolete_ones(evidence, judged)
    stopped_twice = about(failing) & set(evidence.disputed) - kept
    hardly_met = about([each for each in failing if has_little_traffic(each, evidence, config)])
    for blamed, gone in ((stopped_twice, about(failing)), (hardly_met, hardly_met)):
        if blamed and not fails_without(blamed, evidence, config):
            again = rare_classes(without(evidence, [gone, *waiting]), config)
            if all(again.get(each) != "fail" for each in classes):
                return True
    return False


def about(judged: Sequence[Judged]) -> frozenset[int]:
    """Every experience that one of these is about."""
    return frozenset[int]().union(*(each.about for each in judged))


def has_little_traffic(judged: Judged, evidence: Evidence, config: GateConfig) -> bool:
    """Whether less than the margin of the traffic was lost at worst."""
    shares = [each.traffic for each in judged.block.members]
    known = [each for each in shares if each is not None]
    if len(known) < len(shares):
        return False
    allowed = config.margin / min(sum(known), 1.0) if sum(known) else 1.0
    return allowed >= 1 or p_margin(judged.counts, allowed) <= attempt_alpha(config, evidence.attempt)


def fails_without(blamed: frozenset[int], evidence: Evidence, config: GateConfig) -> bool:
    """Whether another past holdout fails all the same."""
    return any(each.answer == "fail" for each in retention(without(evidence, [blamed]), config))
