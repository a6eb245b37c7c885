"""Bodies of past holdouts and of the freeze."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from service.api.bodies.base import Body, ReasonRequest


class HoldoutMargin(ReasonRequest):
    """The margin of one past holdout: the accuracy that an update may lose on it."""

    margin: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        description="A share: 0.05 is 5 points. null: the pipeline's `gate.margin`."
    )


class FreezeView(Body):
    """The audit that stopped promotion."""

    update: str = Field(description="The update whose audit did not pass.")
    last_audited: int | None = Field(description="The newest version whose audit passed.")


class HoldoutView(Body):
    """A past holdout: records of an experience that the champion learnt, never trained on."""

    experience: int
    records: int = Field(description="Of the gate part.")
    judged_records: int = Field(description="Of these, the number that updates are compared on.")
    sealed_records: int = Field(description="Of the audit part, which only audits read.")
    looks: int = Field(description="Updates that were compared on it.")
    looks_left: int = Field(description="Until it is exhausted as evidence.")
    audits: int = Field(description="Looks at the audit part.")
    failed_audits: int = Field(description="Of these, the ones that did not pass.")
    anchor_version: int = Field(description="The version right after its experience was learnt.")
    retired: bool = Field(description="True: updates are no longer compared on it.")
    pinned: bool = Field(description="True: it is always judged whole, however many come after it.")
    margin: float = Field(description="Its own margin, or else the pipeline's.")


class HoldoutsView(Body):
    """The past holdouts of a pipeline."""

    pipeline: str
    freeze: FreezeView | None = Field(description="Not null: promotion is frozen.")
    holdouts: Sequence[HoldoutView]
