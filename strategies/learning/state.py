"""A learner's whole state as tensors and one JSON file: no pickle, atomic, versioned.

A saved state is a folder of two files. `tensors.safetensors` holds every tensor; `state.json` holds the
rest, the sha256 of the tensor file, and the sha256 of itself. The same state gives the same bytes.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from uuid import uuid4

import torch
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from strategies.base import Learner, StateError, StrategySpec, StreamInfo

SCHEMA_VERSION = 1
TENSORS_FILE = "tensors.safetensors"
STATE_FILE = "state.json"


@dataclass(frozen=True)
class LearnerState:
    """Everything that makes a learner go on as if it had never stopped."""

    strategy: str
    config: dict[str, JsonValue]
    stream_info: StreamInfo
    facts: dict[str, JsonValue]
    """What is no tensor: label map, counters, optimizer settings, the plugins' own."""
    tensors: dict[str, Tensor]


@runtime_checkable
class SavableLearner(Learner, Protocol):
    """A learner that gives its whole state, and takes one over."""

    def state(self) -> LearnerState: ...

    def restore(self, saved: LearnerState) -> None: ...


class StateDocument(BaseModel):
    """`state.json`, but for the digest of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    strategy: str
    config: dict[str, JsonValue]
    stream_info: StreamInfo
    facts: dict[str, JsonValue]
    tensors_sha256: str


def write_state(saved: LearnerState, directory: Path) -> None:
    """Write `saved` into `directory`: it exists complete, or not at all, even if the machine stops.

    A folder that holds something is never overwritten; a state belongs to one version and stays as it is.
    A machine that stops meanwhile may leave `.<name>.*.unfinished` beside it, which can be deleted.

    Raises:
        StateError: `directory` exists and is not empty.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = directory.parent / f".{directory.name}.{uuid4().hex}.unfinished"
    unfinished.mkdir()
    try:
        _write_files(saved, unfinished)
        try:
            unfinished.rename(directory)
        except OSError as error:
            raise StateError(
                f"cannot save into {directory}: {error.strerror}; choose a folder that does not exist yet"
            ) from error
        _sync(directory.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read_state(directory: Path) -> LearnerState:
    """The state that was written into `directory`; its tensors are on the CPU.

    Raises:
        StateError: missing, damaged, or of an unknown version.
    """
    document = _read_document(directory)
    path = directory / TENSORS_FILE
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != document.tensors_sha256:
            raise _damaged(path, "its bytes are not those that were saved")
        # Cloned: the file is mapped into memory, and may be deleted while the learner lives.
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    except FileNotFoundError:
        raise _damaged(path, "it is missing") from None
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error
    return LearnerState(document.strategy, document.config, document.stream_info, document.facts, tensors)


def load(spec: StrategySpec, directory: Path) -> Learner:
    """The learner of strategy `spec` that was saved in `directory`.

    Raises:
        StateError: missing, damaged, of an unknown version, or another strategy's.
    """
    return _rebuild(spec, read_state(directory), directory)


def load_any(directory: Path) -> Learner:
    """The learner that was saved in `directory`, whatever strategy of the catalog it is of.

    Raises:
        StateError: missing, damaged, of an unknown version, or of a strategy the catalog lacks.
    """
    saved = read_state(directory)
    # By name: the catalog ranks above this module.
    strategies = import_module("strategies.catalog").STRATEGIES
    if saved.strategy not in strategies:
        raise StateError(
            f"{directory} holds a learner of strategy {saved.strategy!r}, which this version does not have; "
            "load it with the version that saved it"
        )
    return _rebuild(strategies[saved.strategy], saved, directory)


def _rebuild(spec: StrategySpec, saved: LearnerState, directory: Path) -> Learner:
    if saved.strategy != spec.name:
        raise StateError(
            f"{directory} holds a learner of strategy {saved.strategy!r}, not {spec.name!r}; "
            f"load it as {saved.strategy!r}"
        )
    try:
        config = spec.config.model_validate(saved.config)
    except ValidationError as error:
        raise StateError(
            f"{directory}: the saved config is no longer valid for {spec.name!r}: {error}"
        ) from error
    learner = spec.build(config, saved.stream_info)
    if not isinstance(learner, SavableLearner):
        raise StateError(f"the learner of strategy {spec.name!r} cannot take a saved state over")
    try:
        learner.restore(saved)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise StateError(f"{directory}: the state does not fit strategy {spec.name!r}: {error}") from error
    return learner


def _write_files(saved: LearnerState, directory: Path) -> None:
    tensors_path, state_path = directory / TENSORS_FILE, directory / STATE_FILE
    save_file({name: _plain(tensor) for name, tensor in saved.tensors.items()}, tensors_path)
    _sync(tensors_path)
    with tensors_path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    document = StateDocument(
        schema_version=SCHEMA_VERSION,
        strategy=saved.strategy,
        config=saved.config,
        stream_info=saved.stream_info,
        facts=saved.facts,
        tensors_sha256=digest,
    ).model_dump(mode="json")
    whole = {"document": document, "sha256": _document_digest(document)}
    state_path.write_text(json.dumps(whole, indent=1, sort_keys=True, allow_nan=False) + "\n")
    _sync(state_path)
    _sync(directory)


def _read_document(directory: Path) -> StateDocument:
    path = directory / STATE_FILE
    try:
        whole: Any = json.loads(path.read_text())
        document, digest = whole["document"], whole["sha256"]
        version = document["schema_version"]
    except (FileNotFoundError, NotADirectoryError):
        raise StateError(
            f"there is no saved state in {directory}; check the path, or load another one"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"it cannot be read: {error}") from error
    if digest != _document_digest(document):
        raise _damaged(path, "its content is not what was saved")
    if version != SCHEMA_VERSION:
        raise StateError(
            f"{directory} has state version {version}, and this program reads version {SCHEMA_VERSION}; "
            "load it with the program version that saved it"
        )
    try:
        return StateDocument.model_validate(document)
    except ValidationError as error:
        raise _damaged(path, f"it lacks what a state has: {error}") from error


def _document_digest(document: JsonValue) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _damaged(path: Path, why: str) -> StateError:
    return StateError(f"{path} is damaged: {why}; restore the folder from a copy, or load an older state")


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU and with memory of its own, as the file format demands."""
    return tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)


def _sync(path: Path) -> None:
    """Make sure that a file's bytes, or a folder's entries, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
