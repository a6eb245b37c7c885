"""The document that is stored with a verdict: where it comes from, besides configuration and plan."""

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
    """What a clock said: it cannot be made again, so it is an input of the verdict."""

    seconds: float | None = None
    """That learning took."""
    champion_rounds: tuple[float, ...] = ()
    challenger_rounds: tuple[float, ...] = ()


@dataclass(frozen=True)
class ResultDocument:
    """Where a verdict comes from."""

    gate: int
    """Version of the gate that judged."""
    origin: Origin
    verdict: str
    """Digest of the verdict."""
    measured: Measured = field(default_factory=Measured)
    form: int = FORM


def result_document(result: Result, verdict: Mapping[str, Any]) -> ResultDocument:
    """What is stored with a verdict.

    Raises:
        ValueError: the result does not say where it comes from.
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
    """Digest of a verdict's JSON form, as it was made or as it comes back from the database."""
    return digest_of(json.dumps(verdict, sort_keys=True))
