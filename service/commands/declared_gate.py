"""The gate that options and a pipeline's file declare together, for commands that need no service."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.commands.pipelines import read_document
from service.errors import HoldfastError
from service.gate.base import GateConfig
from streams.split import Split
from streams.triggers.catalog import TriggerChoice


class _Document(BaseModel):
    """The parts of a pipeline's file that its gate depends on; what else it holds is not read."""

    model_config = ConfigDict(extra="ignore")

    gate: dict[str, Any] = Field(default_factory=dict)
    split: Split = Field(default_factory=Split)
    trigger: TriggerChoice | None = None


@dataclass(frozen=True)
class DeclaredGate:
    """A gate, and the experiences that it judges."""

    config: GateConfig
    split: Split
    records: int | None
    """Records of each experience, where the trigger declares one number."""


def declared_gate(
    file: Path | None, *, gate: Mapping[str, Any], split: Mapping[str, Any], records: int | None
) -> DeclaredGate:
    """The gate of a file, or the default one; options that are not None win.

    Raises:
        HoldfastError: the file or an option is no gate, and why.
    """
    given = {name: value for name, value in gate.items() if value is not None}
    shares = {name: value for name, value in split.items() if value is not None}
    try:
        document = _Document() if file is None else _Document.model_validate(read_document(file))
        config = GateConfig.model_validate({**document.gate, **given})
        parts = Split.model_validate({**document.split.model_dump(), **shares})
    except ValidationError as error:
        raise HoldfastError(
            f"{file or 'The gate'} cannot be: {_first(error.errors(include_url=False))}.",
            fix="Correct the file or the option; docs/reference/pipelines.md lists each field.",
        ) from error
    if records is None and document.trigger is not None:
        fewest, most = document.trigger.declared_records
        records = most if fewest == most else None
    return DeclaredGate(config, parts, records)


def _first(errors: Sequence[Any]) -> str:
    where = ".".join(str(part) for part in errors[0]["loc"])
    message: str = errors[0]["msg"].removeprefix("Value error, ").rstrip(".")
    return f"{where}: {message}" if where else message
