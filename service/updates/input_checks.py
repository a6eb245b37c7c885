"""Checks that an update's inputs are unchanged: documents, experience files, checkpoints, installation."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from service.state.inputs import Name, StoredDocument
from service.training.checkpoint import digest
from service.updates.plan import Plan
from streams.base import ExperienceDamagedError
from streams.state.experiences import Part
from streams.store.experiences import ExperienceStore
from streams.store.objects import ObjectMissingError

State = Literal["same", "differs", "gone"]


@dataclass(frozen=True)
class Check:
    """One input of an update: the stored digest compared with the digest found now."""

    kind: str
    """Such as `document`, `train part` or `base checkpoint`."""
    name: str
    state: State
    stored: str | None = None
    """sha256 stored with the update; of an own network also its function."""
    found: str | None = None
    detail: str = ""
    """What is wrong, or since when it is missing."""


def checked_documents(stored: Mapping[Name, StoredDocument]) -> list[Check]:
    """Compare each stored document with its own digest."""
    return [
        Check(
            "document",
            f"stored {name}",
            "same" if each.intact else "differs",
            each.digest,
            each.found,
            "" if each.intact else "its row in the table update_inputs was changed",
        )
        for name, each in stored.items()
    ]


def checked_parts(store: ExperienceStore, plan: Plan, removed_at: Mapping[int, float | None]) -> list[Check]:
    """Check the files of the parts that are learnt and of those that are judged.

    Args:
        removed_at: when the retention policy removed an experience's train part.
    """
    checks = [
        _part(store, index, plan.rows[index].train, kind="train part", gone=_removed(removed_at.get(index)))
        for index in plan.experiences
    ]
    for index in (*plan.judged, *plan.experiences):
        parts = plan.rows[index]
        checks.append(_part(store, index, parts.gate, kind="gate part"))
        if parts.audit.rows:
            checks.append(_part(store, index, parts.audit, kind="audit part"))
    return checks + [
        _named_part(store, f"golden set {each.name}", each.number, each.part, kind="golden set")
        for each in plan.golden
    ]


def _part(store: ExperienceStore, index: int, part: Part, *, kind: str, gone: str = "") -> Check:
    return _named_part(store, f"experience {index}, {kind}", index, part, kind=kind, gone=gone)


def _named_part(
    store: ExperienceStore, name: str, index: int, part: Part, *, kind: str, gone: str = ""
) -> Check:
    try:
        store.open(part.digest, index=index)
    except ExperienceDamagedError as error:
        if isinstance(error.__cause__, FileNotFoundError | ObjectMissingError):
            return Check(kind, name, "gone", part.digest, detail=gone or str(error))
        path = store.path(part.digest)
        found = digest(path) if path.is_file() else None
        return Check(kind, name, "differs", part.digest, found, str(error))
    return Check(kind, name, "same", part.digest, part.digest)


def _removed(moment: float | None) -> str:
    if moment is None:
        return ""
    at = datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
    return f"removed by the pipeline's retention at {at}"


def checked_files(folder: Path, digests: Mapping[str, str], *, kind: str, name: str) -> list[Check]:
    """Compare the files of a checkpoint with their digests."""
    return [_file(folder / file, sha, kind=kind, name=f"{name}, {file}") for file, sha in digests.items()]


def _file(path: Path, stored: str, *, kind: str, name: str) -> Check:
    if not path.is_file():
        return Check(kind, name, "gone", stored, detail=f"there is no file {path}")
    found = digest(path)
    detail = "" if found == stored else f"{path} was changed"
    return Check(kind, name, "same" if found == stored else "differs", stored, found, detail)


def checked_installation(then: Mapping[str, str], now: Mapping[str, str]) -> list[Check]:
    """Compare the own networks and weight files that the strategy names."""
    return [
        Check(
            "installation",
            name,
            "same" if now.get(name) == what else "differs" if name in now else "gone",
            what,
            now.get(name),
            "" if now.get(name) == what else "see HOLDFAST_NETWORKS and HOLDFAST_WEIGHTS",
        )
        for name, what in then.items()
    ]
