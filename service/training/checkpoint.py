"""Digests of checkpoint files, and differences between two such files. Needs no torch."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from service.differences import document_differences
from service.training.tasks import RESULT_FILE

TENSORS = ".safetensors"
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_DERIVED = ("sha256", "document.tensors_sha256")
"""Digests inside a state file; they differ only where another field differs too."""


@dataclass(frozen=True)
class Difference:
    """One difference between two checkpoints."""

    file: str
    what: str
    """Name of the tensor or field; empty: the whole file."""
    detail: str


def digests(folder: Path | None) -> dict[str, str]:
    """sha256 of each file of a checkpoint; the trainer's result (`result.json`) is not part of it."""
    if folder is None:
        return {}
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RESULT_FILE)
    return {path.relative_to(folder).as_posix(): digest(path) for path in files}


def digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_differences(name: str, stored: Path, made: Path) -> list[Difference]:
    """Differences of a stored file and the reproduced one: by tensor, by field, or as a whole."""
    if stored.read_bytes() == made.read_bytes():
        return []
    if stored.suffix == TENSORS:
        found = _tensors(name, stored, made)
    elif stored.suffix == ".json":
        found = _fields(name, stored, made)
    else:
        found = [Difference(name, "", "other bytes")]
    return found or [Difference(name, "", "the bytes differ, the content is the same")]


def _tensors(name: str, stored: Path, made: Path) -> list[Difference]:
    try:
        before, after = (_read(path) for path in (stored, made))
    except SafetensorError as error:
        return [Difference(name, "", f"it cannot be read: {error}")]
    found = []
    for tensor in sorted(before.keys() | after.keys()):
        if tensor not in before or tensor not in after:
            where = "stored" if tensor in before else "reproduced"
            found.append(Difference(name, tensor, f"only the {where} checkpoint has it"))
        elif before[tensor] != after[tensor]:
            found.append(Difference(name, tensor, _how_far(before[tensor], after[tensor])))
    return found


def _read(path: Path) -> dict[str, Mapping[str, Any]]:
    """Tensor -> its dtype, shape and bytes."""
    found: list[tuple[str, Mapping[str, Any]]] = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    return dict(found)


def _how_far(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    for field in ("dtype", "shape"):
        if before[field] != after[field]:
            return f"{field} {before[field]} stored, {after[field]} made again"
    one, other = _values(before), _values(after)
    if one is None or other is None:
        return "other bytes"
    # As bits: a NaN is the same as itself, and 0 is not -0.
    changed = one.view(f"<u{one.itemsize}") != other.view(f"<u{one.itemsize}")
    with np.errstate(invalid="ignore"):
        distance = np.abs(one[changed].astype(np.float64) - other[changed].astype(np.float64)).max()
    return f"{int(changed.sum())} of {one.size} values, by {distance:.3g} at most"


def _values(tensor: Mapping[str, Any]) -> NDArray[Any] | None:
    data = bytes(tensor["data"])
    if tensor["dtype"] == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    kind = _FLOATS.get(tensor["dtype"])
    return None if kind is None else np.frombuffer(data, kind)


def _fields(name: str, stored: Path, made: Path) -> list[Difference]:
    try:
        before, after = (json.loads(path.read_text()) for path in (stored, made))
    except ValueError as error:
        return [Difference(name, "", f"it cannot be read: {error}")]
    found = [each for each in document_differences(before, after) if each.where not in _DERIVED]
    return [Difference(name, each.where, f"{each.before} stored, {each.after} made again") for each in found]
