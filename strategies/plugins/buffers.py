"""Replay buffers: bounded copies of past records, and the plugins that train on them again.

Avalanche's own buffers keep a reference to every dataset they ever saw, and their default admits no new
experience once experiences outnumber its capacity; so the buffers are ours.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from strategies.base import ExperienceUnfitError
from strategies.learning.avalanche import SupervisedPlugin
from strategies.learning.batches import ReplayBatches

Balance = Literal["records", "classes", "experiences"]


class ReplayBuffer:
    """At most `capacity` records, each kept with a random key; the highest keys stay.

    Balance "records": a uniform sample without replacement of all records ever offered, whatever the
    experience they came in (reservoir sampling by random keys: Efraimidis and Spirakis, 2006, with equal
    weights). Balance "classes": the capacity is shared evenly between the classes seen, and what a class
    cannot fill goes to the others; within a class the sample is uniform. Balance "experiences": the same
    between experiences; once these outnumber the capacity, a uniform sample of them keeps one record each.

    Memory is bounded by the capacity, however many records are offered.
    """

    def __init__(self, capacity: int, balance: Balance = "records") -> None:
        self.capacity = capacity
        self.balance: Balance = balance
        self.offered = 0
        """Records ever offered."""
        self.experiences = 0
        """Times that records were offered."""
        self.inputs: Tensor | None = None
        """(n, *shape) as stored in the stream; None until the first record."""
        self.rows = torch.empty(0, dtype=torch.int64)
        """(n,) head rows, that is dense labels."""
        self.keys = torch.empty(0, dtype=torch.int64)
        self.came = torch.empty(0, dtype=torch.int64)
        """(n,) the experience that each record came in, counted from 0."""

    def __len__(self) -> int:
        return len(self.rows)

    def offer(self, inputs: Tensor, rows: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Consider new records (n, *shape) with dense labels (n,) on the CPU; copy those that stay.

        Returns:
            Indices of the records that stay, in the new order: those among the records kept before, and those
            among the new ones.
        """
        # 62 random bits: with float32 keys, ties would favour old records after some millions of them.
        fresh = torch.randint(2**62, (len(rows),), generator=generator)
        keys, all_rows = torch.cat((self.keys, fresh)), torch.cat((self.rows, rows))
        came = torch.cat((self.came, torch.full((len(rows),), self.experiences)))
        groups = {"records": None, "classes": all_rows, "experiences": came}[self.balance]
        stays = self._staying(keys, groups)
        old = len(self)
        kept, admitted = stays[stays < old], stays[stays >= old] - old
        parts = [inputs[admitted]] if self.inputs is None else [self.inputs[kept], inputs[admitted]]
        self.inputs = torch.cat(parts)
        self.keys, self.rows, self.came = keys[stays], all_rows[stays], came[stays]
        self.offered += len(rows)
        self.experiences += 1
        return kept, admitted

    def _staying(self, keys: Tensor, groups: Tensor | None) -> Tensor:
        """Ascending indices of the records that stay; groups (n,) share the capacity evenly."""
        by_key = torch.argsort(keys, descending=True, stable=True)
        if groups is not None:
            # Round robin over the groups: the order is (rank within the group, key).
            by_group = torch.argsort(groups[by_key], stable=True)
            _, sizes = torch.unique(groups, return_counts=True)
            starts = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
            rank = torch.empty_like(groups)
            rank[by_group] = torch.arange(len(groups)) - starts
            by_key = by_key[torch.argsort(rank, stable=True)]
        return by_key[: self.capacity].sort().values

    def tensors(self) -> dict[str, Tensor]:
        """Kept records; empty before the first record."""
        if self.inputs is None:
            return {}
        return {"inputs": self.inputs, "rows": self.rows, "keys": self.keys, "came": self.came}

    def facts(self) -> dict[str, JsonValue]:
        return {"offered": self.offered, "experiences": self.experiences}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Become the buffer whose `tensors()` and `facts()` these are."""
        self.offered, self.experiences = facts["offered"], facts["experiences"]
        if tensors:
            self.inputs, self.rows = tensors["inputs"], tensors["rows"]
            self.keys, self.came = tensors["keys"], tensors["came"]


class ReplayPlugin(SupervisedPlugin):  # type: ignore[misc]  # Avalanche ships no types
    """Mixes kept records into every step; after an experience, offers its records to the buffer."""

    name = "replay"
    known = frozenset({"buffer", "replayed"})

    def __init__(self, buffer: ReplayBuffer, replayed: int) -> None:
        """`replayed`: kept records a step, next to the batch of new ones."""
        super().__init__()
        self.buffer = buffer
        self.replayed = replayed

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        if self.buffer.inputs is None:
            return
        strategy.dataloader = ReplayBatches(
            strategy.dataloader,
            kept=strategy.records(self.buffer.inputs, self.buffer.rows),
            replayed=self.replayed,
        )

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        data = strategy.experience.dataset
        self.buffer.offer(data.inputs, data.rows, generator=strategy.generator)

    def tensors(self) -> dict[str, Tensor]:
        return self.buffer.tensors()

    def facts(self) -> dict[str, JsonValue]:
        return self.buffer.facts()

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], network: nn.Module) -> None:
        self.buffer.restore(tensors, facts)


class CumulativePlugin(SupervisedPlugin):  # type: ignore[misc]  # Avalanche ships no types
    """Trains every experience on copies of all records so far. Memory and time grow."""

    name = "cumulative"
    known = frozenset({"max_records", "fresh", "inputs", "rows"})

    def __init__(self, max_records: int, *, fresh: bool = False) -> None:
        """`fresh`: a newly drawn network learns them each time."""
        super().__init__()
        self.max_records = max_records
        self.fresh = fresh
        self.inputs: Tensor | None = None
        self.rows = torch.empty(0, dtype=torch.int64)

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        """Replace the new records by all records so far.

        Raises:
            ExperienceUnfitError: there would be more than `max_records` of them.
        """
        data = strategy.experience.dataset
        total = len(self.rows) + len(data.rows)
        if total > self.max_records:
            raise ExperienceUnfitError(
                f"this strategy would keep {total} records, above max_records={self.max_records}; "
                "raise max_records, or choose a strategy of bounded memory such as replay"
            )
        self.inputs = data.inputs if self.inputs is None else torch.cat((self.inputs, data.inputs))
        self.rows = torch.cat((self.rows, data.rows))
        if self.fresh:
            strategy.restart()
        strategy.dataloader = strategy.batches(strategy.records(self.inputs, self.rows))

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.inputs is None else {"inputs": self.inputs, "rows": self.rows}

    def facts(self) -> dict[str, JsonValue]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], network: nn.Module) -> None:
        if tensors:
            self.inputs, self.rows = tensors["inputs"], tensors["rows"]
