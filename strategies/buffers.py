"""Past records that a strategy trains on again. What is kept here is a copy, never a view of an experience.

Avalanche's own buffers keep a reference to every dataset they ever saw, and their default stops admitting
new experiences once these outnumber its places; so the buffers are ours.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from strategies.avalanche_parts import SupervisedPlugin
from strategies.base import ExperienceUnfitError
from strategies.batches import ReplayBatches

Balance = Literal["records", "classes"]


class ReplayBuffer:
    """At most `capacity` records, each kept with a random key; the highest keys stay.

    Balance "records": a uniform sample without replacement of all records ever offered, whatever the
    experience they came in (reservoir sampling by random keys: Efraimidis and Spirakis, 2006, with equal
    weights). Balance "classes": places are shared evenly between the classes seen, and what a class cannot
    fill goes to the others; within a class the sample is uniform.

    Memory is bounded by the capacity, however many records are offered.
    """

    def __init__(self, capacity: int, balance: Balance = "records") -> None:
        self.capacity = capacity
        self.balance: Balance = balance
        self.offered = 0
        """Records ever offered."""
        self.inputs: Tensor | None = None
        """(n, *shape) as stored in the stream; None until the first record."""
        self.rows = torch.empty(0, dtype=torch.int64)
        """(n,) head rows, that is dense labels."""
        self.keys = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def offer(self, inputs: Tensor, rows: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Consider new records (n, *shape) with dense labels (n,) on the CPU; copy those that stay.

        Returns:
            Places of those that stay, in the order in which they are kept now: among those kept before, and
            then among the new ones.
        """
        # 62 random bits: with float32 keys, ties would favour old records after some millions of them.
        fresh = torch.randint(2**62, (len(rows),), generator=generator)
        keys, all_rows = torch.cat((self.keys, fresh)), torch.cat((self.rows, rows))
        stays = self._staying(keys, all_rows)
        old = len(self)
        kept, admitted = stays[stays < old], stays[stays >= old] - old
        parts = [inputs[admitted]] if self.inputs is None else [self.inputs[kept], inputs[admitted]]
        self.inputs = torch.cat(parts)
        self.keys, self.rows = keys[stays], all_rows[stays]
        self.offered += len(rows)
        return kept, admitted

    def _staying(self, keys: Tensor, rows: Tensor) -> Tensor:
        """Ascending places of the records that stay."""
        by_key = torch.argsort(keys, descending=True, stable=True)
        if self.balance == "classes":
            # Deal the places out in rounds, one a class: the order is (rank within the class, key).
            rank = torch.empty_like(rows)
            for row in torch.unique(rows):
                members = by_key[rows[by_key] == row]
                rank[members] = torch.arange(len(members))
            by_key = by_key[torch.argsort(rank[by_key], stable=True)]
        return by_key[: self.capacity].sort().values

    def tensors(self) -> dict[str, Tensor]:
        """What is kept; empty before the first record."""
        if self.inputs is None:
            return {}
        return {"inputs": self.inputs, "rows": self.rows, "keys": self.keys}

    def restore(self, tensors: Mapping[str, Tensor], *, offered: int) -> None:
        """Become the buffer whose `tensors()` and `offered` these are."""
        self.offered = offered
        if tensors:
            self.inputs, self.rows, self.keys = (tensors[name] for name in ("inputs", "rows", "keys"))


class ReplayPlugin(SupervisedPlugin):  # type: ignore[misc]  # Avalanche ships no types
    """Mixes kept records into every step, and offers the experience to the buffer after it was learnt."""

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
        return {"offered": self.buffer.offered}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], network: nn.Module) -> None:
        self.buffer.restore(tensors, offered=facts["offered"])


class CumulativePlugin(SupervisedPlugin):  # type: ignore[misc]  # Avalanche ships no types
    """Trains every experience on all records so far, of which it owns copies. Memory and time grow."""

    name = "cumulative"
    known = frozenset({"max_records", "inputs", "rows"})

    def __init__(self, max_records: int) -> None:
        super().__init__()
        self.max_records = max_records
        self.inputs: Tensor | None = None
        self.rows = torch.empty(0, dtype=torch.int64)

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        """Put all records in place of the new ones.

        Raises:
            ExperienceUnfitError: there would be more than `max_records` of them.
        """
        data = strategy.experience.dataset
        total = len(self.rows) + len(data.rows)
        if total > self.max_records:
            raise ExperienceUnfitError(
                f"the cumulative strategy would keep {total} records, above max_records={self.max_records}; "
                "raise max_records, or choose a strategy of bounded memory such as replay"
            )
        self.inputs = data.inputs if self.inputs is None else torch.cat((self.inputs, data.inputs))
        self.rows = torch.cat((self.rows, data.rows))
        strategy.dataloader = strategy.batches(strategy.records(self.inputs, self.rows))

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.inputs is None else {"inputs": self.inputs, "rows": self.rows}

    def facts(self) -> dict[str, JsonValue]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], network: nn.Module) -> None:
        if tensors:
            self.inputs, self.rows = tensors["inputs"], tensors["rows"]
