"""Answers of the health routes."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from service.api.bodies.base import Body


class Alive(Body):
    """The process answers."""

    status: Literal["alive"] = "alive"


class RoleView(Body):
    """One process of the service."""

    role: str = Field(description="ingest or dispatch.")
    instance: str = Field(description="Host and process id.")
    seconds_ago: float = Field(description="Seconds since its last sign of life.")


class Ready(Body):
    """The database answers; `roles` gave a sign of life in the last ten seconds."""

    status: Literal["ready"] = "ready"
    roles: Sequence[RoleView]
