"""Assigns every record to the train, gate or audit part, by a hash of its split key."""

from typing import Annotated, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from streams.hashing import hash_texts
from streams.records import text_column

PartName = Literal["train", "gate", "audit"]
PARTS: tuple[PartName, ...] = ("train", "gate", "audit")
TRAIN, GATE, AUDIT = range(3)

Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class Split(BaseModel):
    """Shares of the records that are held out at arrival and never trained on.

    A change moves the border between the parts: a record sent again after it may then land elsewhere.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gate: Share = Field(0.25, description="Share that every update is judged on.")
    audit: Share = Field(0.2, description="Sealed share, read only when the erosion budget is checked.")

    @field_validator("gate")
    @classmethod
    def _judges(cls, gate: float) -> float:
        if gate == 0:
            raise ValueError("gate must be above 0: without a holdout there is nothing to judge an update by")
        return gate

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.gate + self.audit >= 1.0:
            raise ValueError("gate and audit together must be below 1: the rest is what is trained on")
        return self


def part_of(split_key: str, split: Split) -> PartName:
    """The part that a split key belongs to: always the same one, whenever and wherever it is asked."""
    return PARTS[int(parts_of(text_column([split_key]), split)[0])]


def parts_of(split_keys: pa.StringArray, split: Split) -> NDArray[np.uint8]:
    """(n,) the parts of many split keys, each as its index in `PARTS`."""
    hashes = hash_texts(split_keys)
    audit, gate = (_border(share) for share in (split.audit, split.audit + split.gate))
    parts = np.full(len(hashes), TRAIN, dtype=np.uint8)
    parts[hashes < gate] = GATE
    parts[hashes < audit] = AUDIT
    return parts


def _border(share: float) -> np.uint64:
    return np.uint64(min(int(share * 2**64), 2**64 - 1))
