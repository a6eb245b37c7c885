"""The pipeline spec: its owner's declaration of one registered model to keep trained on one stream."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Self, Union

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from service.errors import PipelineInvalidError
from service.gate.base import GateConfig
from service.yaml_text import read_yaml
from strategies.base import StrategyConfig, StreamInfo
from strategies.catalog import STRATEGIES
from strategies.combined import with_parts
from streams.base import RecordSchema
from streams.breaker import CircuitBreaker
from streams.catalog import SOURCES, SourceConfig
from streams.split import Split
from streams.triggers.catalog import TriggerChoice

PipelineName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]

if TYPE_CHECKING:
    SourceChoice = SourceConfig
    StrategyChoice = StrategyConfig
else:
    # Built from the catalogs, so that a new entry is accepted, documented and validated without an edit here.
    SourceChoice = Annotated[
        Union[tuple(spec.config for spec in SOURCES.values())],  # noqa: UP007
        Field(discriminator="kind"),
    ]
    StrategyChoice = Annotated[
        Union[tuple(spec.config for spec in STRATEGIES.values())],  # noqa: UP007
        Field(discriminator="name"),
        BeforeValidator(with_parts),
    ]


MISFIT = "strategy_misfit_"
"""Prefix of an error type; the rest is the name of the strategy's field that is wrong."""


class Retention(BaseModel):
    """Which records are kept of experiences that the champion has learnt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_experiences: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Learnt experiences, the newest, whose train parts are kept; unset keeps all.",
    )


class PipelineSpec(BaseModel):
    """A pipeline as its owner declares it: a YAML file, or the body of `POST /v1/pipelines`."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: PipelineName = Field(description="Also the name of the registered model in MLflow.")
    record_schema: RecordSchema = Field(alias="schema", description="What a record looks like.")
    source: SourceChoice = Field(
        default_factory=SOURCES["pushed"].config, description="Where records come from."
    )
    label_source: SourceChoice | None = Field(
        None, description="Where labels come from, if not with the features; wants labels_within_seconds."
    )
    trigger: TriggerChoice = Field(description="When to cut an experience.")
    duplicate_window: int = Field(
        0,
        ge=0,
        le=100_000_000,
        description="A record is dropped whose id occurred in this many records before it; 0 drops none.",
    )
    circuit_breaker: CircuitBreaker = Field(
        default_factory=CircuitBreaker, description="When bad records stop the stream."
    )
    retention: Retention = Field(
        default_factory=Retention, description="Which records of learnt experiences are kept."
    )
    split: Split = Field(
        default_factory=Split, description="Shares of records held out for gate and audit, never trained on."
    )
    strategy: StrategyChoice = Field(description="How to learn; `name` chooses, the rest are its settings.")
    gate: GateConfig = Field(
        default_factory=GateConfig, description="What an update may lose, and how sure the gate must be."
    )
    max_experiences_per_update: int = Field(
        4, ge=1, le=100, description="Experiences that one update learns at most."
    )
    max_carries: int = Field(
        2, ge=0, le=100, description="How often a rejected experience is tried again; then it is parked."
    )

    @field_validator("strategy")
    @classmethod
    def _strategy_fits(cls, strategy: StrategyChoice, info: ValidationInfo) -> StrategyChoice:
        schema: RecordSchema | None = info.data.get("record_schema")
        if schema is None:
            return strategy
        found = strategy.problem(schema.shape, schema.dtype, classes=len(schema.classes))
        if found:
            field, problem = found
            raise PydanticCustomError(MISFIT + field, "{problem}", {"problem": problem})
        return strategy

    @model_validator(mode="after")
    def _source_fits(self) -> Self:
        problem = SOURCES[self.source.kind].problem(self.source, self.record_schema)
        if problem:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        if self.label_source is None:
            return self
        if not self.record_schema.late_labels:
            raise ValueError("a label_source wants schema.labels_within_seconds: how late a label may come")
        if self.label_source.kind == self.source.kind == "pushed":
            raise ValueError("labels can be pushed to the pipeline itself: leave label_source out")
        problem = SOURCES[self.label_source.kind].problem(self.label_source, self.record_schema)
        if problem:
            raise ValueError(f"label_source: {problem}")
        return self

    @model_validator(mode="after")
    def _gate_fits(self) -> Self:
        if self.gate.groups is not None and not self.record_schema.groups:
            raise ValueError("gate.groups wants group columns: declare them as schema.groups")
        if "auc" in self.gate.metrics and len(self.record_schema.classes) != 2:
            raise ValueError("gate.metrics: auc is made for two classes; take macro_f1 or balanced_accuracy")
        return self

    @property
    def pushable(self) -> bool:
        """Whether callers may send records over HTTP."""
        return "pushed" in (self.source.kind, self.label_source.kind if self.label_source else "")

    @property
    def record_bytes(self) -> int:
        """Memory of one record: its features, and about what its id, label, time and groups take."""
        schema = self.record_schema
        return schema.size * (1 if schema.dtype == "uint8" else 4) + 100 * (2 + len(schema.groups))

    @property
    def stream_info(self) -> StreamInfo:
        """What a learner needs to know of the stream as declared; an open set may have more classes now."""
        schema = self.record_schema
        return StreamInfo(shape=schema.shape, classes=schema.classes, dtype=schema.dtype)


def parse(document: Mapping[str, Any] | str) -> PipelineSpec:
    """A spec from a YAML text or a mapping.

    Raises:
        PipelineInvalidError: it says where and why.
    """
    try:
        raw = read_yaml(document) if isinstance(document, str) else document
        spec = PipelineSpec.model_validate(raw)
    except yaml.YAMLError as error:
        raise PipelineInvalidError(f"This is not YAML: {error}.", fix="Correct the file.") from error
    except ValidationError as error:
        raise _invalid(describe(error)) from error
    written = {**raw, "strategy": with_parts(raw["strategy"])}
    if converted := list(_converted(written, spec.model_dump(mode="json", by_alias=True))):
        raise _invalid(converted)
    return spec


def _invalid(errors: list[dict[str, str]]) -> PipelineInvalidError:
    return PipelineInvalidError(
        f"The pipeline is not valid: {errors[0]['where']}: {errors[0]['problem']}.",
        fix="Correct the fields under `errors`; docs/reference/pipelines.md describes each.",
        members={"errors": errors},
    )


def _converted(written: Any, read: Any, where: str = "") -> Iterator[dict[str, str]]:
    """Values that pydantic has read as something else than what stands there, such as "0.02" as a number."""
    if isinstance(written, Mapping) and isinstance(read, Mapping):
        for key, value in written.items():
            if key in read:
                yield from _converted(value, read[key], f"{where}.{key}" if where else str(key))
    elif isinstance(written, list | tuple) and isinstance(read, list | tuple):
        for place, (each, its) in enumerate(zip(written, read, strict=False)):
            yield from _converted(each, its, f"{where}.{place}")
    elif isinstance(read, bool):
        if not isinstance(written, bool):
            yield {"where": where, "problem": "must be true or false, not a text or a number"}
    elif isinstance(read, int | float) and isinstance(written, str | bool):
        yield {"where": where, "problem": "must be a number, not a text or true or false"}


def describe(error: ValidationError) -> list[dict[str, str]]:
    """pydantic's errors as `where` and `problem`, without the input, which may be large or secret."""
    return [
        {
            "where": _where(entry["loc"], entry["type"]) or "body",
            "problem": entry["msg"].removeprefix("Value error, ").rstrip("."),
        }
        for entry in error.errors(include_url=False, include_input=False, include_context=False)
    ]


def _where(location: tuple[int | str, ...], fault: str) -> str:
    """The path of the wrong field as its owner wrote it, without a trigger's kind, which may be left out."""
    if fault.startswith(MISFIT):
        location = (*location, fault.removeprefix(MISFIT))
    if location[:1] == ("trigger",):
        location = ("trigger", "kind") if fault == "union_tag_invalid" else ("trigger", *location[2:])
    return ".".join(str(part) for part in location)
