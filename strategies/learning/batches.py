"""Batches indexed out of whole tensors: the data loaders of Avalanche's training loop.

Avalanche fetches record by record; for small records that costs 16 to 38 times as much as indexing.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """The records of one step: new ones first, then kept ones."""

    inputs: Tensor
    """(b, *shape) float32, prepared: what `Network.answer` takes."""
    rows: Tensor
    """(b,) dense labels."""
    new: Tensor
    """(f,) indices of the new records in their experience."""
    kept: Tensor
    """(b - f,) indices of the kept records among all that are kept."""

    @property
    def indices(self) -> tuple[Tensor, Tensor]:
        return self.new, self.kept

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """The inputs of the new ones, and those of the kept ones."""
        return self.inputs[: len(self.new)], self.inputs[len(self.new) :]


@dataclass(frozen=True)
class Records:
    """Records prepared for the network, taken by index."""

    inputs: Tensor
    """(n, *shape); prepared already where `prepare` is None."""
    rows: Tensor
    """(n,) dense labels, on the device that learns."""
    prepare: Callable[[Tensor], Tensor] | None = None
    """Function that prepares a batch of `inputs` on the device that learns."""
    channels_last: bool = False
    """Whether prepared `inputs` are (n, height, width, channels); `take` gives a view of the usual order."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def resident(self) -> bool:
        """Whether they are on the device that learns."""
        return self.inputs.device == self.rows.device

    def take(self, indices: Tensor) -> Tensor:
        """(b, *shape) prepared inputs."""
        if self.prepare is None:
            taken = self.inputs.index_select(0, indices)
            return taken.permute(0, 3, 1, 2) if self.channels_last else taken
        return self.prepare(self.inputs.index_select(0, indices.to(self.inputs.device)))


@dataclass(frozen=True)
class TensorBatches:
    """Iterates one epoch: each record once, in a new order each time."""

    records: Records
    batch_size: int
    generator: torch.Generator
    """On the CPU: the order is the same on every device."""
    chosen: Tensor | None = None
    """Indices that an epoch visits, on the CPU; None: all."""

    def among(self, indices: Tensor) -> "TensorBatches":
        """The same batches, over the records at `indices` only."""
        return replace(self, chosen=indices)

    @property
    def sources(self) -> tuple[Records]:
        return (self.records,)

    @property
    def visited(self) -> int:
        """Records of one epoch."""
        return len(self.records) if self.chosen is None else len(self.chosen)

    @property
    def whole_step(self) -> int:
        """Records of every step but the last of an epoch; 0 where there is one step alone, and not full."""
        return self.batch_size if self.visited >= self.batch_size else 0

    def __len__(self) -> int:
        return math.ceil(self.visited / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        rows = self.records.rows
        none = torch.empty(0, dtype=torch.int64, device=rows.device)
        for chosen in self.indices():
            yield Batch(self.records.take(chosen), rows.index_select(0, chosen), chosen, none)

    def indices(self) -> Iterator[Tensor]:
        """The indices of each batch of one epoch."""
        order = torch.randperm(self.visited, generator=self.generator)
        if self.chosen is not None:
            order = self.chosen[order]
        return iter(torch.split(order.to(self.records.rows.device), self.batch_size))


@dataclass(frozen=True)
class ReplayBatches:
    """As `TensorBatches` over the new records; each step also takes up to `replayed` kept records.

    An epoch is one pass over the new records. Kept records come in passes of their own, each in a fresh
    order, as many as the epoch needs; a step holds a record twice only where two passes meet.
    """

    new: TensorBatches
    kept: Records
    replayed: int

    @property
    def sources(self) -> tuple[Records, Records]:
        """The new records, and the kept ones."""
        return self.new.records, self.kept

    @property
    def whole_step(self) -> int:
        """Records of a full step as in `TensorBatches`, plus the kept ones."""
        new = self.new.whole_step
        return new + min(self.replayed, len(self.kept)) if new else 0

    def __len__(self) -> int:
        return len(self.new)

    def __iter__(self) -> Iterator[Batch]:
        kept, new = self.kept, self.new.records
        again = passes(kept, self.replayed, steps=len(self), generator=self.new.generator)
        for chosen, repeated in zip(self.new.indices(), again, strict=False):
            yield Batch(
                torch.cat((new.take(chosen), kept.take(repeated))),
                torch.cat((new.rows.index_select(0, chosen), kept.rows.index_select(0, repeated))),
                chosen,
                repeated,
            )


def passes(kept: Records, share: int, *, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """For each step the indices of `share` records, or of all; in repeated passes over all records."""
    share = min(share, len(kept))
    count = math.ceil(steps * share / len(kept))
    order = torch.cat([torch.randperm(len(kept), generator=generator) for _ in range(count)])
    # Brought over at once: a copy a step would wait for each step.
    return iter(torch.split(order.to(kept.rows.device), share))


def ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches, each fetched and brought to the GPU while the step on the one before is computed."""
    fetching = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting = iter(batches)

    def fetch() -> Batch | None:
        with torch.cuda.stream(fetching):
            return next(waiting, None)

    batch = fetch()
    while batch is not None:
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(fetching)
        for tensor in batch:
            # Its memory must not be given to the next batch while the step still reads it.
            tensor.record_stream(computing)
        following = fetch()
        yield batch
        batch = following
