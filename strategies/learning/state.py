"""A learner's whole state as tensors and one JSON file: no pickle, atomic, versioned.

A saved state is a folder of two files. `tensors.safetensors` holds every tensor; `state.json` holds the
rest, the sha256 of the tensor file, and the sha256 of itself. The same state gives the same bytes.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable
from uuid import uuid4

import torch
from pydantic import JsonValue
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from strategies.base import Learner, StateError, StrategySpec, StreamInfo
from strategies.state_document import (
    SCHEMA_VERSION,
    STATE_FILE,
    StateDocument,
    damaged,
    encode_document,
    read_document,
)

TENSORS_FILE = "tensors.safetensors"


@dataclass(frozen=True)
class LearnerState:
    """The whole state of a learner: loaded, it continues as if it had never stopped."""

    strategy: str
    config: dict[str, JsonValue]
    stream_info: StreamInfo
    facts: dict[str, JsonValue]
    """State without tensors: label map, counters, optimizer settings, the plugins' own."""
    tensors: dict[str, Tensor]


@runtime_checkable
class SavableLearner(Learner, Protocol):
    """A learner whose whole state can be read and set."""

    def state(self) -> LearnerState: ...

    def restore(self, saved: LearnerState) -> None: ...


def write_state(saved: LearnerState, directory: Path) -> None:
    """Write `saved` into `directory`: it exists complete, or not at all, even if the machine stops.

    A folder that holds something is never overwritten; a state belongs to one version and stays as it is.
    A machine that stops meanwhile may leave `.<name>.*.unfinished` next to it, which can be deleted.

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
    document = read_document(directory)
    path = directory / TENSORS_FILE
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != document.tensors_sha256:
            raise damaged(path, "its bytes are not those that were saved")
        # Cloned: the file is mapped into memory, and may be deleted while the learner is in use.
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    except FileNotFoundError:
        raise damaged(path, "it is missing") from None
    except SafetensorError as error:
        raise damaged(path, str(error)) from error
    return LearnerState(document.strategy, document.config, document.stream_info, document.facts, tensors)


def load_any(directory: Path, strategies: Mapping[str, StrategySpec]) -> Learner:
    """Load the learner saved in `directory`, whichever of `strategies` it belongs to.

    Raises:
        StateError: missing, damaged, of an unknown version, or of a strategy that is not among them.
    """
    name = read_document(directory).strategy
    if name not in strategies:
        raise StateError(
            f"{directory} holds a learner of strategy {name!r}, which this version does not have; "
            "load it with the version that saved it"
        )
    return strategies[name].load(directory)


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
    )
    state_path.write_text(encode_document(document))
    _sync(state_path)
    _sync(directory)


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
