"""The JSON file of a saved state: strategy, config, stream and counters. Imports no torch."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from strategies.errors import StateError
from strategies.stream_info import StreamInfo

SCHEMA_VERSION = 1
STATE_FILE = "state.json"


class StateDocument(BaseModel):
    """The content of `state.json`, except for its own digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    strategy: str
    config: dict[str, JsonValue]
    stream_info: StreamInfo
    facts: dict[str, JsonValue]
    tensors_sha256: str


def encode_document(document: StateDocument) -> str:
    """The text of `state.json`: the document and its digest; the same document gives the same text."""
    content = document.model_dump(mode="json")
    whole = {"document": content, "sha256": document_digest(content)}
    return json.dumps(whole, indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_document(directory: Path) -> StateDocument:
    """Read and check `state.json` in `directory`.

    Raises:
        StateError: missing, damaged, or of an unknown version.
    """
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
        raise damaged(path, f"it cannot be read: {error}") from error
    if digest != document_digest(document):
        raise damaged(path, "its content is not what was saved")
    if version != SCHEMA_VERSION:
        raise StateError(
            f"{directory} has state version {version}, and this program reads version {SCHEMA_VERSION}; "
            "load it with the program version that saved it"
        )
    try:
        return StateDocument.model_validate(document)
    except ValidationError as error:
        raise damaged(path, f"it lacks what a state has: {error}") from error


def document_digest(document: JsonValue) -> str:
    """The sha256 of a document's canonical JSON."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def damaged(path: Path, why: str) -> StateError:
    """The error for a damaged file of a saved state, with the remedy."""
    return StateError(f"{path} is damaged: {why}; restore the folder from a copy, or load an older state")
