"""Retention guard: was anything forgotten, on blocks of past experiences and on each one by itself?

Too little, missing or broken evidence is undecided, with the reason; never a pass.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.gate import sentences as say
from service.gate import stats
from service.gate.base import (
    PROMISE,
    Evidence,
    Finding,
    GateConfig,
    Note,
    PairedAnswers,
    PastExperience,
)
from service.gate.blocks import Pool, blocks_of, history_of, pools_of, units_of
from service.gate.comparisons import Comparison, compare_counts, pooled_counts, problem, rows
from service.gate.guards import judgements
from service.gate.guards.judgements import Judgement, looks_left

BLOCK_POWER = 0.9995
"""A block is closed once an update that lost nothing, and flips as planned, passes with this chance."""
SINGLE_POWER = 0.9996
"""The same of an experience by itself: there are many, and every one must pass."""


def retention(evidence: Evidence, config: GateConfig) -> tuple[Finding | Note, ...]:
    """Two promises on past experiences, each at alpha: findings on blocks, and on experiences by themselves.

    Blocks (`gate.blocks`) keep within `margin`. Within a block one experience could still lose much, so each
    also keeps, by itself, within the margin that its records settle; one whose records settle none as small
    as `single_margin` is judged with its neighbours, and fails alone only where it is shown to have lost.

    Members and margins follow from numbers of records and from the planned churn, before any answer is read,
    and not from the try. All findings must pass, each at alpha, so P(promote | some block truly lost its
    margin) <= alpha without any correction, and so for experiences by themselves (an intersection-union test:
    Berger, Technometrics 24:295, 1982). The alarm is the opposite, "some of them lost", so its p-values are
    adjusted (Holm) and held against `alarm_alpha`.
    """
    if not evidence.past:
        return () if evidence.first else (Finding("retention", "undecided", _nothing(evidence.history)),)
    past = comparable(evidence.past, config)
    if not past.sound:
        return tuple(past.findings)
    found, notes = _Judged(past, evidence, config).findings()
    return (*found, *past.findings, *notes)


def _nothing(history: Sequence[PastExperience]) -> str:
    """Why no past holdout was compared: people have retired all, or the answers are missing."""
    if not history:
        return (
            "nothing that the champion learnt was compared: without its past holdouts nobody can say what "
            "was forgotten; run the update again"
        )
    several = len(history) > 1
    retired = f"all {len(history)} past holdouts are" if several else "the only past holdout is"
    return (
        f"{retired} retired, so nobody can say what was forgotten; restore one (holdfast holdout restore), "
        "or a person decides"
    )


class Comparable(NamedTuple):
    """Past holdouts that can be compared, and findings on the others."""

    sound: list[PairedAnswers]
    places: list[int]
    """(sound,) place of each among all past holdouts."""
    findings: list[Finding]


def comparable(past: Sequence[PairedAnswers], config: GateConfig) -> Comparable:
    """The past holdouts whose answers can be paired, and which are not exhausted."""
    sound: list[PairedAnswers] = []
    places: list[int] = []
    findings: list[Finding] = []
    for place, each in enumerate(past):
        wrong = problem(each, config.margin if each.margin is None else each.margin)
        if not 0 <= each.looks < config.holdout_looks:
            findings.append(_exhausted(each, config))
        elif wrong:
            sentence = f"experience {each.experience}: {wrong}"
            findings.append(Finding("retention", "undecided", sentence, each.experience))
        else:
            sound.append(each)
            places.append(place)
    return Comparable(sound, places, findings)


def _exhausted(answers: PairedAnswers, config: GateConfig) -> Finding:
    if not answers.looks >= config.holdout_looks:
        uncounted = f"{answers.looks} looks at its holdout cannot be; count them again, a person decides"
        return Finding(
            "retention", "undecided", f"experience {answers.experience}: {uncounted}", answers.experience
        )
    sentence = (
        f"experience {answers.experience}: its holdout was compared {answers.looks} times, and is "
        "exhausted: models chosen by it so often may fit it by luck; retire it (holdfast holdout retire)"
    )
    numbers = {"looks": answers.looks, "looks_left": 0}
    return Finding("retention", "undecided", sentence, answers.experience, numbers)


def obsolete(past: Sequence[PairedAnswers], findings: Sequence[Finding]) -> set[int]:
    """Experiences whose holdouts look obsolete by what retention found, by themselves or in a pool."""
    found = [each for each in findings if each.guard == "retention" and "twins" in each.numbers]
    named = {each.experience for each in found if each.experience is not None}
    if len(named) < len(found):
        named |= {each.experience for each in past if judgements.has_relabelled(each.near_duplicates)}
    return named


def block_margin(config: GateConfig) -> float:
    """What a block of several experiences may truly lose less than."""
    return config.margin if config.small_margin is None else config.small_margin


def records_of_block(config: GateConfig, margin: float, *, alpha: float) -> int:
    """Records from which on a block is closed; `alpha` is what a first try may spend."""
    return _records(margin, alpha, config.planned_churn, BLOCK_POWER)


def records_of_single(config: GateConfig, *, alpha: float) -> int:
    """Records from which on an experience is judged by itself."""
    return _records(max(config.single_margin, config.margin), alpha, config.planned_churn, SINGLE_POWER)


@lru_cache(maxsize=1024)
def _records(margin: float, alpha: float, churn: float, power: float) -> int:
    return int(stats.needed_n(margin, alpha, churn=churn, power=power))


def single_margins(n: NDArray[np.int64], config: GateConfig, *, alpha: float) -> NDArray[np.float64]:
    """(experiences,) the margin that so many records of each settle, in full tenths of a point."""
    settled = stats.settled_margin(n, alpha, churn=config.planned_churn, power=SINGLE_POWER)
    widest = max(config.single_margin, config.margin)
    return np.minimum(np.maximum(config.margin, np.ceil(settled * 1000 - 1e-9) / 1000), widest)


def past_blocks(
    history: Sequence[PastExperience], sizes: Mapping[int, int], config: GateConfig, *, planned: float
) -> list[Pool]:
    """The blocks of past holdouts, by their records; `planned` is what a first try may spend of alpha."""
    enough = records_of_block(config, block_margin(config), alpha=planned)
    alone = records_of_block(config, config.margin, alpha=planned)
    return list(_blocks(tuple(history), tuple(sizes.items()), enough, alone))


@lru_cache(maxsize=8)
def _blocks(
    history: tuple[PastExperience, ...], sized: tuple[tuple[int, int], ...], enough: int, alone: int
) -> tuple[Pool, ...]:
    """The same by numbers alone: retention and learning ask for the same blocks one after the other."""
    sizes = dict(sized)

    def needed(members: Sequence[int]) -> int:
        return alone if len(members) == 1 else enough

    return tuple(pools_of(blocks_of(history, sizes, enough, alone=alone), sizes, needed))


def past_units(
    history: Sequence[PastExperience],
    sizes: Mapping[int, int],
    config: GateConfig,
    *,
    planned: float,
    blocks: Sequence[Pool] = (),
) -> list[Pool]:
    """Experiences by themselves, and those with too few records for it together with their neighbours.

    Those that are one of these `blocks` are left out: the block's finding answers for them.
    """
    least = records_of_single(config, alpha=planned)
    units = pools_of(units_of(history, sizes, least), sizes, lambda _: least)
    same = {frozenset(pool.members) for pool in blocks}
    return [pool for pool in units if frozenset(pool.members) not in same]


def sizes_of(past: Sequence[PairedAnswers]) -> dict[int, int]:
    """Experience -> its records, of those in blocks: one with a margin of its own is in none."""
    return {each.experience: each.n for each in past if each.margin is None}


class _Judged:
    """Sound past holdouts: each by itself, their blocks, and units of those too small for a margin alone."""

    def __init__(self, past: Comparable, evidence: Evidence, config: GateConfig) -> None:
        self.config, self.sound, self.evidence = config, past.sound, evidence
        self.planned = stats.spent_at_first(config.alpha, evidence.attempt)
        sound = past.sound
        self.place = {each.experience: place for place, each in enumerate(sound)}
        self.counted = evidence.past_counts[:, past.places]
        self.blocks, self.units = self._pools(sound)
        # Of these one finding answers both questions.
        only = {pool.members[0] for pool in self.blocks if len(pool.members) == 1}
        self.alone = only | {each.experience for each in sound if each.margin is not None}
        least = records_of_single(config, alpha=self.planned)
        self.by_itself = self.alone | {each.experience for each in sound if each.n >= least}
        self.family = len(sound) + sum(map(len, self._asked()))

    def findings(self) -> tuple[list[Finding], list[Note]]:
        singles = self._singles()
        if gone := obsolete(self.sound, singles):
            # What looks obsolete waits for a person, and must fail nothing that it is judged with.
            self.blocks, self.units = self._pools(
                [each for each in self.sound if each.experience not in gone]
            )
        blocks, units = self._asked()
        margins = np.full(len(blocks), block_margin(self.config))
        found = self._pooled(blocks, margins) + self._pooled(units, self._unit_margins(units), unit=True)
        return [*found, *singles], [*self._promises(units), *self._unseen()]

    def _asked(self) -> tuple[list[Pool], list[Pool]]:
        """Blocks and units with a finding of their own: no experience alone answers for them."""
        blocks = [pool for pool in self.blocks if len(pool.members) > 1 or pool.own[0] not in self.alone]
        return blocks, [pool for pool in self.units if not self.by_itself.issuperset(pool.own)]

    def _pools(self, sound: Sequence[PairedAnswers]) -> tuple[list[Pool], list[Pool]]:
        """Blocks, and the units that are not blocks too."""
        history, sizes = history_of(self.evidence.history, self.evidence.past), sizes_of(sound)
        blocks = past_blocks(history, sizes, self.config, planned=self.planned)
        return blocks, past_units(history, sizes, self.config, planned=self.planned, blocks=blocks)

    def _singles(self) -> list[Finding]:
        """One finding for each that is judged by itself, and for each other that is shown to have lost."""
        config = self.config
        own = np.array([np.nan if each.margin is None else each.margin for each in self.sound])
        held = np.where(np.isnan(own), config.margin, own)
        wide = np.array(
            [each.experience in self.by_itself and each.experience not in self.alone for each in self.sound]
        )
        n, before, after, both = self.counted
        seen = compare_counts(
            self.counted,
            experiences=[each.experience for each in self.sound],
            margins=np.where(wide, single_margins(n, config, alpha=self.planned), held),
            alpha=config.alpha,
            holdouts=self.family,
        )
        kept = stats.noninferiority_p(before - both, after - both, n=n, margin=held) <= config.alpha
        shown = (seen["p_drop"] <= config.alarm_alpha) & ~kept
        findings = []
        for each, its, lost in zip(self.sound, rows(seen), shown.tolist(), strict=True):
            if lost or each.experience in self.by_itself:
                answer, sentence, more = self._judge(each, its, lost=lost)
                late, looks = looks_left(each.looks, config.holdout_looks)
                traffic = judgements.traffic([each])
                numbers = its.numbers({**more, **looks, **traffic} if more or traffic else looks)
                findings.append(Finding("retention", answer, sentence + late, each.experience, numbers))
        return findings

    def _judge(self, answers: PairedAnswers, seen: Comparison, *, lost: bool) -> Judgement:
        name = f"experience {seen.experience}"
        if not seen.baseline_right and seen.p_gain > seen.alpha:
            return judgements.nothing_right(seen, name)
        if lost:
            margin = self.config.margin if answers.margin is None else answers.margin
            part = judgements.obsolete_part(judgements.together([answers]), self.config.alpha)
            if part is not None:
                return judgements.obsolete(seen, name, margin, part, self.evidence.classes)
            return judgements.lost(seen, name, margin)
        only = answers.margin is None and seen.experience in self.alone
        if only and seen.p_noninferior > seen.alpha and seen.n < int(stats.floor_n(seen.margin, seen.alpha)):
            return judgements.too_few(seen, name)
        return judgements.kept(seen, name, aside="" if seen.experience in self.alone else " by itself")

    def _pooled(
        self, pools: Sequence[Pool], margins: NDArray[np.float64], *, unit: bool = False
    ) -> list[Finding]:
        """One finding for each block, or each unit."""
        if not pools:
            return []
        seen = compare_counts(
            pooled_counts(self.counted, [[self.place[each] for each in pool.members] for pool in pools]),
            experiences=[pool.own[0] for pool in pools],
            margins=margins,
            alpha=self.config.alpha,
            holdouts=self.family,
        )
        return [self._pool_found(pool, its, unit=unit) for pool, its in zip(pools, rows(seen), strict=True)]

    def _pool_found(self, pool: Pool, seen: Comparison, *, unit: bool) -> Finding:
        answer, sentence, more = self._judge_pool(pool, seen, unit=unit)
        looks = max(self.sound[self.place[each]].looks for each in pool.members)
        late, left = looks_left(looks, self.config.holdout_looks)
        pooled = {"pooled": len(pool.own), "joined": len(pool.joined)}
        traffic = judgements.traffic([self.sound[self.place[each]] for each in pool.members])
        numbers = {**seen.numbers(more), **left, **pooled, **traffic}
        experience = pool.own[0] if len(pool.own) == 1 else None
        members = tuple(sorted(pool.members))
        return Finding("retention", answer, sentence + late, experience, numbers, members)

    def _judge_pool(self, pool: Pool, seen: Comparison, *, unit: bool) -> Judgement:
        name = say.experiences(pool.own)
        together = " together" if len(pool.own) > 1 else ""
        if pool.joined:
            together = f" together with {say.experiences(pool.joined)}"
        if not seen.baseline_right and seen.p_gain > seen.alpha:
            return judgements.nothing_right(seen, name)
        if seen.p_noninferior > seen.alpha and seen.p_drop <= self.config.alarm_alpha:
            duplicates = judgements.together([self.sound[self.place[each]] for each in pool.own])
            part = judgements.obsolete_part(duplicates, self.config.alpha)
            if part is not None:
                several = len(pool.own) > 1
                return judgements.obsolete(
                    seen, name, seen.margin, part, self.evidence.classes, several=several
                )
            return judgements.lost(seen, name, seen.margin, together=together)
        if seen.p_noninferior > seen.alpha and seen.n < int(stats.floor_n(seen.margin, seen.alpha)):
            return judgements.too_few(seen, name)
        few = ", too small to be judged by itself," if len(pool.own) == 1 else ", each too small by itself,"
        its = "its" if len(pool.own) == 1 else "their"
        return judgements.kept(seen, name, its=its, aside=few if unit else "", together=together)

    def _unit_margins(self, units: Sequence[Pool]) -> NDArray[np.float64]:
        n = [sum(int(self.counted[0, self.place[each]]) for each in unit.members) for unit in units]
        return single_margins(np.array(n, dtype=np.int64), self.config, alpha=self.planned)

    def _promises(self, units: Sequence[Pool]) -> list[Note]:
        """What a promotion promises of past experiences, in plain words."""
        alpha = stats.shared_out(self.config.alpha, self.evidence.attempt)
        at_most = f"is promoted at most {say.percent_of(alpha)} of the time"
        margin = block_margin(self.config)
        blocks = (
            "past experiences, in blocks of neighbours: a challenger that truly lost "
            f"{say.with_unit(margin, digits=2)} or more on a block {at_most}"
        )
        notes = [Note(PROMISE, blocks, {"margin": margin, "alpha": alpha})] if self.blocks else []
        n = self.counted[0, [self.place[each] for each in sorted(self.by_itself - self.alone)]]
        margins = [*single_margins(n, self.config, alpha=self.planned), *self._unit_margins(units)]
        if margins:
            whose = "each past experience by itself" if len(n) else "past experiences in small groups"
            if len(n) and units:
                whose += ", the smallest with their neighbours"
            widest = float(max(margins))
            single = (
                f"{whose}: a challenger that truly lost what their records settle, here "
                f"{say.with_unit(widest, digits=2)} at most, {at_most}"
            )
            notes.append(Note(PROMISE, single, {"margin": widest, "alpha": alpha}))
        return [*notes, *self._own_promises(alpha, at_most)]

    def _own_promises(self, alpha: float, at_most: str) -> list[Note]:
        notes = []
        for each in self.sound:
            if each.margin is not None:
                own = f"{say.with_unit(each.margin, digits=2)} or more, its own margin, {at_most}"
                sentence = f"experience {each.experience}: a challenger that truly lost {own}"
                notes.append(Note(PROMISE, sentence, {"margin": each.margin, "alpha": alpha}))
        return notes

    def _unseen(self) -> list[Note]:
        """How much could go unseen on experiences that are too small to be judged by themselves."""
        small = [each for each in self.sound if each.experience not in self.by_itself]
        if not small:
            return []
        least, most = min(each.n for each in small), max(each.n for each in small)
        unseen = unseen_loss(
            least, alpha=self.config.alarm_alpha / self.family, churn=self.config.planned_churn
        )
        subject = say.experiences(sorted(each.experience for each in small))
        if len(small) == 1:
            sentence = f"{subject} has {say.records(least)}: a loss of"
        elif least == most:
            sentence = f"{subject} have {say.records(least)} each: a loss on one of them of"
        else:
            sentence = f"{subject} have {least} to {say.records(most)}: a loss on the smallest of"
        sentence += f" up to {say.with_unit(unseen, digits=0)} could go unseen"
        return [Note("retention", sentence, {"n": least, "unseen": unseen})]


_SEEN = 0.95


@lru_cache(maxsize=1024)
def unseen_loss(n: int, *, alpha: float, churn: float) -> float:
    """The smallest loss, in full points, that so many records show at `alpha` 19 times in 20; 1: none."""
    losses = np.arange(1, 100) / 100
    needed = stats.needed_n_difference(losses, alpha, churn=np.maximum(churn, losses), power=_SEEN)
    seen = losses[needed <= n]
    return float(seen[0]) if len(seen) else 1.0
