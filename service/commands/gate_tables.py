"""Text output of `holdfast gate simulate` and `plan`: tables that fit a terminal, and what they mean."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from math import ceil
from typing import Any

from service.gate import sentences as say
from service.gate.base import GateConfig
from service.gate.simulation.lifetimes import Lifetime, LifetimeOutcomes, audited_together
from service.gate.simulation.planning import Plan, Sized
from service.gate.simulation.rates import Holdout, Rates, promote_rate, worst_false_promotion
from service.gate.simulation.rule import Alike, judged_together
from service.gate.stats import floor_n

Rated = Sequence[tuple[int, int, float, Rates]]
"""Holdouts, on how many of them something was lost, how much on each, and the rates."""
Simulated = Mapping[str, tuple[str, LifetimeOutcomes]]
"""Rule -> its title, and its simulated lifetimes."""


def rate_lines(holdout: Holdout, holdouts: int, alpha: float, rates: Rated) -> Iterator[str]:
    yield (
        f"Margin {say.with_unit(holdout.margin, digits=2)}, alpha {holdout.alpha:.3g}, "
        f"{say.percent(holdout.churn)} of the answers flip, {holdout.n:,} "
        f"{'record' if holdout.n == 1 else 'records'} in each holdout."
    )
    yield ""
    yield f"{'truly lost':<30}{'promoted':>10}{'a person':>10}{'rejected':>10}{'by a threshold':>16}"
    for of, on, lost, found in rates:
        where = " on one holdout" if of == 1 else f" on {'one of' if on == 1 else 'all'} {of}"
        name = f"{say.with_unit(lost, digits=2) if lost else 'nothing'}{where}"
        shares = "".join(f"{_rate(share):>10}" for share in (found.promote, found.review, found.reject))
        yield f"{name:<30}{shares}{_rate(found.threshold):>16}"
    yield ""
    harmful = rates[1][-1]
    harmless = next(found for of, on, _, found in rates if of == holdouts and not on)
    worst, _ = _worst(holdout)
    only = "" if holdouts == 1 else " on the only past holdout"
    yield (
        f"An update that lost {say.with_unit(holdout.margin, digits=2)}{only} goes out "
        f"{_rate(harmful.promote)} of the time, at most {_rate(worst)} whatever share flips "
        f"({say.percent_of(alpha)} are promised); "
        f"a threshold on the estimated loss would let it out {_rate(harmful.threshold)} of the time."
    )
    yield (
        f"An update that lost nothing passes {_rate(harmless.promote)} of the time with {_many(holdouts)}; "
        "holdfast gate plan says how many records it takes."
    )
    yield from _judged(holdout, holdouts)


def _judged(holdout: Holdout, holdouts: int) -> Iterator[str]:
    """How many holdouts are judged as one, and what one of them may lose."""
    n, margin = holdout.n, say.with_unit(holdout.margin, digits=2)
    floor = int(floor_n(holdout.margin, holdout.alpha))
    if n * holdouts < floor:
        yield f"Fewer than {floor:,} records cannot settle {margin}: a person would decide."
    if holdouts == 1:
        return
    config = GateConfig(margin=holdout.margin, alpha=holdout.alpha)
    pools, margins = judged_together(Alike(holdouts, n), config)
    block, unit, widest = len(pools[0]), len(pools[-1]), float(margins.max())
    if block == 1:
        yield "Each holdout has records enough to be a block by itself."
        return
    judged = "as one block" if block == holdouts else f"in blocks of {block}"
    wider = ""
    if widest > holdout.margin:
        each = "each by itself" if unit == 1 else f"{unit} neighbours together"
        wider = f", and {each}, which may lose less than {say.with_unit(widest, digits=2)}"
    yield (
        f"The {holdouts} are judged {judged}, which may lose less than {margin}{wider}: so one of them may "
        "lose more than a block."
    )


def _worst(holdout: Holdout) -> tuple[float, float]:
    """The largest rate of false promotions, and the churn where it is met; the one asked for among them."""
    worst, churn = worst_false_promotion(holdout.n, margin=holdout.margin, alpha=holdout.alpha)
    own = promote_rate(holdout, holdout.margin)
    return (own, holdout.churn) if own > worst else (worst, churn)


def lifetime_lines(lifetime: Lifetime, lifetimes: int, simulated: Simulated) -> Iterator[str]:
    budget = lifetime.budget or 0.0
    lifted = "; a person lifts every freeze at once" if lifetime.lifted else ""
    yield ""
    yield (
        f"{lifetimes} lifetimes of {lifetime.updates} updates; {_many(lifetime.holdouts)} with "
        f"{lifetime.gate:,} records to judge by and {lifetime.audit:,} sealed{_audited(lifetime)}; "
        f"budget {say.with_unit(budget, digits=2)}{lifted}."
    )
    yield ""
    yield f"{'':<40}{'promoted':>10}{'lost':>8}{'at most':>9}{'the budget lost':>17}{'stopped':>9}"
    for title, found in simulated.values():
        each = _summary(found, lifetime)
        yield (
            f"{title:<40}{each['promotions']:>10.1f}{100 * each['lost_mean']:>8.1f}"
            f"{100 * each['lost_most']:>9.1f}{_rate(each['lost_the_budget']):>17}{_rate(each['frozen']):>9}"
        )
    yield ""
    kept, harmless = _summary(simulated["budget"][1], lifetime), _summary(simulated["harmless"][1], lifetime)
    limit = _rate(kept["lost_the_budget_upper_95"])
    promised = f"{say.percent(lifetime.alpha)} promised"
    if not audited_together(lifetime):
        promised = "nothing promised with so few sealed records"
    stopped = f"it stopped {_rate(harmless['frozen'])} of the harmless lifetimes"
    if lifetime.lifted:
        stopped += f", and {harmless['failures']:.1f} times each on average"
    else:
        stopped += " before their end"
    yield (
        f"With the budget, {_rate(kept['lost_the_budget'])} of the lifetimes lost "
        f"{say.with_unit(budget, digits=2)} or more (at most {limit}, 95 % sure; {promised}); {stopped}."
    )


def _audited(lifetime: Lifetime) -> str:
    together = audited_together(lifetime)
    if together == 1:
        return ""
    if together:
        return f", held against the budget {together} experiences at a time"
    return ", too few for the budget, so that wider margins are held as far as these records settle one"


def plan_lines(
    config: GateConfig, plan: Plan, *, gate: float, audit: float, records: int | None
) -> Iterator[str]:
    """One sentence or two for each promise."""
    passes = (
        f"An update that lost nothing, and flips {say.percent(config.planned_churn)} of the answers, passes "
        f"a full block {_rate(plan.block_passes)} of the time (first try, alpha {config.alpha:g})."
    )
    if plan.sized is not None and records is not None:
        yield from _sized_lines(config, plan, plan.sized, passes, records)
    else:
        yield from _unsized_lines(config, plan, passes, gate=gate, audit=audit)
    yield (
        f"A class with at most {say.percent_of(config.margin)} of the gate records is guarded by itself from "
        f"{plan.rare_records} of them on ({_of_share(plan.rare_records, gate)} of the class): its recall may "
        f"lose less than {say.with_unit(plan.rare_margin)}, and the less the more it has."
    )


def _unsized_lines(
    config: GateConfig, plan: Plan, passes: str, *, gate: float, audit: float
) -> Iterator[str]:
    yield (
        f"Past experiences are judged in blocks of neighbours. A block is full at {plan.block_records:,} "
        f"gate records, which are those of {_of_share(plan.block_records, gate)} with split.gate at "
        f"{gate:g}, and may lose less than {say.with_unit(config.margin, digits=2)}. {passes}"
    )
    yield f"While all have fewer than {plan.least_records:,} gate records, a person decides."
    yield (
        f"One experience by itself may lose less than {say.with_unit(plan.single_margin)} from "
        f"{plan.single_records:,} gate records on ({_of_share(plan.single_records, gate)}), and the less "
        "the more it has; a smaller one is judged with its neighbours."
    )
    yield (
        f"The budget, {say.with_unit(config.budget, digits=2)} since each was learnt, is held from "
        f"{plan.budget_together:,} sealed records on, those of {_of_share(plan.budget_together, audit)} "
        f"with split.audit at {audit:g}; or from {plan.budget_alone:,} of one experience "
        f"({_of_share(plan.budget_alone, audit)}). From {plan.audited_records:,} on, a wider margin is held."
    )


def _of_share(part: int, share: float) -> str:
    """Records of which this share are so many, on average."""
    return f"{ceil(part / share * (1 - 1e-12)):,} records"


def _sized_lines(config: GateConfig, plan: Plan, sized: Sized, passes: str, records: int) -> Iterator[str]:
    margin = say.with_unit(config.margin, digits=2)
    yield (
        f"Experiences of {records:,} records: {sized.gate_records:,} to judge by and "
        f"{sized.sealed_records:,} sealed."
    )
    if sized.gate_records >= plan.block_records:
        yield f"Each is a block by itself, and may lose less than {margin}. {passes}"
    else:
        yield (
            f"{sized.block_experiences} of them fill a block ({plan.block_records:,} gate records), which "
            f"may lose less than {margin}. {passes}"
        )
        yield from _short_lines(plan, sized)
        yield _single_line(plan, sized)
    yield _budget_line(config, sized)


def _short_lines(plan: Plan, sized: Sized) -> Iterator[str]:
    """Blocks that are not full: those of the first experiences, and where never so many are judged."""
    until = "Until the first block is full, a person decides the more often, the more answers flip"
    if sized.least_experiences > 1:
        until += (
            f", and always while fewer than {sized.least_experiences} are learnt: fewer than "
            f"{plan.least_records:,} gate records settle nothing"
        )
    yield f"{until}."
    if sized.judged_records < plan.block_records:
        yield (
            f"Only {sized.judged_records:,} records of so many are judged, so no block is ever full: raise "
            "gate.max_holdouts or gate.archive_records, or the margin."
        )


def _single_line(plan: Plan, sized: Sized) -> str:
    less = f"may lose less than {say.with_unit(sized.single_margin)}"
    if sized.unseen is None:
        return f"Each by itself {less}."
    return (
        f"One by itself is too small ({plan.single_records:,} gate records settle "
        f"{say.with_unit(plan.single_margin)}): {sized.single_experiences} neighbours are judged as one, "
        f"which {less}. Up to {say.with_unit(sized.unseen)} could be lost unseen on one of them."
    )


def _budget_line(config: GateConfig, sized: Sized) -> str:
    budget = f"The budget, {say.with_unit(config.budget, digits=2)} since each was learnt, is"
    if sized.budget_from == 1:
        return f"{budget} held from the first experience on."
    if sized.budget_from is None:
        held = f"{budget} never held: too few records are sealed."
    else:
        held = f"{budget} held once {sized.budget_from} are learnt."
    if sized.audited_from is None or sized.audited_margin is None:
        return f"{held} Until then, only what is shown to be lost stops promotion."
    wider = f"up to {say.with_unit(sized.audited_margin)}, is held"
    once = "the first is" if sized.audited_from == 1 else f"{sized.audited_from} are"
    return f"{held} A wider margin, {wider} once {once} learnt."


def simulated(
    holdout: Holdout,
    holdouts: int,
    alpha: float,
    rates: Rated,
    lifetime: Lifetime | None,
    simulated: Simulated,
) -> dict[str, Any]:
    """All of it as JSON."""
    worst, churn = _worst(holdout)
    document: dict[str, Any] = {
        "holdout": asdict(holdout),
        "holdouts": holdouts,
        "alpha": alpha,
        "worst_false_promotion": worst,
        "worst_churn": churn,
        "rates": [
            {"holdouts": of, "lost_on": on, "lost_on_one": lost, **asdict(found)}
            for of, on, lost, found in rates
        ],
    }
    if lifetime:
        lifetimes = [{"rule": name, **_summary(found, lifetime)} for name, (_, found) in simulated.items()]
        document |= {"lifetime": asdict(lifetime), "lifetimes": lifetimes}
    return document


def _summary(simulated: LifetimeOutcomes, lifetime: Lifetime) -> dict[str, float]:
    beyond, limit = simulated.beyond(lifetime.budget or 0.0)
    return {
        "promotions": float(simulated.promotions.mean()),
        "lost_mean": float(simulated.lost.mean()),
        "lost_most": float(simulated.lost.max()),
        "lost_the_budget": beyond,
        "lost_the_budget_upper_95": limit,
        "frozen": float(simulated.frozen.mean()),
        "failures": float(simulated.failures.mean()),
    }


def _many(holdouts: int) -> str:
    return "one past holdout" if holdouts == 1 else f"{holdouts} past holdouts"


def _rate(share: float) -> str:
    """A rate with one digit, and never rounded to none or all of it."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %"
