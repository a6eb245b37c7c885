"""The commands that say, before a pipeline goes live, what its gate will do. They need no service."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.commands import Json, print_json
from service.errors import HoldfastError

if TYPE_CHECKING:
    from service.gate.lives import Life, Lives
    from service.gate.simulate import Holdout, Rates

gate_app = typer.Typer(
    help="Try out margins and holdout sizes before a pipeline goes live.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

MOST_ALPHA = 0.1
MOST_RECORDS = 10_000_000
DRAWS = 20_000
"""Updates drawn, where a rate is no exact sum; fewer over many holdouts."""

Margin = Annotated[
    float, typer.Option(help="A past holdout may truly lose less than this; 0.02 is 2 points.")
]
Churn = Annotated[float, typer.Option(help="Share of the past answers that an update flips.")]
Holdouts = Annotated[int, typer.Option(help="Past holdouts.")]
Alpha = Annotated[float, typer.Option(help="Error rate that is promised.")]
Accuracy = Annotated[float, typer.Option(help="The champion's share of right answers on past records.")]
Seed = Annotated[int, typer.Option(help="The same seed draws the same numbers.")]


@gate_app.command("simulate")
def gate_simulate(
    margin: Margin = 0.02,
    churn: Churn = 0.06,
    n: Annotated[int, typer.Option(help="Records of each holdout's gate part.")] = 1000,
    holdouts: Holdouts = 20,
    alpha: Alpha = 0.05,
    attempt: Annotated[
        int | None,
        typer.Option(help="Which try of the update, 1, 2 ..., by what it may spend; default: all."),
    ] = None,
    updates: Annotated[int, typer.Option(help="Also simulate lives of so many updates in a row.")] = 0,
    loss: Annotated[float, typer.Option(help="What each update of a life truly loses.")] = 0.004,
    budget: Annotated[float, typer.Option(help="What a life may lose in all, against the anchor.")] = 0.05,
    audit: Annotated[int, typer.Option(help="Records of each holdout's sealed audit part.")] = 1500,
    lives: Annotated[int, typer.Option(help="Lives to simulate.")] = 300,
    accuracy: Accuracy = 0.9,
    seed: Seed = 0,
    json_output: Json = False,
) -> None:
    """How often a gate promotes what it should, and what it should not."""
    _check(margin=margin, churn=churn, n=n, holdouts=holdouts, alpha=alpha, seed=seed)
    from service.gate.lives import Life
    from service.gate.simulate import Holdout

    spending = _spending(alpha, attempt)
    holdout = Holdout(n, churn, margin, spending)
    life = None
    if updates:
        life = Life(
            updates, loss, churn, n, audit, margin, budget, alpha, spending, holdouts, accuracy=accuracy
        )
        _check_life(life, lives)
    with _progress(f"simulating {holdouts} holdouts", 6 + (4 * updates if life else 0)) as step:
        draws = min(DRAWS, max(2000, 20 * DRAWS // holdouts))
        rates = _rates(holdout, holdouts, draws=draws, seed=seed, step=step)
        lived = _lived(life, lives, seed=seed, step=step) if life else {}
    if json_output:
        document: dict[str, Any] = {
            "holdout": asdict(holdout),
            "holdouts": holdouts,
            "alpha": alpha,
            "rates": [
                {"holdouts": many, "lost_on_one": lost, **asdict(found)} for many, lost, found in rates
            ],
        }
        if life:
            document["life"] = asdict(life)
            document["lives"] = [
                {"rule": name, **_summary(found, budget)} for name, (_, found) in lived.items()
            ]
        return print_json(document)
    for line in _rate_lines(holdout, holdouts, alpha, rates):
        typer.echo(line)
    if life:
        for line in _life_lines(life, lives, lived):
            typer.echo(line)


@gate_app.command("plan")
def gate_plan(
    margin: Margin = 0.02,
    churn: Churn = 0.06,
    holdouts: Holdouts = 20,
    alpha: Alpha = 0.05,
    power: Annotated[float, typer.Option(help="A harmless update is to pass this often.")] = 0.9,
    n: Annotated[int | None, typer.Option(help="Also: what so many records in each holdout settle.")] = None,
    gate: Annotated[float, typer.Option(help="The pipeline's split.gate.")] = 0.25,
    attempt: Annotated[int, typer.Option(help="Which try of the update, by what it may spend.")] = 1,
    updates: Annotated[int, typer.Option(help="Looks at the budget that are planned.")] = 50,
    budget: Annotated[float, typer.Option(help="What may be lost in all, against the anchor.")] = 0.05,
    audit: Annotated[float, typer.Option(help="The pipeline's split.audit.")] = 0.05,
    accuracy: Accuracy = 0.9,
    json_output: Json = False,
) -> None:
    """How many holdout records a pipeline needs, so that harmless updates pass without a person."""
    _check(margin=margin, churn=churn, n=1 if n is None else n, holdouts=holdouts, alpha=alpha)
    _between("power", power, 0, 1)
    _between("gate", gate, 0, 1)
    _between("audit", audit, 0, 1)
    _between("budget", budget, 0, 0.5)
    _between("accuracy", accuracy, 0, 1)
    _whole("updates", updates, 1, 10_000)
    if churn / 2 > min(accuracy, 1 - accuracy):
        raise HoldfastError(
            f"With {_percent(accuracy)} right, {_percent(churn)} cannot flip without anything being lost.",
            fix="Give a smaller --churn, or the --accuracy that the champion has.",
        )
    from service.gate import planning

    each = planning.power_each(power, holdouts)
    spending = _spending(alpha, attempt)
    with _progress("planning", 3) as step:
        needed = planning.needed_records(margin=margin, alpha=spending, churn=churn, power=each)
        step()
        sealed = planning.audit_records(
            budget=budget, alpha=alpha, churn=churn, accuracy=accuracy, updates=updates, power=each
        )
        step()
        settled = None if n is None else planning.settled_margin(n, alpha=spending, churn=churn, power=each)
        step()
    experience = planning.experience_records(needed, gate)
    if json_output:
        return print_json(
            {
                "margin": margin,
                "churn": churn,
                "holdouts": holdouts,
                "alpha": alpha,
                "alpha_spent": spending,
                "power": power,
                "power_each": each,
                "holdout_records": needed,
                "experience_records": experience,
                "audit_records": sealed,
                "experience_records_for_audit": planning.experience_records(sealed, audit),
                "n": n,
                "settled_margin": settled,
            }
        )
    typer.echo(
        f"{needed:,} records in each holdout let an update that lost nothing pass {_percent(power)} of the "
        f"time with {_many(holdouts)}: margin {_points(margin)}, {_percent(churn)} of the answers flip, "
        f"alpha {alpha:g} ({spending:.2g} on try {attempt})."
    )
    typer.echo(f"So cut experiences of {experience:,} records, with split.gate at {gate:g}.")
    typer.echo(
        f"The budget of {_points(budget)} over {updates} updates needs {sealed:,} records in each sealed "
        f"audit part, or experiences of {planning.experience_records(sealed, audit):,} with split.audit at "
        f"{audit:g}."
    )
    if n is not None:
        typer.echo(
            f"{n:,} records in each holdout settle "
            + (f"a margin of {_points(settled)}." if settled else "no margin at all.")
        )


_Rated = list[tuple[int, float, "Rates"]]
_Lived = dict[str, tuple[str, "Lives"]]


def _rates(holdout: "Holdout", holdouts: int, *, draws: int, seed: int, step: Any) -> _Rated:
    """Of one holdout and of all: nothing lost, or one or two margins lost on one of them."""
    from service.gate.simulate import rates_of_many

    found: _Rated = []
    for many in sorted({1, holdouts}):
        for lost in (0.0, holdout.margin, 2 * holdout.margin):
            losses = [lost, *[0.0] * (many - 1)]
            found.append((many, lost, rates_of_many(holdout, losses, draws=draws, seed=seed)))
            step()
    return found


def _lived(life: "Life", lives: int, *, seed: int, step: Any) -> _Lived:
    from service.gate.lives import simulate

    loses = f"each loses {_points(life.loss)}"
    kinds = {
        "threshold": (f"{loses}; a threshold alone", replace(life, rule="threshold", budget=None)),
        "step": (f"{loses}; the step alone", replace(life, budget=None)),
        "budget": (f"{loses}; step and budget", life),
        "harmless": ("each loses nothing; step and budget", replace(life, loss=0.0)),
    }
    return {
        name: (told, simulate(kind, lives=lives, seed=seed, progress=step))
        for name, (told, kind) in kinds.items()
    }


def _summary(lived: "Lives", budget: float) -> dict[str, float]:
    beyond, limit = lived.beyond(budget)
    return {
        "promotions": float(lived.promotions.mean()),
        "lost_mean": float(lived.lost.mean()),
        "lost_most": float(lived.lost.max()),
        "lost_the_budget": beyond,
        "lost_the_budget_upper_95": limit,
        "frozen": float(lived.frozen.mean()),
    }


def _rate_lines(holdout: "Holdout", holdouts: int, alpha: float, rates: _Rated) -> Iterator[str]:
    from service.gate.stats import floor_n

    yield (
        f"Margin {_points(holdout.margin)}, alpha {holdout.alpha:.3g}, {_percent(holdout.churn)} of the "
        f"answers flip, {holdout.n:,} records in each holdout."
    )
    yield ""
    yield f"{'truly lost':<30}{'promoted':>10}{'a person':>10}{'rejected':>10}{'by a threshold':>16}"
    for many, lost, found in rates:
        where = "" if many == 1 else f" on one of {many}" if lost else f" on all {many}"
        name = f"{_points(lost) if lost else 'nothing'}{where or ' on one holdout'}"
        shares = "".join(f"{_rate(share):>10}" for share in (found.promote, found.review, found.reject))
        yield f"{name:<30}{shares}{_rate(found.threshold):>16}"
    yield ""
    harmful, harmless = rates[1][2], rates[-3][2]
    yield (
        f"An update that lost {_points(holdout.margin)} goes out {_rate(harmful.promote)} of the time "
        f"(promised: at most {_percent(alpha)}); "
        f"a threshold on the estimated loss would let it out {_rate(harmful.threshold)} of the time."
    )
    yield (
        f"An update that lost nothing passes {_rate(harmless.promote)} of the time with {_many(holdouts)}; "
        "holdfast gate plan says how many records it takes."
    )
    floor = int(floor_n(holdout.margin, holdout.alpha))
    if holdout.n < floor:
        yield (
            f"Holdouts of fewer than {floor:,} records are not judged alone: the gate would judge these "
            f"together, as one of {holdout.n * holdouts:,} records: "
            f"try --n {holdout.n * holdouts} --holdouts 1."
        )


def _life_lines(life: "Life", lives: int, lived: _Lived) -> Iterator[str]:
    budget = life.budget or 0.0
    yield ""
    yield (
        f"{lives} lives of {life.updates} updates; {_many(life.holdouts)} with {life.gate:,} records to "
        f"judge by and {life.audit:,} sealed; budget {_points(budget)}."
    )
    yield ""
    yield f"{'':<40}{'promoted':>10}{'lost':>8}{'at most':>9}{'the budget lost':>17}{'stopped':>9}"
    for told, found in lived.values():
        each = _summary(found, budget)
        yield (
            f"{told:<40}{each['promotions']:>10.1f}{100 * each['lost_mean']:>8.1f}"
            f"{100 * each['lost_most']:>9.1f}{_rate(each['lost_the_budget']):>17}{_rate(each['frozen']):>9}"
        )
    yield ""
    kept, harmless = _summary(lived["budget"][1], budget), _summary(lived["harmless"][1], budget)
    yield (
        f"With the budget, {_rate(kept['lost_the_budget'])} of the lives lost {_points(budget)} or more "
        f"(at most {_rate(kept['lost_the_budget_upper_95'])}, 95 % sure; promised: {_percent(life.alpha)}); "
        f"it stopped {_rate(harmless['frozen'])} of the harmless lives before their end."
    )


def _check(*, margin: float, churn: float, n: int, holdouts: int, alpha: float, seed: int = 0) -> None:
    _between("margin", margin, 0, 0.5)
    if not 0 <= churn < 1:
        _refuse("churn", churn, "at least 0 and below 1")
    _whole("n", n, 1, MOST_RECORDS)
    _whole("holdouts", holdouts, 1, 1000)
    if not 0 < alpha <= MOST_ALPHA:
        _refuse("alpha", alpha, f"above 0, and at most {MOST_ALPHA:g}")
    _whole("seed", seed, 0, 2**32)


def _check_life(life: "Life", lives: int) -> None:
    _whole("updates", life.updates, 1, 10_000)
    _whole("audit", life.audit, 1, MOST_RECORDS)
    _whole("lives", lives, 1, 100_000)
    _between("budget", life.budget or 0.0, 0, 0.5)
    if wrong := life.problem():
        raise HoldfastError(
            f"There is no such life: {wrong}.",
            fix="Change --loss, --churn, --updates or --accuracy.",
        )


def _spending(alpha: float, attempt: int | None) -> float:
    from service.gate.stats import spent

    if attempt is None:
        return alpha
    _whole("attempt", attempt, 1, 1000)
    return float(spent(alpha, attempt))


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low < value < high:
        _refuse(name, value, f"above {low:g} and below {high:g}")


def _whole(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        _refuse(name, value, f"from {least:,} to {most:,}")


def _refuse(name: str, value: float, allowed: str) -> None:
    raise HoldfastError(
        f"--{name} is {value:g}; it must be {allowed}.", fix="Shares are written so: 0.02 is 2 points."
    )


def _points(share: float) -> str:
    from service.gate.sentences import with_unit

    return with_unit(share)


def _percent(share: float) -> str:
    from service.gate.sentences import percent

    return percent(share)


def _rate(share: float) -> str:
    """A rate with one digit, and never rounded to none or all of it."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %"


def _many(holdouts: int) -> str:
    return "one past holdout" if holdouts == 1 else f"{holdouts} past holdouts"


@contextmanager
def _progress(told: str, steps: int) -> Iterator[Any]:
    """Something to call after each step: a bar for a person at a terminal; nothing where nobody watches."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    progress: Progress = Progress(
        *columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True
    )
    with progress:
        task = progress.add_task(told, total=steps)
        yield lambda: progress.update(task, advance=1)
