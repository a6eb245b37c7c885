"""The screen on real data: shift that belongs to life is left alone, broken pixels and labels are not."""

import gzip
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import rotate
from sklearn.datasets import load_digits

from service.gate import screen as screening
from service.gate.base import DataEvidence, GateConfig, Screen
from service.gate.guards import batch as batch_guards
from service.gate.screen import SAMPLE_SIZES, data_evidence, profile
from tests.support.real_data import DATA

CONFIG = GateConfig()
MNIST = DATA / "mnist"
ANGLES = (0, 25, 50, 75, 100)

Images = NDArray[np.float32]
Labels = NDArray[np.int64]
Batch = tuple[Images, Labels]


def digits() -> Batch:
    loaded = load_digits()
    order = np.random.default_rng(0).permutation(len(loaded.target))
    return (loaded.images[order] / 16).astype(np.float32), loaded.target[order].astype(np.int64)


@pytest.fixture(scope="module")
def rotated() -> list[Batch]:
    images, labels = digits()
    return [(rotate(images, angle, axes=(2, 1), reshape=False, order=1), labels) for angle in ANGLES]


@pytest.fixture(scope="module")
def split() -> list[Batch]:
    images, labels = digits()
    return [(images[labels // 2 == pair], labels[labels // 2 == pair]) for pair in range(5)]


def mnist() -> Batch:
    """The handwritten digits at 28 x 28 where they are at hand, the small ones otherwise."""
    files = [sorted(MNIST.glob(f"t10k-{kind}*.gz")) for kind in ("images", "labels")]
    if not all(files):
        return digits()
    pixels, classes = (gzip.decompress(found[0].read_bytes()) for found in files)
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28)
    return (images / np.float32(255)).astype(np.float32), np.frombuffer(classes, np.uint8, offset=8).astype(
        np.int64
    )


def evidence_of(batch: Batch, reference: list[Screen], *, seed: int = 0) -> DataEvidence:
    inputs, labels = batch
    return data_evidence(inputs, labels, n_classes=10, shape=inputs.shape[1:], reference=reference, seed=seed)


def alarms(batch: Batch, reference: list[Screen], *, seed: int = 0) -> set[str]:
    """The guards that stop the batch."""
    found = batch_guards.data(evidence_of(batch, reference, seed=seed), CONFIG)
    assert "undecided" not in {finding.answer for finding in found}
    return {finding.guard for finding in found if finding.answer == "fail"}


def against_earlier(stream: list[Batch], *, seed: int) -> Iterator[tuple[Batch, list[Screen]]]:
    reference: list[Screen] = []
    for batch in stream:
        if reference:
            yield batch, list(reference)
        reference.append(profile(*batch, seed=seed))


def shuffled(batch: Batch, *, share: float, random: np.random.Generator) -> Batch:
    inputs, labels = batch[0], batch[1].copy()
    chosen = random.random(len(labels)) < share
    labels[chosen] = random.permutation(labels[chosen])
    return inputs, labels


def noise(images: Images, random: np.random.Generator) -> Images:
    return random.random(images.shape, dtype=np.float32)


def permuted(images: Images, random: np.random.Generator) -> Images:
    return random.permuted(images.reshape(len(images), -1), axis=1).reshape(images.shape)


def blocks(images: Images, random: np.random.Generator) -> Images:
    """A saturated square of half the width, anywhere."""
    damaged, width = images.copy(), images.shape[1] // 2
    for image in damaged:
        row, column = random.integers(0, images.shape[1] - width + 1, 2)
        image[row : row + width, column : column + width] = 1
    return damaged


def broken(
    batch: Batch,
    how: Callable[[Images, np.random.Generator], Images],
    *,
    share: float,
    random: np.random.Generator,
) -> Batch:
    images = batch[0].copy()
    chosen = random.random(len(images)) < share
    images[chosen] = how(images[chosen], random)
    return images, batch[1]


def test_rotation_never_alarms(rotated: list[Batch]) -> None:
    for seed in range(20):
        for batch, reference in against_earlier(rotated, seed=seed):
            assert alarms(batch, reference, seed=seed) == set()


def test_new_classes_never_alarm(split: list[Batch]) -> None:
    for seed in range(20):
        for batch, reference in against_earlier(split, seed=seed):
            assert alarms(batch, reference, seed=seed) == set()


def test_brightness_and_contrast_never_alarm() -> None:
    images, labels = digits()
    reference = [profile(images, labels)]
    for changed in (images * 0.3, images + 0.5, 1 - images, images**2, np.clip(images * 2, 0, 1)):
        assert alarms((changed.astype(np.float32), labels), reference) == set()


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_shuffled_labels_are_caught(rotated: list[Batch], share: float) -> None:
    random = np.random.default_rng(1)
    for seed in range(2):
        for batch, reference in against_earlier(rotated, seed=seed):
            assert alarms(shuffled(batch, share=share, random=random), reference) == {"labels"}


@pytest.mark.parametrize("share", [1.0, 0.4])
@pytest.mark.parametrize("how", [noise, permuted])
def test_structureless_pixels_are_caught_by_both_checks(
    rotated: list[Batch], how: Callable[[Images, np.random.Generator], Images], share: float
) -> None:
    random = np.random.default_rng(2)
    for seed in range(2):
        for batch, reference in against_earlier(rotated, seed=seed):
            caught = alarms(broken(batch, how, share=share, random=random), reference)
            assert caught == {"labels", "anomalies"}


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_saturated_blocks_are_caught_by_their_labels(rotated: list[Batch], share: float) -> None:
    random = np.random.default_rng(3)
    for seed in range(2):
        for batch, reference in against_earlier(rotated, seed=seed):
            assert alarms(broken(batch, blocks, share=share, random=random), reference) == {"labels"}


def test_noise_without_a_telling_label_is_still_an_anomaly(split: list[Batch]) -> None:
    """One class only: neighbours always agree, so the distances alone must see it."""
    images, labels = split[0]
    one = images[labels == 0], labels[labels == 0]
    random = np.random.default_rng(4)
    assert alarms(broken(one, noise, share=1.0, random=random), [profile(*one)]) == {"anomalies"}


def test_larger_images() -> None:
    images, labels = mnist()
    half = len(images) // 2
    reference = [profile(images[:half], labels[:half])]
    clean = images[half:], labels[half:]
    random = np.random.default_rng(5)
    assert alarms(clean, reference) == set()
    assert alarms(shuffled(clean, share=0.3, random=random), reference) == {"labels"}
    for how in (noise, permuted):
        damaged = broken(clean, how, share=0.4, random=random)
        assert alarms(damaged, reference) == {"labels", "anomalies"}


def test_classes_of_uneven_difficulty_never_alarm() -> None:
    """Ones lie close together, twos and threes do not: the threshold leaves room for that."""
    images, labels = mnist()
    pairs = [(images[labels // 2 == pair], labels[labels // 2 == pair]) for pair in range(5)]
    for batch, reference in against_earlier(pairs, seed=0):
        assert alarms(batch, reference) == set()


def table(random: np.random.Generator, n: int, *, features: int = 6) -> tuple[NDArray[np.float64], Labels]:
    """Two classes in columns whose scales span eighteen orders of magnitude; one column is constant."""
    labels = random.integers(0, 2, n).astype(np.int64)
    columns = random.normal(size=(n, features)) + 2.5 * labels[:, None]
    columns[:, -1] = 7.0
    return columns * np.logspace(-9, 9, features), labels


def test_tables_with_columns_of_any_scale() -> None:
    random = np.random.default_rng(6)
    reference = [profile(*table(random, 700))]
    values, labels = table(random, 700)
    fresh = data_evidence(values * 3 + 1, labels, n_classes=2, shape=(6,), reference=reference)
    assert {finding.answer for finding in batch_guards.data(fresh, CONFIG)} == {"pass"}
    unlabelled = data_evidence(
        values, random.permutation(labels), n_classes=2, shape=(6,), reference=reference
    )
    assert batch_guards.data(unlabelled, CONFIG)[2].answer == "fail"
    values[::100, 0] = 1e300
    absurd = data_evidence(values, labels, n_classes=2, shape=(6,), reference=reference)
    assert {finding.answer for finding in batch_guards.data(absurd, CONFIG)} == {"pass"}


def test_nonfinite_records_are_dropped_and_counted() -> None:
    images, labels = digits()
    images = images.copy()
    images[3, 0, 0], images[7, 2, 2], images[7, 3, 3] = np.nan, np.inf, -np.inf
    screen = profile(images, labels)
    assert screen.sizes == SAMPLE_SIZES
    assert np.isfinite(screen.distance_limits).all()
    seen = evidence_of((images, labels), [screen])
    assert seen.nonfinite_records == 2
    assert batch_guards.data(seen, CONFIG)[0].answer == "fail"
    nothing_left = np.full((100, 4), np.nan, dtype=np.float32)
    assert profile(nothing_left, np.zeros(100, dtype=np.int64)).sizes == ()


def test_constant_batch_stands_out_and_a_constant_reference_hides_nothing_new() -> None:
    images, labels = digits()
    dead = np.full_like(images, 0.5), labels
    assert "anomalies" in alarms(dead, [profile(images, labels)])
    assert profile(*dead).distance_limits == (1.0, 1.0, 1.0, 1.0)


def test_small_batches_have_fewer_sizes_and_are_compared_at_a_common_one() -> None:
    images, labels = digits()
    small, tiny = profile(images[:130], labels[:130]), profile(images[:63], labels[:63])
    assert small.sizes == (64, 128)
    assert tiny == Screen((), (), ())
    large = profile(images[200:], labels[200:])
    assert evidence_of((images[:130], labels[:130]), [large]).sample == 130
    assert evidence_of((images[:63], labels[:63]), [large]).sample == 0
    assert evidence_of((images, labels), [large, large, tiny, small]).sample == 1024
    assert not evidence_of((images, labels), [tiny]).has_reference
    assert not evidence_of((images, labels), []).has_reference
    empty = evidence_of((images[:0], labels[:0]), [large])
    assert (empty.records, empty.sample) == (0, 0)


def test_the_same_batch_gives_the_same_screen() -> None:
    images, labels = digits()
    assert profile(images, labels, seed=3) == profile(images, labels, seed=3)
    assert profile(images, labels, seed=3) != profile(images, labels, seed=4)
    flat = profile(images.reshape(len(images), -1), labels, seed=3)
    assert flat == profile(images, labels, seed=3)


@pytest.mark.parametrize(
    ("inputs", "labels", "says"),
    [
        (np.zeros((5, 3)), np.zeros(5, dtype=np.int64), "the shape (3,), (2,) was declared"),
        (np.zeros(5), np.zeros(5, dtype=np.int64), "the shape (), (2,) was declared"),
        (np.full((5, 2), "a"), np.zeros(5, dtype=np.int64), "numbers were expected"),
        (np.zeros((5, 2)), np.zeros(4, dtype=np.int64), "5 records came with labels of shape (4,)"),
        (np.zeros((5, 2)), np.zeros(5), "whole class numbers were expected"),
        (np.zeros((5, 2)), np.array([0, 1, 2, 10, 0]), "label 10 is not one of the 10 classes (0 to 9)"),
        (np.zeros((5, 2)), np.array([0, -1, 2, 1, 0]), "label -1 is not one of the 10 classes (0 to 9)"),
    ],
)
def test_misshapen_batches_are_described(
    inputs: NDArray[np.generic], labels: NDArray[np.generic], says: str
) -> None:
    seen = data_evidence(inputs, labels, n_classes=10, shape=(2,), reference=[])
    assert seen.misshapen is not None
    assert says in seen.misshapen
    assert batch_guards.data(seen, CONFIG)[0].answer == "fail"


def test_profile_refuses_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="5 records came with 4 labels"):
        profile(np.zeros((5, 2)), np.zeros(4, dtype=np.int64))


def test_a_large_batch_is_measured_on_no_more_records_than_a_small_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What it costs, `make bench AREA=gate` says.
    measured: list[tuple[int, int]] = []
    measure = screening._measure

    def counted(features: NDArray[np.float64], *arguments: Any, size: int, **more: Any) -> Any:
        measured.append((len(features), size))
        return measure(features, *arguments, size=size, **more)

    monkeypatch.setattr(screening, "_measure", counted)
    image = np.random.default_rng(7).random((1, 784), dtype=np.float32)
    counts = {}
    for records in (3_000, 60_000):
        measured.clear()
        profile(np.broadcast_to(image, (records, 784)), np.zeros(records, dtype=np.int64))
        counts[records] = list(measured)
    assert counts[60_000] == counts[3_000]
    assert [size for _, size in measured] == list(SAMPLE_SIZES)
