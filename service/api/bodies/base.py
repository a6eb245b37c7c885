"""Base of all bodies: strict fields, a reason with its author, times with a zone."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from service.api.parameters import MAX_INTEGER
from service.state.ledger import By

Reason = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=2000),
    Field(description="Why, for whoever reads it later. Must not be empty."),
]
Actor = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200),
    Field(description="Who decides."),
]
Index = Annotated[int, Field(ge=0, le=MAX_INTEGER)]


class Body(BaseModel):
    """A body that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class StrictBody(Body):
    """A request body in JSON, in which a number is a number, and a text is a text."""

    model_config = ConfigDict(strict=True)


class ReasonRequest(StrictBody):
    """Why a person does this, and who that person is."""

    reason: Reason
    by: Actor = "anonymous"

    @property
    def decided_by(self) -> By:
        """The same as one value."""
        return By(self.by, self.reason)


def moment(seconds: float) -> datetime:
    """Epoch seconds as a time in UTC."""
    return datetime.fromtimestamp(seconds, UTC)
