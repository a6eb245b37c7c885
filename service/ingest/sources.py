"""A pipeline's sources: those it declares, and the pushed log that replayed dead letters come through."""

import sqlalchemy as sa

from service.errors import PipelineInvalidError
from service.pipelines import PipelineSpec
from service.settings import Settings
from strategies.processors import SLOW, computes_bfloat16, has_gpu
from streams.allowed import Allowed
from streams.base import Source
from streams.catalog import SOURCES, SourceConfig
from streams.records import ON_SCALE, on_scale
from streams.sources.merged import LABELS, REPLAYS, MergedSource
from streams.sources.pushed import PushedConfig
from streams.state.pushed import PUSHED_PARTITION


def build_source(engine: sa.Engine, spec: PipelineSpec, allowed: Allowed) -> Source:
    """The pipeline's source, not yet open. It asks `allowed` when it opens."""

    def build(config: SourceConfig) -> Source:
        return SOURCES[config.kind].build(
            config, pipeline=spec.name, schema=spec.record_schema, engine=engine, allowed=allowed
        )

    sources = {"": build(spec.source)}
    if spec.label_source is not None:
        sources[LABELS] = build(spec.label_source)
    if not spec.pushable:
        sources[REPLAYS] = build(PushedConfig())
    return sources[""] if len(sources) == 1 else MergedSource(sources)


_FEW_NUMBERS = 20
"""Declared classes that may be written as numbers with fractions, as the steps of a rating are."""


def _require_classes(spec: PipelineSpec) -> None:
    numbers = [name for name in spec.record_schema.classes if on_scale(name)]
    if len(numbers) > _FEW_NUMBERS:
        problem = f"{len(numbers)} classes are numbers, and {numbers[0]!r} {ON_SCALE}"
        raise PipelineInvalidError(
            f"The pipeline is not valid: schema.classes: {problem}.",
            fix="Declare the classes that the quantity is cut into, and send their names as labels.",
            members={"errors": [{"where": "schema.classes", "problem": problem}]},
        )


def _require_bfloat16(spec: PipelineSpec, settings: Settings) -> None:
    """Refuse bfloat16 where this machine trains, and only imitates it; a cluster's machines may be others."""
    strategy = spec.strategy
    trains_here = settings.ray_address is None and not (strategy.device != "cpu" and has_gpu())
    if strategy.precision != "bfloat16" or not trains_here or computes_bfloat16():
        return
    raise PipelineInvalidError(
        f"The pipeline is not valid: strategy.precision: {SLOW}.",
        fix="Leave precision out, or train on a machine that has them, or on a GPU.",
        members={"errors": [{"where": "strategy.precision", "problem": SLOW}]},
    )


def require_allowed(spec: PipelineSpec, settings: Settings) -> None:
    """Check a pipeline against the settings: it must not name files, servers and secrets of its own choice.

    Raises:
        PipelineInvalidError: the classes are numbers on a scale, a source names what the installation does
            not allow, the trigger waits for more pushed records than may wait, or the network needs what this
            installation lacks, or computes in bfloat16 where this processor cannot.
    """
    _require_classes(spec)
    _require_bfloat16(spec, settings)
    problem = spec.strategy.network.installation_problem(settings.installation)
    if problem:
        raise PipelineInvalidError(
            f"The pipeline is not valid: strategy.network: {problem}.",
            fix="Name what this installation has, or ask whoever runs it to add this.",
            members={"errors": [{"where": "strategy.network", "problem": problem}]},
        )
    if spec.source.kind == "pushed" and spec.trigger.least_records > settings.max_backlog_records:
        problem = (
            f"it never cuts fewer than {spec.trigger.least_records} records, and only "
            f"{settings.max_backlog_records} pushed ones may wait"
        )
        raise PipelineInvalidError(
            f"The pipeline is not valid: trigger: {problem}.",
            fix="Let it cut fewer records, or raise HOLDFAST_MAX_BACKLOG_RECORDS.",
            members={"errors": [{"where": "trigger", "problem": problem}]},
        )
    _require_memory(spec, settings)
    for field, config in (("source", spec.source), ("label_source", spec.label_source)):
        refused = None if config is None else config.refusal(settings.allowed)
        if refused:
            raise PipelineInvalidError(
                f"The pipeline is not valid: {field}: {refused}",
                fix="Name what this installation allows, or ask whoever runs it to allow this: "
                "HOLDFAST_SOURCE_ROOTS lists folders, HOLDFAST_SOURCE_HOSTS servers, HOLDFAST_SOURCE_SECRETS "
                "variables.",
                members={"errors": [{"where": field, "problem": refused.rstrip(".")}]},
            )


def _require_memory(spec: PipelineSpec, settings: Settings) -> None:
    """Refuse what would take more memory of ingest than the settings grant one pipeline."""
    problem = None
    if spec.duplicate_window > settings.max_duplicate_window:
        where, setting = "duplicate_window", "HOLDFAST_MAX_DUPLICATE_WINDOW"
        problem = f"it may be {settings.max_duplicate_window} at most here"
    elif spec.trigger.least_records * spec.record_bytes > settings.max_backlog_bytes:
        where, setting = "trigger", "HOLDFAST_MAX_BACKLOG_BYTES"
        problem = (
            f"it never cuts fewer than {spec.trigger.least_records} records, of about {spec.record_bytes} "
            f"bytes each, and only {settings.max_backlog_bytes} bytes may wait"
        )
    if problem is not None:
        raise PipelineInvalidError(
            f"The pipeline is not valid: {where}: {problem}.",
            fix=f"Ask for less, or ask whoever runs this installation to raise {setting}.",
            members={"errors": [{"where": where, "problem": problem}]},
        )


def pushed_partition(spec: PipelineSpec) -> str:
    """The partition that the pipeline's pushed log is read as."""
    if spec.source.kind == "pushed":
        return PUSHED_PARTITION
    return (LABELS if spec.pushable else REPLAYS) + PUSHED_PARTITION
