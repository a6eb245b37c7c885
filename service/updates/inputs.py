"""What fixes an update's challenger and verdict, as three JSON documents that are stored with it.

`configuration` and `plan` are written in the transaction in which the first attempt fixes what is learnt, and
every later attempt goes by them: marks, classes, looks or margins that change meanwhile change nothing.
`result` (`service.updates.results`) is written with the verdict: where and from which bytes the challenger
was made. Answers and screens are large and lie in tables of their own, so they are named by digest.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
"""Of the documents. Another release's form is refused, never guessed at."""

Document = TypeVar("Document")


class Configuration(BaseModel):
    """The part of a pipeline's spec that an update is fixed by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: int = FORM
    record_schema: RecordSchema
    classes: tuple[str, ...]
    """Every class of the stream then, by id."""
    strategy: StrategyChoice
    gate: GateConfig
    max_carries: int

    @classmethod
    def of(cls, spec: PipelineSpec, classes: Sequence[str]) -> "Configuration":
        """What a spec says, with the classes that the stream has by now."""
        return cls(
            record_schema=spec.record_schema,
            classes=tuple(classes),
            strategy=spec.strategy,
            gate=spec.gate,
            max_carries=spec.max_carries,
        )

    @property
    def stream_info(self) -> StreamInfo:
        """What a learner must know of the stream."""
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
        """Those of a row."""
        return Parts(row.train, row.gate, row.audit)


@dataclass(frozen=True)
class Kept:
    """Answers that are stored elsewhere, by their number and digest."""

    records: int
    digest: str


@dataclass(frozen=True)
class Base:
    """The champion that the challenger is made from."""

    version: int
    revision: int | None
    """Of the champion row; what a promotion compares with."""
    update_id: str
    """The update that made it: its checkpoint lies there."""


@dataclass(frozen=True)
class Anchor:
    """The version right after an experience was learnt."""

    update_id: str
    answers: Kept
    """On the experience's sealed part."""


@dataclass(frozen=True)
class PlanDocument:
    """What an update learns, from which champion, and against what it is judged."""

    experiences: tuple[int, ...]
    base: Base | None
    parts: dict[int, Parts]
    """Of the experiences to learn and of the past holdouts that are judged."""
    judged: tuple[tuple[int, int], ...]
    """Past holdouts that are judged, in their order, and how many of their records at most."""
    margins: dict[int, float]
    past: dict[int, Kept]
    """The champion's answers on past holdouts that were stored then."""
    past_details: dict[int, Kept]
    anchors: dict[int, Anchor]
    looks: dict[int, int]
    audits: dict[int, int]
    attempt: int
    last_audited: int | None
    freeze: Freeze | None
    references: tuple[int, ...]
    """Experiences whose screens the batch is compared with,"""
    references_digest: str
    """and the digest of these screens."""
    form: int = FORM


def encode(document: object) -> str:
    """The text that is stored: the same document gives the same text."""
    plain = document.model_dump(mode="json") if isinstance(document, Configuration) else document
    return msgspec.json.encode(msgspec.to_builtins(plain, str_keys=True), order="sorted").decode()


def decode(stored: StoredDocument, kind: type[Document]) -> Document:
    """A stored document.

    Raises:
        InputsUnfitError: it is not what was stored, or of another release's form.
    """
    if not stored.intact:
        raise InputsUnfitError(
            f"The stored {stored.name} of an update is not what was stored with it.",
            fix="Somebody or something changed the table update_inputs: restore the database from a backup.",
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
    """One digest of configuration and plan: what a trainer's result was made for."""
    return digest_of(f"{stored['configuration'].digest} {stored['plan'].digest}")


def kept_bits(bits: Bits) -> Kept:
    """Right/wrong bits by number and digest."""
    return Kept(len(bits), _sha256(np.packbits(bits)))


def kept_details(details: Details) -> Kept:
    """The details of answers by number and digest."""
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
