"""Seed guard: does the result depend on the random seed?

The same update is learnt again with other seeds. This tests the training recipe, and not the model that may
be promoted, which is judged on its own evidence: so the guard never rejects. Where the result depends much on
the seed, a person decides.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.gate import measures, stats
from service.gate import sentences as say
from service.gate.base import Bits, Evidence, Finding, GateConfig, PairedAnswers, Repeat
from service.gate.comparisons import compare, problem

_REMEDY = "a person decides, or learn with less left to chance (more epochs, a smaller learning rate, ema)"


def seeds(evidence: Evidence, config: GateConfig) -> tuple[Finding, ...]:
    """Two findings, over all holdouts together: spread and disagreement of the challenger and its repeats.

    Spread: each repeat against the challenger, record by record, by the test of retention, at the margin
    `seeds_margin`. Disagreement: the exact upper limit (Clopper and Pearson 1934) of the share of records
    that a repeat answers otherwise must not exceed `seeds_disagreement`. All must pass, each at alpha.
    """
    asked, repeats = config.repeats, evidence.repeats
    if not asked:
        return ()
    if len(repeats) < asked:
        return (_undecided(f"{len(repeats)} of {asked} repeats are there; run the update again"),)
    if len({each.seed for each in repeats}) < len(repeats):
        return (_undecided("two repeats have the same seed, and are one; run the update again"),)
    failed = next((each for each in repeats if each.failure is not None), None)
    if failed:
        return (_undecided(f"with seed {failed.seed} the same update fails: {failed.failure}; {_REMEDY}"),)
    holdouts = [each for each in (*evidence.past, *evidence.new) if not each.is_empty]
    wrong = next(_problems(holdouts, repeats, config), None)
    if wrong is None and not holdouts:
        wrong = "no holdout record was answered; put records aside, or let a person decide"
    if wrong is not None:
        return (_undecided(wrong),)
    paired = [_Paired.of(each, holdouts) for each in repeats]
    return (_spread(paired, holdouts, config), _disagreement(paired, config))


def _undecided(why: str) -> Finding:
    return Finding("seeds", "undecided", f"seeds: {why}")


def _problems(
    holdouts: Sequence[PairedAnswers], repeats: Sequence[Repeat], config: GateConfig
) -> Iterator[str]:
    """Why the repeats cannot be compared with the challenger."""
    for holdout in holdouts:
        for each in repeats:
            for answers in (each.right, each.same):
                pair = PairedAnswers(0, holdout.challenger, answers.get(holdout.experience))
                if problem(pair, config.seeds_margin) is not None:
                    yield (
                        f"experience {holdout.experience}: the challenger's answers and those with seed "
                        f"{each.seed} are not of the same records; run the update again"
                    )


@dataclass(frozen=True)
class _Paired:
    """The answers of one repeat and of the challenger, concatenated over all holdouts."""

    seed: int
    challenger: Bits
    right: Bits
    same: Bits
    by_holdout: tuple[float, ...]
    """Accuracy of the repeat on each holdout."""

    @staticmethod
    def of(repeat: Repeat, holdouts: Sequence[PairedAnswers]) -> "_Paired":
        right = [repeat.right[each.experience] for each in holdouts]
        return _Paired(
            repeat.seed,
            np.concatenate([each.challenger for each in holdouts if each.challenger is not None]),
            np.concatenate(right),
            np.concatenate([repeat.same[each.experience] for each in holdouts]),
            tuple(float(bits.mean()) for bits in right),
        )


def _spread(paired: Sequence[_Paired], holdouts: Sequence[PairedAnswers], config: GateConfig) -> Finding:
    pairs = [
        (PairedAnswers(index, each.challenger, each.right), config.seeds_margin)
        for index, each in enumerate(paired)
    ]
    compared = compare(pairs, alpha=config.alpha, holdouts=len(pairs))
    worst = max(compared, key=lambda seen: seen.upper)
    seed, n = paired[worst.experience].seed, worst.n
    own = [float(each.challenger.mean()) for each in holdouts if each.challenger is not None]
    accuracies = [worst.baseline_accuracy, *(seen.challenger_accuracy for seen in compared)]
    low, high = min(accuracies), max(accuracies)
    by_holdout: NDArray[np.float64] = np.array([own, *(each.by_holdout for each in paired)])
    apart = by_holdout.max(axis=0) - by_holdout.min(axis=0)
    widest = int(apart.argmax())
    numbers = {
        **worst.numbers(),
        "seeds": len(accuracies),
        "worst_seed": seed,
        "accuracy_lowest": low,
        "accuracy_highest": high,
        "accuracy_deviation": float(np.std(accuracies, ddof=1)),
        "widest_experience": holdouts[widest].experience,
        "widest_spread": float(apart[widest]),
    }
    summary = (
        f"seeds: {len(accuracies)} seeds answer {say.percent_of(low)} to {say.percent_of(high)} of "
        f"{say.records(n, 'holdout')} right"
    )
    if len(holdouts) > 1:
        where = f"experience {holdouts[widest].experience}"
        summary += f", furthest apart on {where} ({say.with_unit(float(apart[widest]))})"
    allowed = f"{say.allowed(config.seeds_margin)} allowed"
    if all(seen.p_noninferior <= seen.alpha for seen in compared):
        kept = f"another is at most {say.with_unit(max(worst.upper, 0.0))} below this one, {allowed}"
        return Finding("seeds", "pass", f"{summary}; {kept}", numbers=numbers)
    if worst.p_drop <= worst.alpha:
        lost = f"seed {seed} loses {say.between(worst.lower, worst.upper, worst.margin)} against this one"
        return Finding("seeds", "undecided", f"{summary}; {lost}, {allowed}; {_REMEDY}", numbers=numbers)
    may = f"seed {seed} may lose {say.up_to(worst.upper, worst.margin)} against this one, {allowed}"
    cannot = f"{say.records(n)} cannot settle it, {say.about(worst.needed)} would; a person decides"
    return Finding(
        "seeds", "undecided", f"{summary}; {may}; {cannot}", numbers=numbers | {"n_needed": worst.needed}
    )


def _disagreement(paired: Sequence[_Paired], config: GateConfig) -> Finding:
    n = len(paired[0].same)
    worst = max(paired, key=lambda each: int((~each.same).sum()))
    others = int((~worst.same).sum())
    _, high = (float(limit) for limit in stats.clopper_pearson(others, n, alpha=config.alpha))
    limit = config.seeds_disagreement
    numbers: dict[str, float] = {
        "n": n,
        "seeds": len(paired) + 1,
        "worst_seed": worst.seed,
        "others": others,
        "rate": others / n,
        "rate_upper": high,
        "limit": limit,
        "alpha": config.alpha,
    }
    summary = (
        f"disagreement: seed {worst.seed} answers {others} of {say.records(n, 'holdout')} otherwise, "
        f"at worst {say.percent_of(high)} of all, {say.percent_of(limit)} allowed"
    )
    if high <= limit:
        return Finding("disagreement", "pass", summary, numbers=numbers)
    if others / n >= limit:
        return Finding("disagreement", "undecided", f"{summary}; {_REMEDY}", numbers=numbers)
    floor = int(stats.exact_floor_n(limit, config.alpha))
    needed = measures.needed_for_share(others, n, limit=limit, alpha=config.alpha, floor=floor)
    cannot = f"too few records to settle it, {say.about(needed)} may; a person decides"
    return Finding(
        "disagreement", "undecided", f"{summary}; {cannot}", numbers=numbers | {"n_needed": needed}
    )
