"""Bodies of past holdouts and of the freeze."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from service.api.bodies.base import Body, ReasonRequest, moment
from service.api.bodies.pipelines import EntryView
from service.ingest.golden import Added, Sizes
from service.state.golden import GoldenSet

Margin = Annotated[float, Field(gt=0, lt=1)]
GoldenName = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,62}$"),
    Field(description="Up to 63 of a-z, 0-9 and -, the first of them a letter."),
]


class HoldoutMargin(ReasonRequest):
    """The margin of one past holdout: the accuracy that an update may lose on it."""

    margin: Margin | None = Field(
        description="A share: 0.05 is 5 points. null: the pipeline's `gate.margin`."
    )


class GoldenRequest(ReasonRequest):
    """Parameters of a golden set that is added."""

    # It comes as query parameters, which are texts.
    model_config = ConfigDict(strict=False)

    name: GoldenName
    margin: Margin | None = Field(
        None, description="What an update may truly lose less than on it. A share: 0.05 is 5 points."
    )
    none_lost: bool = Field(False, description="True, instead of a margin: no right answer may be lost.")

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if (self.margin is None) != self.none_lost:
            raise ValueError("name either margin or none_lost=true")
        return self


class GoldenMargin(ReasonRequest):
    """The margin of a golden set from now on."""

    margin: Margin | None = Field(description="A share: 0.05 is 5 points. null: no right answer may be lost.")


class GoldenView(Body):
    """A golden set: curated records that are never trained on, and that every update is compared on."""

    name: str
    number: int = Field(description="0, 1, 2 ... within the pipeline; findings name it as `golden`.")
    records: int
    margin: float | None = Field(description="null: no right answer may be lost.")
    since_version: int | None = Field(description="The champion when it was added; null: there was none.")
    anchor_version: int | None = Field(
        description="The version that updates are compared with as well; null: the first that is promoted."
    )
    added_at: datetime
    looks: int = Field(description="Updates that were compared on it.")
    retired: bool = Field(description="True: updates are no longer compared on it.")

    @staticmethod
    def of(golden: GoldenSet, looks: int) -> "GoldenView":
        return GoldenView(
            name=golden.name,
            number=golden.number,
            records=golden.part.rows,
            margin=golden.margin,
            since_version=golden.since_version,
            anchor_version=golden.anchor_version,
            added_at=moment(golden.added_at),
            looks=looks,
            retired=golden.retired,
        )


class SizesView(Body):
    """How many records a margin takes, at the first try of an update."""

    fewest: int = Field(description="With fewer, no update can pass: a person decides each.")
    likely: int = Field(description="With so many, an update that lost nothing passes 8 times in 10.")

    @staticmethod
    def of(sizes: Sizes) -> "SizesView":
        return SizesView(fewest=sizes.fewest, likely=sizes.likely)


class GoldenAdded(Body):
    """A golden set that was added, or that replaces a relabelled holdout."""

    golden: GoldenView
    entry: EntryView = Field(description="Its entry in the ledger.")
    takes: SizesView | None = Field(
        description="How many records its margin takes; null: no right answer may be lost."
    )
    unchecked_experiences: int = Field(
        description="Experiences whose ids are not known any more: their train parts were removed."
    )
    replaces: str | None = Field(
        description="The golden set that a relabelled one replaces, retired now; null: it replaces none."
    )

    @staticmethod
    def of(added: Added) -> "GoldenAdded":
        return GoldenAdded(
            golden=GoldenView.of(added.golden, 0),
            entry=EntryView.of(added.entry),
            takes=SizesView.of(added.sizes) if added.sizes else None,
            unchecked_experiences=added.unchecked,
            replaces=added.replaces,
        )


class HoldoutTraffic(ReasonRequest):
    """The share of today's traffic that one past holdout stands for."""

    traffic: Annotated[float, Field(ge=0, le=1, strict=True)] | None = Field(
        description="A share: 0.01 is 1 %. null: unknown."
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
    kept: bool = Field(description="True: its labels are still true, so its rejections are no question.")
    traffic: float | None = Field(
        description="Share of today's traffic that its records stand for; null: nobody said."
    )
    margin: float = Field(description="Its own margin, or else the pipeline's.")


class HoldoutsView(Body):
    """The past holdouts of a pipeline."""

    pipeline: str
    freeze: FreezeView | None = Field(description="Not null: promotion is frozen.")
    holdouts: Sequence[HoldoutView]
    golden: Sequence[GoldenView] = Field(description="Golden sets, in the order in which they were added.")
