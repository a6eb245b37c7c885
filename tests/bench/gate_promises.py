"""What the gate promises and what it lets through: error rates, lifetimes with every freeze lifted, one old
experience that is forgotten slowly, and what a decision costs beside its bare arithmetic.

`python -m tests.bench.gate_promises` runs this alone. Sizes, churns, losses, seeds and goals were fixed
before the first measurement.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from os import cpu_count

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr
from scipy.stats import binom

from service.gate import stats
from service.gate.base import Audit, Column, DataEvidence, Evidence, GateConfig, PairedAnswers
from service.gate.decide import decide
from service.gate.guards import classes, retention
from service.gate.obsolete import near_duplicates
from service.gate.simulation.lifetimes import Lifetime, simulate
from service.gate.simulation.questions import HarmlessLifetime, Pipeline
from service.gate.simulation.rates import worst_false_promotion
from tests.bench.measure import Measured, report

ALPHA = 0.05
FIRST = stats.spent(ALPHA, 1)
LIFETIMES = 1000
"""Of each learner whose freezes are all lifted."""
PROMOTIONS = 500
LEARNERS = {
    "loses .01 points a step": (0.0001, False),
    "loses .1 points a step": (0.001, False),
    "loses .2 points a step": (0.002, False),
    "loses .4 points a step": (0.004, False),
    "loses as much more as it is let": (0.001, True),
}
"""What each update loses, and whether the learner goes by all that it is told (`Lifetime.climbing`)."""
SEALED = 3314
"""As in the attack that broke the promise before."""
FORGETTING, BEFORE, RECORDS, SEED = 40, 25, 500, 2025
"""Lifetimes, updates before the forgetting begins, records of an experience, and their first seed."""


def run() -> list[Measured]:
    return [*_sizes(), *_freezes(), _forgotten(), *_renamed(), *_costs()]


def _sizes() -> list[Measured]:
    """The worst rate at which exactly the margin is lost and passes, as a share of alpha; exact sums."""
    config = GateConfig()
    block = retention.records_of_block(config, config.margin, alpha=FIRST)
    blocks = [
        worst_false_promotion(n, margin=config.margin, alpha=FIRST, most_churn=0.5)[0]
        for n in (block, block + 1, round(1.1 * block), round(1.5 * block))
    ]
    single = []
    for n in range(retention.records_of_single(config, alpha=FIRST), 1500, 37):
        margin = float(retention.single_margins(np.array([n]), config, alpha=FIRST)[0])
        single.append(worst_false_promotion(n, margin=margin, alpha=FIRST, most_churn=0.5)[0])
    return [
        Measured("a block: worst false promotion, of alpha", max(blocks) / FIRST, "ratio", 1.0, "<="),
        Measured("an experience by itself: the same", max(single) / FIRST, "ratio", 1.0, "<="),
        Measured("recall of a rare class: the same", max(_rare_sizes()) / FIRST, "ratio", 1.0, "<="),
    ]


def _rare_sizes() -> list[float]:
    """P(a class passes with its margin lost), of every number of records too few for Tango's test."""
    config, found = GateConfig(), []
    for n in range(1, retention.records_of_single(config, alpha=FIRST)):
        margin = classes.rare_margin(n, alpha=FIRST, lost=config.planned_churn / 2, widest=config.rare_margin)
        if margin is None:
            continue
        passes = np.arange(n + 1)[bdtr(np.arange(n + 1), n, margin) <= FIRST]
        # Whatever is gained, the share that turns wrong is at least the margin; more pass ever less.
        found.append(float(binom.cdf(passes.max(), n, margin)) if len(passes) else 0.0)
    return found


def _freezes() -> list[Measured]:
    """P(the budget is lost) over as many promotions, with every freeze lifted at once."""
    found = []
    for name, (loss, climbing) in LEARNERS.items():
        lifetime = Lifetime(
            updates=2 * PROMOTIONS,
            churn=0.03,
            gate=3125,
            audit=SEALED,
            margin=0.02,
            budget=0.05,
            alpha=ALPHA,
            lifted=True,
            most_promotions=PROMOTIONS,
            loss=loss,
            climbing=climbing,
        )
        seen = simulate(lifetime, lifetimes=LIFETIMES, seed=SEED)
        beyond, limit = seen.beyond(0.05)
        told = f"{seen.promotions.mean():.0f} promoted, {seen.failures.mean():.0f} audits did not pass"
        name = f"freezes lifted, {name} [{told}]: lost the budget"
        found.append(Measured(name, beyond, "share", ALPHA, "<=", (0.0, limit)))
    return found


class _Forgetful(Pipeline):
    """A pipeline of which each update loses so much on the first experience, from some update on."""

    loses = 0.0
    lost = 0.0

    def flipped(self, right: NDArray[np.bool_]) -> NDArray[np.bool_]:
        lifetime, churn = self.lifetime, max(self.lifetime.churn, self.loses)
        accuracy = np.full((len(right), 1), lifetime.accuracy)
        turned = np.full((len(right), 1), lifetime.churn)
        losing = np.zeros((len(right), 1))
        if len(right):
            accuracy[0], turned[0], losing[0] = lifetime.accuracy - self.lost, churn, self.loses
        wrong = (turned + losing) / 2 / accuracy
        mended = (turned - losing) / 2 / (1 - accuracy)
        turns = self.random.random(right.shape, dtype=np.float32) < np.where(right, wrong, mended)
        return np.asarray(right ^ turns, dtype=np.bool_)


def _forgotten() -> Measured:
    """True loss on the old experience when the gate first stops an update that a harmless twin passes."""
    with ProcessPoolExecutor(cpu_count(), mp_context=get_context("spawn")) as pool:
        lost = list(pool.map(_lost_when_stopped, range(SEED, SEED + FORGETTING)))
    name = f"one old experience of {RECORDS} records forgotten by 1 point an update: lost when stopped"
    mean, apart = 100 * statistics.mean(lost), 196 * statistics.stdev(lost) / len(lost) ** 0.5
    return Measured(name, mean, "points", 12.0, "<=", (mean - apart, mean + apart))


def _lost_when_stopped(seed: int) -> float:
    config = GateConfig()
    lifetime = HarmlessLifetime(RECORDS, 0.06)
    forgetful, twin = (_Forgetful(lifetime, config, np.random.default_rng(seed)) for _ in range(2))
    for _ in range(BEFORE):
        forgetful.update()
        twin.update()
    forgetful.loses = 0.01
    while forgetful.lost < 0.85:
        # The challenger's loss, which the champion has once it is promoted.
        outcome, harmless = forgetful.update().outcome, twin.update().outcome
        forgetful.lost += forgetful.loses
        if outcome != "promote" and harmless == "promote":
            break
    return forgetful.lost


RENAMED = (500, 1000, 2000)
"""Records of an experience; a class of ten is renamed after ten experiences."""


def _renamed() -> list[Measured]:
    """How often the first update after one class of ten was renamed is asked about, not rejected."""
    found = []
    for records in RENAMED:
        outcomes = [
            _after_renaming(np.random.default_rng((SEED, records, life)), records) for life in range(40)
        ]
        asked, rejected = outcomes.count("review") / 40, outcomes.count("reject") / 40
        name = f"one class of ten renamed, {records:,} records: asked at once (rejected {rejected:.2f})"
        found.append(Measured(name, asked, "share", 0.9, ">="))
    return found


def _after_renaming(random: np.random.Generator, records: int) -> str:
    """Eight features, ten separated classes; the challenger has learnt the new name, the champion the old."""
    centres = 4 * random.standard_normal((10, 8))

    def drawn(count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        labels = random.integers(0, 10, count)
        return centres[labels] + random.standard_normal((count, 8)), labels

    learnt, labels = drawn(round(0.55 * records))
    renamed = np.where(labels == 3, 4, labels)
    gate = round(0.25 * records)
    past = []
    for experience in range(10):
        inputs, held = drawn(gate)
        champion = random.random(gate) < 0.95
        challenger = (champion ^ (random.random(gate) < 0.02)) & (held != 3)
        duplicates = near_duplicates(inputs, held, learnt, renamed)
        past.append(PairedAnswers(experience, champion, challenger, near_duplicates=duplicates, labels=held))
    _, held = drawn(gate)
    new = PairedAnswers(10, (random.random(gate) < 0.95) & (held != 3), random.random(gate) < 0.95)
    evidence = Evidence(DataEvidence(records, 0), tuple(past), (new,), attempt=1, champion=10)
    return decide(evidence, GateConfig()).outcome


_UPDATES = 20


def _costs() -> list[Measured]:
    """A decision on 1,000 holdouts of 2,000 records, beside the bare arithmetic of the same tests."""
    return [_cost(None, 1.5), _cost(0.05, 2.0)]


def _cost(groups: float | None, goal: float) -> Measured:
    random, config = np.random.default_rng(1), GateConfig(margin=0.05, negative_flips=0.05, groups=groups)
    updates = [large_update(random) for _ in range(_UPDATES)]
    ratios = []
    for update in updates:
        bare = _seconds(lambda: _arithmetic(update, config))  # noqa: B023
        ratios.append(_seconds(lambda: decide(update, config)) / bare)  # noqa: B023
    verdict = decide(updates[0], config)
    named = "" if groups is None else ", 4,000 groups"
    name = f"decide: 1,000 x 2,000 with budget, flips, blocks, singles{named} ({verdict.outcome})"
    return Measured(f"{name}, of bare arithmetic", statistics.median(ratios), "ratio", goal, "<=")


def large_update(random: np.random.Generator) -> Evidence:
    """A harmless update of a pipeline with 1,000 holdouts of 2,000 records, all parts with groups."""
    sites = np.array(["east", "north", "south", "west"])

    def pair(experience: int) -> PairedAnswers:
        baseline = random.random(2000) < 0.9
        challenger = baseline.copy()
        challenger[random.choice(2000, 20, replace=False)] ^= True
        columns = {"site": Column.of(random.choice(sites, 2000))}
        return PairedAnswers(experience, baseline, challenger, groups=columns)

    past, sealed, gate = (tuple(pair(experience) for experience in range(1000)) for _ in range(3))
    audit = Audit(sealed, gate=gate)
    return Evidence(DataEvidence(8000, 0), past, (pair(1000),), audit=audit, champion=1)


Counted = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Lost, gained and all records: (holdouts,) each."""


def _arithmetic(update: Evidence, config: GateConfig) -> None:
    """The counts and tests that a decision on this evidence needs, and nothing around them."""
    alpha, audit = config.alpha, update.audit
    if audit is None:
        raise ValueError("nothing is sealed")
    lost, gained, n = past = _counted(update.past)
    margins = retention.single_margins(n, config, alpha=alpha)
    block = retention.records_of_block(config, config.margin, alpha=alpha)
    _tested(past, margins, alpha)
    _tested(_blocks(past, block), config.margin, alpha)
    stats.noninferiority_p(lost, gained, n=n, margin=config.margin)
    stats.clopper_pearson(lost, n, alpha=alpha)
    sealed, gate = _counted(audit.answers), _counted(audit.gate)
    stats.mcnemar_drop_p(sealed[0] + gate[0], sealed[1] + gate[1])
    for counted, margin in ((sealed, config.single_margin), (_blocks(sealed, _SEALED_BLOCK), config.budget)):
        stats.noninferiority_p(counted[0], counted[1], n=counted[2], margin=margin)
    if config.groups is not None:
        _tested(_grouped(update), config.groups, alpha)


_SEALED_BLOCK = 5800


def _tested(counted: Counted, margin: float | NDArray[np.float64], alpha: float) -> None:
    lost, gained, n = counted
    stats.noninferiority_p(lost, gained, n=n, margin=margin)
    stats.loss_limits(lost, gained, n=n, alpha=alpha)
    stats.holm(stats.mcnemar_drop_p(lost, gained))


def _counted(answers: Sequence[PairedAnswers]) -> Counted:
    n = np.array([each.n for each in answers])
    before = np.concatenate([each.baseline for each in answers if each.baseline is not None])
    after = np.concatenate([each.challenger for each in answers if each.challenger is not None])
    starts = np.cumsum(n) - n
    lost, gained = (
        np.add.reduceat(bits.view(np.uint8), starts, dtype=np.int64)
        for bits in (before & ~after, ~before & after)
    )
    return lost, gained, n


def _blocks(counted: Counted, records: int) -> Counted:
    together = -(-records // int(counted[2][0]))
    starts = np.arange(0, len(counted[2]), together)
    lost, gained, n = (np.add.reduceat(column, starts) for column in counted)
    return lost, gained, n


def _grouped(update: Evidence) -> Counted:
    """By the values of the one group column, on every holdout."""
    lost, gained, n = [], [], []
    for each in (*update.past, *update.new):
        if each.baseline is None or each.challenger is None:
            raise ValueError("answers are missing")
        indices, values = each.groups["site"].indices, len(each.groups["site"].values)
        lost.append(np.bincount(indices[each.baseline & ~each.challenger], minlength=values))
        gained.append(np.bincount(indices[~each.baseline & each.challenger], minlength=values))
        n.append(np.bincount(indices, minlength=values))
    return np.concatenate(lost), np.concatenate(gained), np.concatenate(n)


def _seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    answer = call()
    seconds = time.process_time() - began
    del answer
    return seconds


if __name__ == "__main__":
    report("gate promises", run())
