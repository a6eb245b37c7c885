"""Replay buffers own copies, stay bounded, and are fair; batches visit what they must."""

import pytest
import torch
from torch import Tensor

from strategies.learning.batches import Records, ReplayBatches, TensorBatches
from strategies.plugins.buffers import Balance, ReplayBuffer


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def offer(buffer: ReplayBuffer, values: Tensor, rows: Tensor | None = None, *, draw: torch.Generator) -> None:
    rows = torch.zeros(len(values), dtype=torch.int64) if rows is None else rows
    buffer.offer(values.float().unsqueeze(1), rows, generator=draw)


def kept(buffer: ReplayBuffer) -> Tensor:
    assert buffer.inputs is not None
    return buffer.inputs.squeeze(1).long()


@pytest.mark.parametrize("balance", ["records", "classes"])
def test_a_buffer_never_passes_its_capacity_and_frees_the_rest(balance: Balance) -> None:
    buffer, draw = ReplayBuffer(10, balance), generator()
    for index in range(50):
        offer(buffer, torch.arange(7) + 7 * index, torch.arange(7) % 3, draw=draw)
        assert len(buffer) == min(10, 7 * (index + 1))
        sizes = {name: tensor.untyped_storage().nbytes() for name, tensor in buffer.tensors().items()}
        assert max(sizes.values()) <= 10 * 8
    assert buffer.offered == 350
    assert len(kept(buffer).unique()) == 10  # type: ignore[no-untyped-call]  # torch leaves it untyped


def test_a_buffer_owns_copies() -> None:
    buffer, source = ReplayBuffer(10), torch.arange(5.0).unsqueeze(1)
    buffer.offer(source, torch.zeros(5, dtype=torch.int64), generator=generator())
    source.fill_(-1)
    assert sorted(kept(buffer).tolist()) == [0, 1, 2, 3, 4]


def test_every_record_ever_offered_is_kept_with_equal_probability() -> None:
    # 40 experiences of 10 records, of uneven classes, capacity 20: each experience expects 0.5 records.
    repeats, counts = 400, torch.zeros(40)
    draw = generator()
    for _ in range(repeats):
        buffer = ReplayBuffer(20)
        for index in range(40):
            offer(buffer, torch.full((10,), index), draw=draw)
        counts += torch.bincount(kept(buffer), minlength=40)
    expected = repeats * 20 / 40
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert chi_squared < 73  # its 0.999 quantile at 39 degrees of freedom, and a generous one: no replacement


def test_classes_share_the_places_and_each_is_sampled_evenly() -> None:
    repeats, first_half = 200, 0
    draw = generator()
    for _ in range(repeats):
        buffer = ReplayBuffer(30, "classes")
        offer(buffer, torch.arange(500), torch.zeros(500, dtype=torch.int64), draw=draw)
        offer(buffer, 500 + torch.arange(500), torch.arange(500).clamp(max=496) // 496, draw=draw)
        offer(buffer, 1000 + torch.arange(60), torch.full((60,), 2), draw=draw)
        assert torch.bincount(buffer.rows).tolist() == [13, 4, 13]
        of_first_class = kept(buffer)[buffer.rows == 0]
        first_half += int((of_first_class < 498).sum())
    # 996 records of class 0: binomial, 2600 draws of one half, five deviations.
    assert abs(first_half - 1300) < 5 * (2600 / 4) ** 0.5


def test_experiences_share_the_places_evenly() -> None:
    buffer, draw = ReplayBuffer(30, "experiences"), generator()
    for index, size in enumerate((500, 10, 4, 100)):
        offer(buffer, 1000 * index + torch.arange(size), draw=draw)
    # The small one gives what it cannot fill to the others.
    assert torch.bincount(buffer.came)[2] == 4
    assert torch.bincount(buffer.came).sort().values.tolist() == [4, 8, 9, 9]
    assert (kept(buffer) // 1000 == buffer.came).all()


def test_more_experiences_than_places_have_one_each_by_chance() -> None:
    uses = torch.zeros(30)
    for seed in range(150):
        buffer, draw = ReplayBuffer(10, "experiences"), generator(seed)
        for _ in range(30):
            offer(buffer, torch.arange(5), draw=draw)
        assert len(torch.unique(buffer.came)) == 10
        uses[buffer.came] += 1
    # 150 draws of a third each: five deviations.
    assert (uses - 50).abs().max() < 5 * (150 * 2 / 9) ** 0.5


def test_the_same_generator_keeps_the_same_records() -> None:
    def run(seed: int) -> list[int]:
        buffer, draw = ReplayBuffer(10), generator(seed)
        for index in range(5):
            offer(buffer, torch.arange(20) + 20 * index, draw=draw)
        return kept(buffer).tolist()

    assert run(1) == run(1) != run(2)


def test_a_restored_buffer_goes_on_alike() -> None:
    first, second = ReplayBuffer(10), ReplayBuffer(10)
    offer(first, torch.arange(30), draw=generator())
    second.restore({k: v.clone() for k, v in first.tensors().items()}, first.facts())
    for buffer in (first, second):
        offer(buffer, 30 + torch.arange(30), draw=generator(1))
    assert torch.equal(kept(first), kept(second))
    assert first.offered == second.offered == 60


def batches(records: int, batch_size: int, draw: torch.Generator) -> TensorBatches:
    values = torch.arange(records)
    return TensorBatches(Records(values.float(), values), batch_size, draw)


def test_an_epoch_visits_every_record_once_in_a_fresh_order() -> None:
    loader = batches(50, 16, generator())
    epochs = [[batch.rows for batch in loader] for _ in range(2)]
    assert [len(rows) for rows in epochs[0]] == [16, 16, 16, 2]
    assert len(loader) == 4
    orders = [torch.cat(epoch) for epoch in epochs]
    assert all(order.sort().values.tolist() == list(range(50)) for order in orders)
    assert not torch.equal(orders[0], orders[1])
    assert all(torch.equal(batch.inputs, batch.rows.float()) for batch in loader)
    assert all(torch.equal(batch.new, batch.rows) and not len(batch.kept) for batch in loader)


@pytest.mark.parametrize(("held", "share"), [(5, 5), (16, 16), (100, 16)])
def test_a_replay_step_takes_new_and_kept_records(held: int, share: int) -> None:
    new = batches(50, 16, generator())
    kept = Records(1000 + torch.arange(held).float(), 1000 + torch.arange(held))
    taken = list(ReplayBatches(new, kept, replayed=16))
    assert all(torch.equal(batch.inputs, batch.rows.float()) for batch in taken)
    assert all(torch.equal(batch.rows, torch.cat((batch.new, 1000 + batch.kept))) for batch in taken)
    steps = [batch.rows for batch in taken]
    assert len(steps) == len(new) == 4
    assert [len(rows) for rows in steps] == [16 + share] * 3 + [2 + share]
    every = torch.cat(steps)
    assert every[every < 1000].sort().values.tolist() == list(range(50))
    uses = torch.bincount(every[every >= 1000] - 1000, minlength=held)
    assert int(uses.max()) - int(uses.min()) <= 1
