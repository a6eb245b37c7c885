"""Records, experiences and sources: their types and protocols, and the errors of the data side.

StreamError
├── RecordInvalidError     a record does not fit the declared schema (becomes a dead letter)
├── ExperienceDamagedError a stored file is missing, or its bytes are not what its name says
├── SourceError            a source cannot be read now; trying again may help
│   └── SourceStoppedError only a person can help; nothing is skipped meanwhile
│       ├── DataLostError      the source no longer holds records that were never ingested
│       └── SchemaChangedError the producer sends other columns or types than the pipeline declares
├── RequestKeyReusedError  a request key came again, with other records
└── FencedError            another ingest process has moved this pipeline's offsets
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, overload, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from streams.allowed import Allowed

if TYPE_CHECKING:
    from sqlalchemy import Engine

ClassName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Dimension = Annotated[int, Field(ge=1)]
WireName = Literal["json", "msgpack", "csv", "arrow"]


class StreamError(Exception):
    """Any failure of the data side. The message says what is wrong and what to do about it."""


class RecordInvalidError(StreamError):
    """A record does not fit the declared schema. `reason` is the code that a dead letter carries."""

    def __init__(self, detail: str, reason: str = "malformed") -> None:
        super().__init__(detail)
        self.reason = reason


class ExperienceDamagedError(StreamError):
    """A stored experience file is missing, or its bytes are not what its name says."""


class SourceError(StreamError):
    """A source cannot be read now; trying again later may help."""


class SourceStoppedError(SourceError):
    """A source must not be read on until a person has looked; trying again does not help."""


class DataLostError(SourceStoppedError):
    """The source no longer holds records that were never ingested; going on would skip them."""


class SchemaChangedError(SourceStoppedError):
    """The producer sends other columns or types than the pipeline declares. The message lists them."""


class RequestKeyReusedError(StreamError):
    """A request key was used before, with other records; nothing was stored."""


class FencedError(StreamError):
    """Another ingest process has moved this pipeline's offsets; this one must stop."""


MAX_FEATURES = 2**24
"""Feature values of one record, at most."""


class RecordSchema(BaseModel):
    """The shape, types and classes of every record of a pipeline. Declared once, with the pipeline."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: tuple[ClassName, ...] = Field(
        (), description="Names of a table's feature columns, in the order that the network sees them."
    )
    shape: tuple[Dimension, ...] = Field(
        (),
        validate_default=True,
        description="Shape of one record's features, such as [8, 8] or [6]; follows from columns.",
    )
    dtype: Literal["float32", "uint8"] = Field("float32", description="Type that features are stored in.")
    open_classes: bool = Field(
        False, description="Whether a label that is not among classes becomes a new class as it comes."
    )
    max_classes: int = Field(
        1000, ge=2, le=100_000, description="Open classes only: a label beyond this many is refused."
    )
    classes: tuple[ClassName, ...] = Field(
        (),
        validate_default=True,
        description="The known labels; a label's dense class id is its index here.",
    )
    groups: tuple[ClassName, ...] = Field((), description="Names of the group columns each record carries.")
    minimum: float | None = Field(None, description="Smallest feature value allowed.")
    maximum: float | None = Field(None, description="Largest feature value allowed.")
    labels_within_seconds: float | None = Field(
        None,
        gt=0,
        le=10 * 366 * 86400,
        description="Set: a label may come this much later than its features, as a record of its own.",
    )

    @field_validator("shape")
    @classmethod
    def _has_a_shape(cls, shape: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        found = shape or ((len(columns),) if (columns := info.data.get("columns")) else ())
        if not found:
            raise ValueError("must have at least 1 item, or columns must name the features")
        return found

    @field_validator("classes")
    @classmethod
    def _has_classes(cls, classes: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not info.data.get("open_classes") and len(classes) < 2:
            raise ValueError("must have at least 2 items, unless open_classes is true")
        return classes

    @model_validator(mode="after")
    def _consistent(self) -> "RecordSchema":
        for name, values in (("classes", self.classes), ("groups", self.groups), ("columns", self.columns)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} must not repeat a name")
        if self.columns and self.shape != (len(self.columns),):
            raise ValueError(f"shape must be [{len(self.columns)}], the number of columns, or be left out")
        if len(self.shape) > 8 or self.size > MAX_FEATURES:
            raise ValueError(f"shape may have 8 dimensions and {MAX_FEATURES:,} values at most")
        if self.open_classes and len(self.classes) > self.max_classes:
            raise ValueError(f"classes names more than max_classes, {self.max_classes}")
        if self.minimum is not None and self.maximum is not None and self.minimum >= self.maximum:
            raise ValueError("minimum must be below maximum")
        return self

    @property
    def size(self) -> int:
        """Number of feature values in one record."""
        return math.prod(self.shape)

    @property
    def late_labels(self) -> bool:
        """Whether features and labels may come as separate records."""
        return self.labels_within_seconds is not None

    def fingerprint(self) -> str:
        """sha256 of the schema's canonical JSON: equal if and only if the schemas are equal."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


@dataclass(frozen=True)
class Experience:
    """One bounded, immutable slice of the stream; the unit of training.

    The arrays are read-only and, where the experience is stored, memory-mapped.
    """

    index: int
    """0, 1, 2 ... within the pipeline."""
    inputs: NDArray[np.float32] | NDArray[np.uint8]
    """(n, *shape)."""
    labels: NDArray[np.int64]
    """(n,) dense class ids."""
    record_ids: NDArray[np.str_]
    """(n,)."""
    groups: Mapping[str, NDArray[np.str_]]
    """Optional group columns, each (n,)."""
    digest: str
    """sha256 of the stored bytes."""

    def __len__(self) -> int:
        return len(self.labels)


class SourceConfig(BaseModel):
    """The configuration of a source. Every source has its own kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str

    def problem(self, schema: RecordSchema) -> str | None:
        """Why this source cannot give records of that schema, as a sentence; None when it can."""
        return None

    def refusal(self, allowed: Allowed) -> str | None:
        """Why an installation does not let this source be read, as a sentence; None when it does.

        Asked when a pipeline is declared, and by the source itself whenever it opens. Every config answers
        for itself, since silence would allow everything. The sentence does not depend on whether what is
        named exists.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it names")

    def require_allowed(self, allowed: Allowed) -> None:
        """Ask once more, before anything that the config names is touched.

        Raises:
            SourceStoppedError: the installation does not let this source be read.
        """
        refused = self.refusal(allowed)
        if refused:
            raise SourceStoppedError(f"The installation does not allow this source. {refused}")


@dataclass(frozen=True)
class SourceContext:
    """Everything that a source is built from, except its config."""

    pipeline: str
    schema: RecordSchema
    engine: "Engine"
    allowed: Allowed = field(default_factory=Allowed)


class LazyTexts(Sequence[str]):
    """A sequence of texts, each made when it is read: most cursors of a batch never are."""

    def __init__(self, make: Callable[[int], str], indices: range) -> None:
        """`make(index)` is the text at an index; `indices` are those that this sequence holds, in order."""
        self._make = make
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> "LazyTexts": ...
    def __getitem__(self, at: int | slice) -> "str | LazyTexts":
        if isinstance(at, slice):
            return LazyTexts(self._make, self._indices[at])
        return self._make(self._indices[at])


def select(texts: Sequence[str], indices: NDArray[np.int64]) -> Sequence[str]:
    """The texts at these indices, each made when it is read."""
    return LazyTexts(lambda index: texts[int(indices[index])], range(len(indices)))


@dataclass(frozen=True)
class TableColumns:
    """The columns of a table that are not features. For CSV, and for Arrow that other programs wrote."""

    id: str | None = "id"
    """None: the rows carry no id, and `RawBatch.ids` names them."""
    label: str = "label"
    time: str | None = None
    """Epoch seconds, RFC 3339 text, or an Arrow timestamp; None: the rows carry no time."""
    split_key: str | None = None


@dataclass(frozen=True)
class RawBatch:
    """Undecoded payloads of one partition, in order."""

    partition: str
    start: str
    """The cursor before the first record: where this batch was read from; empty at the beginning."""
    payloads: Sequence[bytes]
    positions: Sequence[str]
    """One cursor a record: a source opened there continues just after it."""
    wire: WireName = "json"
    """How the payloads are written. "json", "msgpack" and "csv" are one record a payload, "arrow" is one
    payload of many records."""
    skip: int = 0
    """Only "arrow": records at the head of the payload that come before `start`; `positions` begins after
    them and may end before the payload does, so that a payload can be read in several steps."""
    header: Sequence[str] = ()
    """Only "csv": the names of the columns, in the order of the payloads' fields."""
    table: TableColumns = TableColumns()
    """Only "csv", and "arrow" that another program wrote: which columns hold what."""
    stable_positions: Sequence[str] = ()
    """One a record, the same whenever the record is read: the position of a dead letter. Empty where the
    cursors themselves never change."""
    ids: Sequence[str] = ()
    """One a record where the records carry no id (`table.id` is None); stable, and unique in the pipeline."""
    arrived_at: float = math.nan
    """Epoch seconds when the source took these records in, if it knows; the same whenever they are read."""


class Source(Protocol):
    """Where records come from. A partition is an ordered log; a cursor is an opaque position in it.

    The same cursor always gives the same next records. A source never acknowledges anything for
    correctness: the cursors committed with an experience are the only truth.
    """

    def partitions(self) -> Sequence[str]:
        """Names of the partitions that exist now."""
        ...

    def open(self, cursors: Mapping[str, str]) -> None:
        """Resume just after these cursors; a partition that is not named, or whose cursor is empty, starts
        at its beginning. May be called again to read from other cursors.

        Raises:
            DataLostError: records after a cursor no longer exist in the source.
        """
        ...

    def poll(self, max_records: int, timeout_seconds: float) -> Sequence[RawBatch]:
        """The next payloads, at most `max_records` records in all; empty when none arrive in time.

        Raises:
            SourceError: the source cannot be read.
        """
        ...

    def close(self) -> None:
        """Release connections and files. Closing twice is allowed."""
        ...


@runtime_checkable
class TrimmedSource(Source, Protocol):
    """A source that may delete its records once they are in committed experiences."""

    def trim(self, cursors: Mapping[str, str]) -> None:
        """Delete the records at and before these committed cursors. Safe to skip and safe to repeat."""
        ...


@runtime_checkable
class AnnouncingSource(Source, Protocol):
    """A source that reports where each partition begins, before any record of it is committed.

    The beginning is committed, so that a loss before the first record is noticed, even after a restart.
    """

    def arrived(self, cursors: Mapping[str, str]) -> Mapping[str, str]:
        """Cursors to commit for partitions of which no record is committed: where each begins, or that it
        holds no record. `cursors` are those committed so far.

        The caller commits them. Safe to skip: they are reported again.
        """
        ...


@runtime_checkable
class NotingSource(Source, Protocol):
    """A source that may have something to say that is no error."""

    def notes(self) -> Sequence[str]:
        """Sentences for the stream's status, such as what is passed over and why; as of the last look."""
        ...


@runtime_checkable
class ForgettingSource(Source, Protocol):
    """A source whose partitions come and go: the offsets of those that are gone can be deleted."""

    def forget(self, cursors: Mapping[str, str]) -> list[str]:
        """Partitions among these committed cursors that are gone from the source and were read to their end.

        The caller deletes their offsets. Safe to skip: they are reported again.
        """
        ...
