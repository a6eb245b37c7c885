"""What callers are told of an exception: our own words, or a number that finds the rest in the log.

The text of a foreign exception may hold a password in a URL, a statement with its parameters, a path of this
machine, or whatever another server answered.
"""

import secrets
from dataclasses import dataclass

from service.errors import HoldfastError
from strategies.errors import StrategyError
from streams.base import StreamError

OURS = (HoldfastError, StreamError, StrategyError)
"""Exceptions whose text is written by us, for whoever meets them."""


@dataclass(frozen=True)
class Told:
    """What may be shown of an exception."""

    text: str
    incident: str | None
    """The number that the text names, for `incident` of the log's line; None: nothing is left out."""


def tell(error: BaseException, *, role: str) -> Told:
    """What to show of an exception in an answer, a row or MLflow; `role` names whose log has the rest."""
    if isinstance(error, OURS):
        return Told(str(error), None)
    incident = number()
    kind = type(error).__name__
    text = f"{kind}: a fault inside Holdfast. The log of the {role} role has it as incident {incident}."
    return Told(text, incident)


def number() -> str:
    """A new number of an incident."""
    return secrets.token_hex(6)
