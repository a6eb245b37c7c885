"""Answers of the health routes."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from service.api.bodies.base import Body


class Alive(Body):
    """The process answers."""

    status: Literal["alive"] = "alive"


class TroubleView(Body):
    """A loop of a role that fails, and is tried again, or whose turn has taken longer than a minute."""

    loop: str = Field(description="Such as upkeep, projector or ingest-PIPELINE.")
    reason: str = Field(description="Error and incident number: the role's log has the rest.")
    seconds: float = Field(description="Since when, seconds ago.")


class RoleView(Body):
    """One process of the service."""

    role: str = Field(description="ingest or dispatch.")
    instance: str = Field(description="Host and process id.")
    seconds_ago: float = Field(description="Seconds since its last sign of life.")
    troubles: Sequence[TroubleView] = Field(description="Loops of the process that fail or hang.")


class Ready(Body):
    """The database answers; `roles` gave a sign of life in the last ten seconds."""

    status: Literal["ready"] = "ready"
    roles: Sequence[RoleView]
