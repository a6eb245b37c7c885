"""The JSON documents that fix an update's challenger and verdict: `configuration`, `plan` and `result`.

The first attempt writes `configuration` and `plan`, and later attempts read them, so marks, classes, looks
and margins that change in between have no effect. `result` (`service.updates.results`) is written with the
verdict and names the machine and the files that made the challenger. Answers and screens are large and have
tables of their own; the documents name them by digest.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from service.errors import InputsUnfitError
from service.gate.base import Bits, Details, Freeze, GateConfig, Screen
from service.pipelines import PipelineSpec, StrategyChoice, describe
from service.state.inputs import Name, StoredDocument, digest_of
from strategies.base import StreamInfo
from streams.base import RecordSchema
from streams.state.experiences import ExperienceRow, Part

FORM = 1
"""Version of the documents' format; documents of another version are refused."""

Document = TypeVar("Document")


class Configuration(BaseModel):
    """The part of a pipeline's spec that an update depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: int = FORM
    record_schema: RecordSchema
    classes: tuple[str, ...]
    """Every class of the stream at planning time; the id is the position."""
    strategy: StrategyChoice
    gate: GateConfig
    max_carries: int

    @classmethod
    def of(cls, spec: PipelineSpec, classes: Sequence[str]) -> "Configuration":
        """The configuration of a spec, with the classes that the stream has now."""
        return cls(
            record_schema=spec.record_schema,
            classes=tuple(classes),
            strategy=spec.strategy,
            gate=spec.gate,
            max_carries=spec.max_carries,
        )

    @property
    def stream_info(self) -> StreamInfo:
        """Shape, classes and dtype of the stream's records."""
        schema = self.record_schema
        return StreamInfo(shape=schema.shape, classes=self.classes, dtype=schema.dtype)


@dataclass(frozen=True)
class Parts:
    """The stored parts of an experience."""

    train: Part
    gate: Part
    audit: Part

    @staticmethod
    def of(row: ExperienceRow) -> "Parts":
        """The parts that an experience row names."""
        return Parts(row.train, row.gate, row.audit)


@dataclass(frozen=True)
class Kept:
    """Number and digest of answers that are stored in a table of their own."""

    records: int
    digest: str


@dataclass(frozen=True)
class Base:
    """The champion that the challenger is made from."""

    version: int
    revision: int | None
    """Revision of the champion row; a promotion requires that it has not changed."""
    update_id: str
    """The update that made it; names the checkpoint folder."""


@dataclass(frozen=True)
class Anchor:
    """The version right after an experience was learnt."""

    update_id: str
    answers: Kept
    """On the experience's audit part."""
    gate: Kept | None = None
    """On its gate part; None: they were not stored, or an earlier release planned the update."""


@dataclass(frozen=True)
class Golden:
    """A golden set that the update is judged on."""

    number: int
    name: str
    part: Part
    margin: float | None
    """None: no right answer may be lost."""
    looks: int
    past: Kept | None
    """The champion's answers, if they were stored at planning time."""
    anchor_version: int | None
    """None: no version has been promoted yet."""
    anchored_by: str | None
    """The update that made the anchor; None: there is none, or the champion is the anchor."""
    anchor: Kept | None
    """The anchor's answers, if they were stored at planning time."""


@dataclass(frozen=True)
class Learnt:
    """An experience that the champion learnt, retired or not; the gate's blocks follow from all of them."""

    experience: int
    gate_records: int
    """Of its gate part, at most as many as are judged of one holdout."""
    sealed_records: int
    archived: bool
    """It is part of the archive."""


@dataclass(frozen=True)
class PlanDocument:
    """What an update learns, the champion it starts from, and the holdouts it is judged on."""

    experiences: tuple[int, ...]
    base: Base | None
    parts: dict[int, Parts]
    """Parts of the experiences to learn and of the past holdouts that are judged."""
    judged: tuple[tuple[int, int], ...]
    """Past holdouts that are judged, in order, each with its maximum number of records."""
    margins: dict[int, float]
    past: dict[int, Kept]
    """The champion's answers on past holdouts, as far as they were stored at planning time."""
    past_details: dict[int, Kept]
    anchors: dict[int, Anchor]
    looks: dict[int, int]
    audits: dict[int, int]
    """Holdout -> earlier audits of its sealed part."""
    attempt: int
    last_audited: int | None
    freeze: Freeze | None
    references: tuple[int, ...]
    """Experiences whose screens the batch is compared with."""
    references_digest: str
    """Digest of these screens."""
    failed_audits: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Holdout -> audits that did not pass, and the runs of them; none are left out."""
    golden: tuple[Golden, ...] = ()
    """Golden sets that are not retired; empty: there were none, or an earlier release planned the update."""
    learnt: tuple[Learnt, ...] = ()
    """In the order in which the lineage learnt them; empty: an earlier release planned the update."""
    disputed: tuple[int, ...] = ()
    """Experiences of the retention findings that failed in the verdict before."""
    kept: tuple[int, ...] = ()
    """Holdouts whose labels a person said are still true."""
    kept_shifted: tuple[int, ...] = ()
    """Of these, the ones that were kept when batches were shifted already."""
    traffic: dict[int, float] = field(default_factory=dict)
    """Holdout -> share of the traffic that it stands for, where a person said so."""
    form: int = FORM


def encode(document: object) -> str:
    """The document as JSON text; equal documents give equal texts."""
    plain = document.model_dump(mode="json") if isinstance(document, Configuration) else document
    return msgspec.json.encode(msgspec.to_builtins(plain, str_keys=True), order="sorted").decode()


def decode(stored: StoredDocument, kind: type[Document]) -> Document:
    """A stored document.

    Raises:
        InputsUnfitError: it was changed after it was stored, or another release stored it.
    """
    if not stored.intact:
        raise InputsUnfitError(
            f"The stored {stored.name} of an update was changed after it was stored.",
            fix="The table update_inputs was changed: restore the database from a backup.",
        )
    try:
        form = msgspec.json.decode(stored.text, type=_Form).form
        if form != FORM:
            raise _of_another_release(stored, f"it has form {form}, and this release reads form {FORM}")
        if issubclass(kind, BaseModel):
            return kind.model_validate_json(stored.text)
        return msgspec.json.decode(stored.text, type=kind)
    except ValidationError as error:
        first = describe(error)[0]
        raise _of_another_release(stored, f"{first['where']}: {first['problem']}") from error
    except msgspec.MsgspecError as error:
        raise _of_another_release(stored, str(error)) from error


@dataclass(frozen=True)
class _Form:
    """The one field that every document of every release has."""

    form: int


def _of_another_release(stored: StoredDocument, why: str) -> InputsUnfitError:
    return InputsUnfitError(
        f"The stored {stored.name} of an update does not fit this release: {why}.",
        fix="Use the release that stored it, and read the CHANGELOG.",
    )


def inputs_digest(stored: Mapping[Name, StoredDocument]) -> str:
    """One digest of configuration and plan; the trainer's result names it."""
    return digest_of(f"{stored['configuration'].digest} {stored['plan'].digest}")


def kept_bits(bits: Bits) -> Kept:
    """Number and digest of right/wrong bits."""
    return Kept(len(bits), _sha256(np.packbits(bits)))


def kept_details(details: Details) -> Kept:
    """Number and digest of the details of answers."""
    columns = [details.predicted.astype("<i4"), *(each.astype("<f4") for each in _floats(details))]
    return Kept(len(details), _sha256(*columns))


def _floats(details: Details) -> list[NDArray[np.float32]]:
    score = [] if details.score is None else [details.score]
    return [details.confidence, details.brier, *score]


def _sha256(*arrays: NDArray[Any]) -> str:
    return hashlib.sha256(b"".join(each.tobytes() for each in arrays)).hexdigest()


def screens_digest(screens: Mapping[int, Screen]) -> str:
    """Digest of the screens of experiences."""
    return digest_of(encode(screens))
