"""The `result` document, stored with each verdict: gate version, origin of the challenger, measured times."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from service.gate.base import GATE_VERSION
from service.state.inputs import digest_of
from service.training.tasks import Origin, Result
from service.updates.inputs import FORM


@dataclass(frozen=True)
class Measured:
    """Measured times. They cannot be reproduced, so they are inputs of the verdict."""

    seconds: float | None = None
    """Duration of learning."""
    champion_rounds: tuple[float, ...] = ()
    challenger_rounds: tuple[float, ...] = ()


@dataclass(frozen=True)
class ResultDocument:
    """Gate version, origin and measured times of a verdict, and its digest."""

    gate: int
    """Version of the gate that judged."""
    origin: Origin
    verdict: str
    """Digest of the verdict."""
    measured: Measured = field(default_factory=Measured)
    form: int = FORM


def result_document(result: Result, verdict: Mapping[str, Any]) -> ResultDocument:
    """The document to store with a verdict.

    Raises:
        ValueError: the result has no origin.
    """
    if result.origin is None:
        raise ValueError("a result without origin cannot be recorded; make it again")
    running = result.running
    return ResultDocument(
        gate=GATE_VERSION,
        origin=result.origin,
        verdict=verdict_digest(verdict),
        measured=Measured(running.seconds, running.champion_rounds, running.challenger_rounds)
        if running
        else Measured(),
    )


def verdict_digest(verdict: Mapping[str, Any]) -> str:
    """Digest of a verdict's JSON form; the same before it is stored and after it is read back."""
    return digest_of(json.dumps(verdict, sort_keys=True))
