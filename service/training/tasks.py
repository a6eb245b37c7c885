"""The task that a trainer gets, and the result that it leaves in a folder named by the update.

The folder appears by one rename, so a second attempt at the same update finds the first one's work whole, or
nothing.
"""

import base64
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.gate.base import (
    Bits,
    DataEvidence,
    Details,
    Disturbed,
    Finding,
    GateConfig,
    NearDuplicates,
    Running,
    Screen,
    ShiftEvidence,
)
from service.storage import StoreLocation
from service.training.answers import HoldoutRecords
from service.training.inspection import Picture
from strategies.base import LearningEnvironment, LearnReport, StreamInfo
from strategies.network_choice import Installation

OnProgress = Callable[[Mapping[str, Any]], None]
Made = TypeVar("Made")

RESULT_FILE = "result.json"
LEARNER_FOLDER = "learner"
SERVED_FILE = "served.pt2"
LEARNING = "learning"
"""Name of the stage in which a run learns."""


@dataclass(frozen=True)
class Stored:
    """A stored part of an experience."""

    experience: int
    digest: str
    records: int | None = None
    """Records of a holdout that are judged, at most; None: all."""


@dataclass(frozen=True)
class Anchored:
    """Golden sets that share an anchor, whose checkpoint answers them."""

    folder: Path
    """The anchor's folder."""
    sets: tuple[Stored, ...]


@dataclass(frozen=True)
class Task:
    """Everything a trainer needs to know; paths are on storage that all workers share."""

    update_id: str
    folder: Path
    """Where the result appears."""
    store: StoreLocation
    """Where the experiences are."""
    champion: Path | None
    """The champion's folder; None: there is no champion yet."""
    strategy: Mapping[str, Any]
    """The strategy's config, as JSON. It builds the first learner; once there is a champion, its restored
    learner keeps the config it was built with. (A pipeline cannot be changed yet, so the two are equal.)"""
    stream: StreamInfo
    gate: GateConfig
    learn: tuple[Stored, ...]
    """Train parts, in order."""
    new_holdouts: tuple[Stored, ...]
    """Gate parts of the same experiences."""
    past_holdouts: tuple[Stored, ...]
    """Gate parts of what the champion learnt before."""
    missing_baselines: tuple[int, ...]
    """Past holdouts on which the champion's stored answers lack what the gate asks: they are computed here,
    once."""
    references: tuple[Screen, ...]
    """Screens of the experiences that the champion learnt."""
    golden: tuple[Stored, ...] = ()
    """Golden sets, each by its number in place of an experience; all records are answered."""
    missing_golden: tuple[int, ...] = ()
    """Golden sets on which the champion's answers are not stored: they are computed here, once."""
    golden_anchors: tuple[Anchored, ...] = ()
    """Golden sets on which the answers of an anchor that is not the champion are not stored."""
    sealed: tuple[Stored, ...] = ()
    """Audit parts of the past holdouts and of the new ones."""
    repeat: int = 0
    """0: make the challenger. n: learn the same with the strategy's seed + n, and keep the answers only."""
    installation: Installation = field(default_factory=Installation)
    """Networks and weights of the installation; the trainer's own environment is ignored."""
    inputs: str = ""
    """Digest of the update's stored inputs; copied into the result."""


@dataclass(frozen=True)
class Origin:
    """The machine and the files that made a result; with the stored inputs they determine it."""

    inputs: str
    """Digest of the stored inputs."""
    environment: LearningEnvironment
    installed: dict[str, str]
    """Own networks and weight files that the strategy names -> digest."""
    base: dict[str, str]
    """Files of the champion's checkpoint -> sha256."""
    made: dict[str, str] = field(default_factory=dict)
    """Files of the challenger's checkpoint -> sha256; empty: nothing was learnt."""


@dataclass(frozen=True)
class Repeated:
    """Result of the same update with another seed."""

    seed: int
    right: dict[int, Bits] = field(default_factory=dict)
    """By experience, past and new holdouts."""
    predicted: dict[int, NDArray[np.int32]] = field(default_factory=dict)
    """Class ids of the answers."""
    failure: str | None = None
    """Why nothing was learnt with this seed; None: it was."""
    inputs: str = ""
    """Digest of the update's stored inputs; empty where an older release made the result."""


@dataclass(frozen=True)
class Result:
    """Result of a run: the data guard's findings and, if the batch was learnt, the challenger's answers."""

    data: DataEvidence
    """Evidence on the worst experience of the batch."""
    stopped: tuple[int, ...]
    """Experiences that the data guard stopped; when there is one, nothing was learnt."""
    screens: dict[int, Screen]
    data_findings: tuple[Finding, ...] = ()
    """The findings of the data guard on `data`; empty: a version of this program that stored none made it."""
    report: LearnReport | None = None
    challenger: dict[int, Bits] = field(default_factory=dict)
    baseline: dict[int, Bits] = field(default_factory=dict)
    """Answers of the champion; without one, of the majority class of the training part."""
    sealed: dict[int, Bits] = field(default_factory=dict)
    """The challenger's answers on the audit parts; only an audit reads them."""
    golden: dict[int, Bits] = field(default_factory=dict)
    """The challenger's answers on golden sets, by number."""
    golden_baseline: dict[int, Bits] = field(default_factory=dict)
    """The champion's, where they were not stored."""
    golden_anchors: dict[int, Bits] = field(default_factory=dict)
    """The anchors', where they were not stored and their checkpoints could be read."""
    near_duplicates: dict[int, NearDuplicates] = field(default_factory=dict)
    """Past holdout -> near duplicates of its records in the new data."""
    train_accuracy: float | None = None
    challenger_details: dict[int, Details] = field(default_factory=dict)
    baseline_details: dict[int, Details] = field(default_factory=dict)
    """Details of the champion's answers; the majority class has none."""
    records: dict[int, HoldoutRecords] = field(default_factory=dict)
    """Labels and groups of each holdout's records, if a guard needs them."""
    disturbed: tuple[Disturbed, ...] = ()
    running: Running | None = None
    shift: ShiftEvidence | None = None
    """Shift of the batch against the newest past holdouts, by the champion's answers."""
    pictures: dict[str, Picture] = field(default_factory=dict)
    """Record id -> the record as an image, of suspect records that are images."""
    origin: Origin | None = None
    """None where an older release made the result."""

    @property
    def learnt(self) -> bool:
        return self.report is not None


def is_done(folder: Path) -> bool:
    """Whether a trainer has finished: its folder appears complete, by one rename."""
    return (folder / RESULT_FILE).exists()


def read_result(folder: Path) -> Result | None:
    """Read the result in a folder; None: no trainer has finished there."""
    return _read(folder, Result)


def read_repeated(folder: Path) -> Repeated | None:
    """Read the result of a repeat in its folder; None: no trainer has finished there."""
    return _read(folder, Repeated)


def _read(folder: Path, kind: type[Made]) -> Made | None:
    if not is_done(folder):
        return None
    document = msgspec.json.decode((folder / RESULT_FILE).read_bytes())
    _upgrade(document)
    return msgspec.convert(document, kind, dec_hook=_decode_array, str_keys=True)


def _upgrade(document: dict[str, Any]) -> None:
    """Give fields the names of this version: folders of earlier versions stay readable."""
    if "twins" in document:
        document["near_duplicates"] = document.pop("twins")
    for records in document.get("records", {}).values():
        for column in records.get("groups", {}).values():
            if "places" in column:
                column["indices"] = column.pop("places")


def write_result(result: Result | Repeated, path: Path) -> None:
    """Write a result, and flush it to the disk."""
    payload = msgspec.json.encode(result, enc_hook=_encode_array)
    with path.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def publish(scratch: Path, folder: Path) -> None:
    """Rename `scratch` to `folder`, or leave the folder of another attempt at the same update in place.

    All of it is on the disk before it has its name. A folder without a result, such as a power loss may leave
    of an older release's attempt, is moved aside; the next attempt removes it.
    """
    _sync_tree(scratch)
    try:
        scratch.rename(folder)
    except OSError:
        if is_done(folder):
            return
        folder.rename(folder.with_name(f"{folder.name}.incomplete-{time.monotonic_ns()}.tmp"))
        scratch.rename(folder)
    _sync(folder.parent)


def _sync_tree(folder: Path) -> None:
    """Make sure that the files of a folder, and their names, have reached the disk."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _encode_array(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype == np.bool_:
        return {"n": len(value), "bits": base64.b64encode(np.packbits(value).tobytes()).decode()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        ordered = value.astype(value.dtype.newbyteorder("<"))
        return {"dtype": ordered.dtype.str, "data": base64.b64encode(ordered.tobytes()).decode()}
    raise TypeError(f"{type(value).__name__} has no JSON form here")


def _decode_array(kind: type, value: Any) -> Any:
    if "data" in value:
        return np.frombuffer(base64.b64decode(value["data"]), dtype=value["dtype"])
    packed = np.frombuffer(base64.b64decode(value["bits"]), dtype=np.uint8)
    return np.unpackbits(packed, count=value["n"]).astype(bool)
