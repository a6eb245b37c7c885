"""Commands `holdfast gate`: simulate and plan the gate, count its questions, print its schema."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated

import typer

from service.commands.pipelines import Json, print_json
from service.errors import HoldfastError

if TYPE_CHECKING:
    from service.gate.simulation.lifetimes import Lifetime, LifetimeOutcomes
    from service.gate.simulation.rates import Holdout, Rates

gate_app = typer.Typer(
    help="Try out margins and holdout sizes before a pipeline goes live.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

MOST_ALPHA = 0.1
MOST_CHURN = 0.5
MOST_RECORDS = 10_000_000
WIDTH = 100
DRAWS = 20_000
"""Updates drawn, where a rate is no exact sum; fewer over many holdouts."""

Step = Callable[[], None]
"""Called after each step of a computation."""

Margin = Annotated[
    float, typer.Option(help="A past holdout may truly lose less than this; 0.02 is 2 points.")
]
Churn = Annotated[float, typer.Option(help="Share of the past answers that an update flips.")]
Holdouts = Annotated[int, typer.Option(help="Past holdouts.")]
Alpha = Annotated[float, typer.Option(help="Error rate that is promised.")]
DeclaredMargin = Annotated[
    float | None, typer.Option(help="A block of past experiences may truly lose less than this.")
]
DeclaredAlpha = Annotated[float | None, typer.Option(help="Error rate that is promised.")]
Budget = Annotated[float | None, typer.Option(help="What may be lost in all, against the anchor.")]
Gate = Annotated[float | None, typer.Option(help="The pipeline's split.gate.")]
Audit = Annotated[float | None, typer.Option(help="The pipeline's split.audit.")]
PresetName = Annotated[str | None, typer.Option("--preset", help="cautious, balanced or eager.")]
PipelineFile = Annotated[
    Path | None,
    typer.Option(
        "--pipeline",
        help="A pipeline's YAML file: its gate, split and trigger, where no option says otherwise.",
    ),
]
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
    updates: Annotated[int, typer.Option(help="Also simulate lifetimes of so many updates in a row.")] = 0,
    loss: Annotated[float, typer.Option(help="What each update of a lifetime truly loses.")] = 0.004,
    budget: Annotated[
        float, typer.Option(help="What a lifetime may lose in all, against the anchor.")
    ] = 0.05,
    audit: Annotated[int, typer.Option(help="Records of each holdout's sealed audit part.")] = 1500,
    lifetimes: Annotated[int, typer.Option(help="Lifetimes to simulate.")] = 300,
    lifted: Annotated[
        bool,
        typer.Option("--lifted", help="A person lifts every freeze at once; else the first one ends it."),
    ] = False,
    accuracy: Accuracy = 0.9,
    seed: Seed = 0,
    json_output: Json = False,
) -> None:
    """How often a gate promotes what it should, and what it should not."""
    _check(margin=margin, churn=churn, n=n, holdouts=holdouts, alpha=alpha, seed=seed)
    _between("accuracy", accuracy, 0, 1)
    from service.commands import gate_tables as tables
    from service.gate.simulation.lifetimes import Lifetime
    from service.gate.simulation.rates import Holdout

    spending = _spending(alpha, attempt)
    holdout = Holdout(n, churn, margin, spending)
    lifetime = None
    if updates:
        lifetime = Lifetime(
            updates, loss, churn, n, audit, margin, budget, alpha, spending, holdouts, accuracy, lifted=lifted
        )
        _check_lifetime(lifetime, lifetimes)
    with _progress(f"simulating {holdouts} holdouts", 7 + (4 * updates if lifetime else 0)) as step:
        draws = min(DRAWS, max(2000, 20 * DRAWS // holdouts))
        rates = _rates(holdout, holdouts, draws=draws, seed=seed, step=step)
        simulated = _simulated(lifetime, lifetimes, seed=seed, step=step) if lifetime else {}
    if json_output:
        return print_json(tables.simulated(holdout, holdouts, alpha, rates, lifetime, simulated))
    _say(tables.rate_lines(holdout, holdouts, alpha, rates))
    if lifetime:
        _say(tables.lifetime_lines(lifetime, lifetimes, simulated))


@gate_app.command("plan")
def gate_plan(
    records: Annotated[int | None, typer.Option(help="Records of each experience; default: of any.")] = None,
    margin: DeclaredMargin = None,
    churn: Annotated[
        float | None,
        typer.Option(help="Share of its answers that a harmless update may flip (planned_churn)."),
    ] = None,
    alpha: DeclaredAlpha = None,
    budget: Budget = None,
    gate: Gate = None,
    audit: Audit = None,
    preset: PresetName = None,
    pipeline: PipelineFile = None,
    json_output: Json = False,
) -> None:
    """What a pipeline gets: from how many records on the gate keeps which promise."""
    from service.commands.declared_gate import declared_gate

    knobs = {"margin": margin, "planned_churn": churn, "alpha": alpha, "budget": budget, "preset": preset}
    _check_given(margin=margin, churn=churn, alpha=alpha, budget=budget, gate=gate, audit=audit)
    declared = declared_gate(pipeline, gate=knobs, split={"gate": gate, "audit": audit}, records=records)
    config, gate, audit = declared.config, declared.split.gate, declared.split.audit
    records = declared.records
    _check_plan(
        margin=config.margin,
        churn=config.planned_churn,
        alpha=config.alpha,
        budget=config.budget,
        gate=gate,
        audit=audit,
    )
    if records is not None:
        _whole("records", records, 1, MOST_RECORDS)
        if round(records * min(gate, audit)) < 1:
            raise HoldfastError(
                f"Of {records:,} records none would be judged, or none sealed.",
                fix="Give more --records, or larger shares --gate and --audit.",
            )
    from service.commands import gate_tables as tables
    from service.gate.simulation.planning import plan

    planned = plan(config, gate=gate, audit=audit, records=records)
    if json_output:
        document = {"gate": config.model_dump(mode="json"), "split": {"gate": gate, "audit": audit}}
        return print_json({**document, "records": records, **asdict(planned)})
    _say(tables.plan_lines(config, planned, gate=gate, audit=audit, records=records))


@gate_app.command("questions")
def gate_questions(
    records: Annotated[
        int | None, typer.Option(help="Records of each experience; default: 1,000, or the trigger's.")
    ] = None,
    churn: Churn = 0.06,
    better: Annotated[
        float, typer.Option(help="How much worse than past data the champion answers new data.")
    ] = 0.0,
    margin: DeclaredMargin = None,
    alpha: DeclaredAlpha = None,
    budget: Budget = None,
    gate: Gate = None,
    audit: Audit = None,
    preset: PresetName = None,
    pipeline: PipelineFile = None,
    updates: Annotated[int, typer.Option(help="Updates of each lifetime.")] = 100,
    lifetimes: Annotated[int, typer.Option(help="Lifetimes to simulate.")] = 5,
    accuracy: Accuracy = 0.9,
    seed: Seed = 0,
    json_output: Json = False,
) -> None:
    """How often the gate asks a person about a pipeline that loses nothing, and which guard asks."""
    from service.commands.declared_gate import declared_gate

    _check_given(margin=margin, churn=None, alpha=alpha, budget=budget, gate=gate, audit=audit)
    knobs = {"margin": margin, "learning_margin": margin, "alpha": alpha, "budget": budget, "preset": preset}
    declared = declared_gate(pipeline, gate=knobs, split={"gate": gate, "audit": audit}, records=records)
    config, gate, audit = declared.config, declared.split.gate, declared.split.audit
    size = 1000 if declared.records is None else declared.records
    _check(margin=config.margin, churn=churn, n=size, holdouts=1, alpha=config.alpha, seed=seed)
    for name, share in (("gate", gate), ("audit", audit), ("accuracy", accuracy)):
        _between(name, share, 0, 1)
    _between("budget", config.budget, 0, 0.5)
    if not 0 <= better < 1:
        _refuse("better", better, "at least 0 and below 1")
    _whole("updates", updates, 1, 1000)
    _whole("lifetimes", lifetimes, 1, 1000)
    from service.commands import gate_questions as tables
    from service.gate.simulation import questions

    lifetime = questions.HarmlessLifetime(size, churn, better, updates, gate, audit, accuracy)
    if wrong := lifetime.problem():
        raise HoldfastError(
            f"Such a lifetime is impossible: {wrong}.", fix="Change --churn, --accuracy or the split."
        )
    with _progress(f"simulating {lifetimes} lifetimes", lifetimes) as step:
        found = questions.lifetimes(lifetime, config, many=lifetimes, seed=seed, progress=step)
    if json_output:
        return print_json(tables.document(lifetime, config, found))
    _say(tables.lines(lifetime, config, found))


@gate_app.command("presets")
def gate_presets(
    simulate: Annotated[
        bool,
        typer.Option(
            "--simulate", help="Simulate again, for about 10 minutes, and print the table's module."
        ),
    ] = False,
    lifetimes: Annotated[int, typer.Option(help="With --simulate: lifetimes of each cell.")] = 10,
    json_output: Json = False,
) -> None:
    """What each preset sets, how often it asks, and what one experience may lose under it."""
    from service.commands import presets as tables

    if not simulate:
        return print_json(tables.document()) if json_output else _say(tables.lines())
    _whole("lifetimes", lifetimes, 2, 1000)
    from service.gate.presets import PRESETS
    from service.gate.simulation import asked, asked_table

    updates, seed = asked_table.UPDATES, asked_table.SEED
    with _progress("simulating the presets", len(PRESETS) * len(asked.CHURNS) * len(asked.SIZES)) as step:
        cells = asked.simulated_table(many=lifetimes, updates=updates, seed=seed, progress=step)
    for line in tables.module(cells, lifetimes=lifetimes, updates=updates, seed=seed):
        typer.echo(line)


@gate_app.command("schema")
def gate_schema() -> None:
    """The JSON Schema of a verdict: every field, and every number with what it means."""
    from service.gate import schema

    print_json(schema.schema())


def _rates(
    holdout: "Holdout", holdouts: int, *, draws: int, seed: int, step: Step
) -> "list[tuple[int, int, float, Rates]]":
    """Rates for one holdout and for all: nothing lost, one or two margins on one, one margin on all."""
    from service.gate.simulation.rates import rates_of_many

    margin = holdout.margin
    asked = [(1, 0, 0.0), (1, 1, margin), (1, 1, 2 * margin)]
    if holdouts > 1:
        asked += [(holdouts, 0, 0.0), (holdouts, 1, margin), (holdouts, 1, 2 * margin)]
        asked.append((holdouts, holdouts, margin))
    found = []
    for many, on, lost in asked:
        losses = [*[lost] * on, *[0.0] * (many - on)]
        found.append((many, on, lost, rates_of_many(holdout, losses, draws=draws, seed=seed)))
        step()
    return found


def _simulated(
    lifetime: "Lifetime", lifetimes: int, *, seed: int, step: Step
) -> "dict[str, tuple[str, LifetimeOutcomes]]":
    from service.gate.sentences import with_unit
    from service.gate.simulation.lifetimes import simulate

    loses = f"each loses {with_unit(lifetime.loss, digits=2)}"
    kinds = {
        "threshold": (f"{loses}; a threshold alone", replace(lifetime, rule="threshold", budget=None)),
        "step": (f"{loses}; the step alone", replace(lifetime, budget=None)),
        "budget": (f"{loses}; step and budget", lifetime),
        "harmless": ("each loses nothing; step and budget", replace(lifetime, loss=0.0)),
    }
    return {
        name: (title, simulate(kind, lifetimes=lifetimes, seed=seed, progress=step))
        for name, (title, kind) in kinds.items()
    }


_LEAST_PLANNED = 0.001
"""A tenth of a point: smaller margins take millions of records, and minutes to plan for."""


def _check(*, margin: float, churn: float, n: int, holdouts: int, alpha: float, seed: int = 0) -> None:
    _between("margin", margin, 0, 0.5)
    if not 0 <= churn < 1:
        _refuse("churn", churn, "at least 0 and below 1")
    _whole("n", n, 1, MOST_RECORDS)
    _whole("holdouts", holdouts, 1, 1000)
    if not 0 < alpha <= MOST_ALPHA:
        _refuse("alpha", alpha, f"above 0, and at most {MOST_ALPHA:g}")
    _whole("seed", seed, 0, 2**32)


def _check_plan(
    *, margin: float, churn: float, alpha: float, budget: float, gate: float, audit: float
) -> None:
    _check(margin=margin, churn=churn, n=1, holdouts=1, alpha=alpha)
    for name, value in (("margin", margin), ("budget", budget)):
        if not value >= _LEAST_PLANNED:
            _refuse(name, value, f"at least {_LEAST_PLANNED:g} to be planned for")
    if not 0 < churn <= MOST_CHURN:
        _refuse("churn", churn, f"above 0, and at most {MOST_CHURN:g}")
    _between("gate", gate, 0, 1)
    _between("audit", audit, 0, 1 - gate)
    _between("budget", budget, 0, 0.5)


def _check_given(
    *,
    margin: float | None,
    churn: float | None,
    alpha: float | None,
    budget: float | None,
    gate: float | None,
    audit: float | None,
) -> None:
    """Check options by their own names, before they are fields of a gate."""
    _check(
        margin=0.02 if margin is None else margin,
        churn=0.0,
        n=1,
        holdouts=1,
        alpha=0.05 if alpha is None else alpha,
    )
    if churn is not None and not 0 < churn <= MOST_CHURN:
        _refuse("churn", churn, f"above 0, and at most {MOST_CHURN:g}")
    most_sealed = 1 - (0.25 if gate is None else gate)
    for name, value, high in (("budget", budget, 0.5), ("gate", gate, 1), ("audit", audit, most_sealed)):
        if value is not None:
            _between(name, value, 0, high)


def _check_lifetime(lifetime: "Lifetime", lifetimes: int) -> None:
    _whole("updates", lifetime.updates, 1, 10_000)
    _whole("audit", lifetime.audit, 1, MOST_RECORDS)
    _whole("lifetimes", lifetimes, 1, 100_000)
    _between("budget", lifetime.budget or 0.0, 0, 0.5)
    if wrong := lifetime.problem():
        raise HoldfastError(
            f"Such a lifetime is impossible: {wrong}.",
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


def _say(lines: Iterable[str]) -> None:
    """Print tables as they are, and wrap sentences to the same width."""
    for line in lines:
        typer.echo(fill(line, WIDTH) if "  " not in line else line)


@contextmanager
def _progress(title: str, steps: int) -> Iterator[Step]:
    """A callback for each finished step, which moves a progress bar; the bar shows at a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    progress: Progress = Progress(
        *columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True
    )
    with progress:
        task = progress.add_task(title, total=steps)
        yield lambda: progress.update(task, advance=1)
