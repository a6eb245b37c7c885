"""Text output of `holdfast gate simulate` and `plan`: tables that fit a terminal, and what they mean."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from service.gate import sentences as say
from service.gate.simulation.lifetimes import Lifetime, LifetimeOutcomes, audited_together
from service.gate.simulation.planning import Plan, Wish
from service.gate.simulation.rates import Holdout, Rates, promote_rate, worst_false_promotion
from service.gate.stats import floor_n

Rated = Sequence[tuple[int, float, Rates]]
"""Holdouts, what was lost on one of them, and the rates."""
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
    for of, lost, found in rates:
        where = "" if of == 1 else f" on one of {of}" if lost else f" on all {of}"
        name = f"{say.with_unit(lost, digits=2) if lost else 'nothing'}{where or ' on one holdout'}"
        shares = "".join(f"{_rate(share):>10}" for share in (found.promote, found.review, found.reject))
        yield f"{name:<30}{shares}{_rate(found.threshold):>16}"
    yield ""
    harmful, harmless = rates[1][2], rates[-3][2]
    worst, _ = _worst(holdout)
    yield (
        f"An update that lost {say.with_unit(holdout.margin, digits=2)} goes out {_rate(harmful.promote)} of "
        f"the time, at most {_rate(worst)} whatever share flips ({say.percent_of(alpha)} are promised); "
        f"a threshold on the estimated loss would let it out {_rate(harmful.threshold)} of the time."
    )
    yield (
        f"An update that lost nothing passes {_rate(harmless.promote)} of the time with {_many(holdouts)}; "
        "holdfast gate plan says how many records it takes."
    )
    floor = int(floor_n(holdout.margin, holdout.alpha))
    if holdout.n < floor:
        few = f"Holdouts of fewer than {floor:,} records are not judged alone"
        together = f"as one of {holdout.n * holdouts:,} records: try --n {holdout.n * holdouts} --holdouts 1."
        if holdouts == 1:
            yield f"{few}: a person would decide."
        else:
            yield f"{few}: the gate would judge these together, {together}"


def _worst(holdout: Holdout) -> tuple[float, float]:
    """The largest rate of false promotions, and the churn where it is met; the one asked for among them."""
    worst, churn = worst_false_promotion(holdout.n, margin=holdout.margin, alpha=holdout.alpha)
    own = promote_rate(holdout, holdout.margin)
    return (own, holdout.churn) if own > worst else (worst, churn)


def lifetime_lines(lifetime: Lifetime, lifetimes: int, simulated: Simulated) -> Iterator[str]:
    budget = lifetime.budget or 0.0
    yield ""
    yield (
        f"{lifetimes} lifetimes of {lifetime.updates} updates; {_many(lifetime.holdouts)} with "
        f"{lifetime.gate:,} records to judge by and {lifetime.audit:,} sealed{_audited(lifetime)}; "
        f"budget {say.with_unit(budget, digits=2)}."
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
    yield (
        f"With the budget, {_rate(kept['lost_the_budget'])} of the lifetimes lost "
        f"{say.with_unit(budget, digits=2)} or more (at most {limit}, 95 % sure; "
        f"{say.percent(lifetime.alpha)} promised); "
        f"it stopped {_rate(harmless['frozen'])} of the harmless lifetimes before their end."
    )


def _audited(lifetime: Lifetime) -> str:
    together = audited_together(lifetime)
    if together == 1:
        return ""
    return f", audited {together} experiences at a time" if together else ", too few for an audit to be asked"


def plan_lines(wish: Wish, plan: Plan) -> Iterator[str]:
    both = f"{plan.holdout_records:,} records in each holdout, and {plan.audit_records:,} sealed ones"
    asked = f"margin {say.with_unit(wish.margin, digits=2)}, {say.percent(wish.churn)} of the answers flip"
    yield (
        f"{both}, let an update that lost nothing pass {say.percent(wish.power)} of the time with "
        f"{_many(wish.holdouts)}: {asked}, alpha {wish.alpha:g} ({wish.spending:.2g} on try {wish.attempt})."
    )
    yield f"So cut experiences of {plan.experience_records:,} records, with split.gate at {wish.gate:g}."
    by_size = f"experiences of {plan.experience_records_for_audit:,} with split.audit at {wish.audit:g}"
    share = plan.audit_share
    sealed = (
        f"The budget of {say.with_unit(wish.budget, digits=2)} over {wish.updates} updates needs "
        f"{plan.audit_records:,} records in each sealed audit part: "
    )
    if plan.experience_records_for_audit <= plan.experience_records:
        yield f"{sealed}experiences of that size hold them with split.audit at {wish.audit:g}."
    elif share + wish.gate < 0.9:
        yield f"{sealed}split.audit at {share:g}, or {by_size}."
    else:
        yield f"{sealed}{by_size}."
    if plan.experience_records_for_audit > plan.experience_records:
        yield "With fewer, neighbouring experiences are audited as one."
    if plan.n is not None:
        margin = plan.settled_margin
        settled = f"a margin of {say.with_unit(margin)}" if margin else "no margin at all"
        have = (
            "1 record in each holdout settles"
            if plan.n == 1
            else f"{plan.n:,} records in each holdout settle"
        )
        yield f"{have} {settled}."


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
        "rates": [{"holdouts": of, "lost_on_one": lost, **asdict(found)} for of, lost, found in rates],
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
