"""Real digits as a stream: the published protocols, the same every time."""

import gzip
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from streams.allowed import Allowed
from streams.base import RecordSchema, SourceError
from streams.records import Records, join_records
from streams.sources.datasets import (
    BLOCK_RECORDS,
    DIGITS_SCHEMA,
    MNIST_SCHEMA,
    DatasetsConfig,
    DatasetsSource,
    digits_step,
)
from streams.sources.mnist import IMAGES, RAREST_PAIR
from streams.triggers.catalog import RecordsTrigger, TriggerContext
from streams.wire.decode import decode, decode_batch, decode_json, encode_batch, encode_json, json_fields
from tests.support.real_data import DATA, mnist_test

ROTATED = DatasetsConfig()
SPLIT = DatasetsConfig(protocol="split-digits")
PERMUTED = DatasetsConfig(protocol="permuted-digits", permutations=3)
ANYWHERE = Allowed(roots=("/",))
FILES = DATA / "mnist"


def mnist_config(protocol: str, **changes: object) -> DatasetsConfig:
    fields = {"protocol": protocol, "folder": str(FILES), "images": "test"} | changes
    return DatasetsConfig.model_validate(fields)


def read(source: DatasetsSource, schema: RecordSchema, *, size: int = 700) -> Records:
    """What is left of a stream that is open."""
    found: list[Records] = []
    while batches := source.poll(size, 0.0):
        for batch in batches:
            decoded = decode(batch, schema)
            assert not decoded.rejected
            assert len(decoded.records) == len(batch.positions)
            found.append(decoded.records)
    return join_records(found, schema)


def test_rotated_digits_show_every_image_under_every_angle() -> None:
    assert ROTATED.steps == 5
    images = set()
    for step, angle in enumerate(ROTATED.angles):
        records = digits_step(ROTATED, step)
        assert len(records) == ROTATED.records_per_step == 1797
        sent = encode_json(records, DIGITS_SCHEMA)
        assert not decode_json(sent, DIGITS_SCHEMA, positions=records.split_keys.tolist()).rejected
        assert records.ids[0].as_py() == f"{records.split_keys[0]}@{angle:g}"
        images.add(frozenset(records.split_keys.tolist()))
    assert len(images) == 1


def test_rotation_turns_the_image_and_keeps_its_label() -> None:
    config = DatasetsConfig(angles=(0.0, 90.0))
    upright, turned = (digits_step(config, step) for step in range(2))
    index = {key: row for row, key in enumerate(turned.split_keys.tolist())}
    for row, key in enumerate(upright.split_keys.tolist()[:50]):
        other = index[key]
        assert upright.labels[row] == turned.labels[other]
        assert np.allclose(np.rot90(upright.features[row]), turned.features[other], atol=1e-4)


def test_split_digits_show_two_classes_a_step() -> None:
    seen: list[str] = []
    for step in range(SPLIT.steps):
        records = digits_step(SPLIT, step)
        assert set(records.labels.tolist()) == {2 * step, 2 * step + 1}
        assert len(records) == SPLIT.records_per_step == 354
        seen += records.ids.tolist()
    assert len(seen) == len(set(seen)) == 5 * 354


def test_a_split_step_is_as_long_as_the_rarest_pair_and_the_seed_decides_who_is_left_out() -> None:
    images = digits_step(ROTATED, 0)
    assert np.bincount(images.labels // 2).min() == SPLIT.records_per_step
    one, same, other = (
        set(digits_step(DatasetsConfig(protocol="split-digits", seed=seed), 0).ids.tolist())
        for seed in (3, 3, 4)
    )
    assert one == same != other


def test_permuted_digits_show_every_image_in_one_other_order_of_pixels_a_step() -> None:
    assert (PERMUTED.steps, PERMUTED.records_per_step) == (3, 1797)
    upright = digits_step(DatasetsConfig(angles=(0.0,)), 0)
    index = {key: row for row, key in enumerate(upright.split_keys.tolist())}
    orders = set()
    for step in range(3):
        records = digits_step(PERMUTED, step)
        assert not decode_json(
            encode_json(records, DIGITS_SCHEMA), DIGITS_SCHEMA, positions=records.ids.to_pylist()
        ).rejected
        assert records.ids[0].as_py() == f"{records.split_keys[0]}@p{step}"
        rows = [index[key] for key in records.split_keys.tolist()]
        assert (upright.labels[rows] == records.labels).all()
        before, after = (found.reshape(1797, 64) for found in (upright.features[rows], records.features))
        orders.add(
            np.array([np.flatnonzero((column == before.T).all(axis=1))[0] for column in after.T]).tobytes()
        )
        assert (np.sort(before, axis=1) == np.sort(after, axis=1)).all()
        assert (before == after).all() == (step == 0)
    assert len(orders) == 3
    again, other = (DatasetsConfig(protocol="permuted-digits", seed=seed) for seed in (0, 1))
    assert (digits_step(again, 2).features == digits_step(PERMUTED, 2).features).all()
    same_order = np.argsort(digits_step(other, 2).ids.tolist())
    assert not np.array_equal(
        digits_step(other, 2).features[same_order],
        digits_step(again, 2).features[np.argsort(digits_step(again, 2).ids.tolist())],
    )


@pytest.mark.parametrize("config", [ROTATED, SPLIT], ids=["rotated", "split"])
def test_a_trigger_of_one_step_cuts_one_experience_a_step(config: DatasetsConfig) -> None:
    source, trigger = (
        DatasetsSource(config, allowed=ANYWHERE),
        RecordsTrigger(records=config.records_per_step),
    )
    source.open({})
    pending: list[Records] = []
    while batches := source.poll(700, 0.0):
        pending += [decode(batch, DIGITS_SCHEMA).records for batch in batches]
    left, step = join_records(pending, DIGITS_SCHEMA), 0
    while (cut := trigger.watch({}, TriggerContext()).see(left, 0.0, 0.0)) is not None:
        assert left.ids[: cut.records].tolist() == digits_step(config, step).ids.tolist()
        left, step = left.take(slice(cut.records, None)), step + 1
    assert (step, len(left)) == (config.steps, 0)


def test_the_seed_decides_the_order_alone() -> None:
    one, same, other = (digits_step(DatasetsConfig(seed=seed), 1) for seed in (3, 3, 4))
    assert one.ids.tolist() == same.ids.tolist()
    assert one.ids.tolist() != other.ids.tolist()
    assert sorted(one.ids.tolist()) == sorted(other.ids.tolist())


def test_the_source_gives_the_steps_in_order() -> None:
    source = DatasetsSource(SPLIT)
    source.open({})
    ids = read(source, DIGITS_SCHEMA).ids.tolist()
    assert ids == [name for step in range(5) for name in digits_step(SPLIT, step).ids.tolist()]


def test_records_can_be_sent_as_json() -> None:
    fields = json_fields(digits_step(ROTATED, 1).take(slice(2)), DIGITS_SCHEMA)
    assert set(fields[0]) == {"id", "features", "label", "split_key"}
    assert np.shape(fields[0]["features"]) == (8, 8)


@pytest.mark.parametrize("protocol", ["split-mnist", "permuted-mnist", "rotated-mnist"])
def test_mnist_is_streamed_step_by_step_and_resumes_anywhere(protocol: str) -> None:
    config = mnist_config(protocol, angles=(0.0, 30.0), permutations=2)
    expected = join_records([digits_step(config, step) for step in range(config.steps)], MNIST_SCHEMA)
    source = DatasetsSource(config, allowed=ANYWHERE)
    source.open({})
    whole = read(source, MNIST_SCHEMA, size=3000)
    assert len(decode_batch(encode_batch(whole, MNIST_SCHEMA), MNIST_SCHEMA)) == len(whole)
    assert len(whole) == config.steps * config.records_per_step
    assert whole.ids.equals(expected.ids)
    assert (whole.features == expected.features).all()
    size = config.records_per_step
    for index in (1, BLOCK_RECORDS - 1, BLOCK_RECORDS, size - 1, size, size + 700, len(whole) - 1):
        again = DatasetsSource(config, allowed=ANYWHERE)
        again.open({"digits": str(index)})
        (batch,) = again.poll(10, 0.0)
        assert batch.start == str(index)
        rows = decode(batch, MNIST_SCHEMA).records
        assert rows.ids.equals(whole.ids[index : index + len(rows)])
        again.close()


def test_mnist_shows_its_images_as_the_protocols_say() -> None:
    images, labels = mnist_test()
    split = mnist_config("split-mnist")
    for step in range(split.steps):
        records = digits_step(split, step)
        assert len(records) == split.records_per_step == RAREST_PAIR["test"]
        assert set(records.labels.tolist()) == {2 * step, 2 * step + 1}
        indices = [int(name.removeprefix("test-")) for name in records.ids.tolist()]
        assert (records.features == images[indices]).all()
        assert (records.labels == labels[indices]).all()
    rotated = mnist_config("rotated-mnist", angles=(0.0, 90.0, 37.0))
    assert rotated.records_per_step == IMAGES["test"]
    for step, turned in enumerate((images, np.rot90(images, axes=(1, 2)))):
        records = digits_step(rotated, step)
        indices = [int(name.removeprefix("test-")) for name in records.split_keys.tolist()]
        assert (records.features == turned[indices]).all()


def test_a_quick_rotation_is_the_rotation_of_scipy() -> None:
    from scipy.ndimage import rotate

    images, _ = mnist_test()
    records = digits_step(mnist_config("rotated-mnist", angles=(37.0,)), 0).take(slice(300))
    indices = [int(name.removeprefix("test-")) for name in records.split_keys.tolist()]
    exact = rotate(images[indices].astype(np.float64), 37.0, axes=(2, 1), reshape=False, order=1)
    assert np.abs(records.features - exact).max() <= 0.501


def test_mnist_is_encoded_for_the_schema_of_the_pipeline() -> None:
    schema = MNIST_SCHEMA.model_copy(update={"minimum": 0.0, "maximum": 255.0})
    config = mnist_config("split-mnist")
    assert config.problem(schema) is None
    source = DatasetsSource(config, schema, allowed=ANYWHERE)
    source.open({})
    (batch,) = source.poll(10, 0.0)
    assert not decode(batch, schema).rejected


@pytest.mark.parametrize("changes", [{"dtype": "float32"}, {"shape": (8, 8)}, {"maximum": 254.0}])
def test_a_schema_that_mnist_does_not_fit_is_named(changes: dict[str, object]) -> None:
    problem = mnist_config("split-mnist").problem(MNIST_SCHEMA.model_copy(update=changes))
    assert problem is not None
    assert problem.startswith("MNIST's digits have")


def test_the_files_may_lie_unpacked(tmp_path: Path) -> None:
    for path in FILES.glob("*.gz"):
        (tmp_path / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    config = mnist_config("split-mnist", folder=str(tmp_path))
    assert (digits_step(config, 0).features == digits_step(mnist_config("split-mnist"), 0).features).all()


@pytest.mark.parametrize("damage", ["missing", "cut", "not gzip", "swapped", "longer"])
def test_files_that_are_not_mnists_are_named(tmp_path: Path, damage: str) -> None:
    for path in FILES.glob("*.gz"):
        shutil.copy(path, tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    whole = path.read_bytes()
    plain = gzip.decompress(whole)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {
                "cut": whole[: len(whole) // 2],
                "not gzip": plain,
                "swapped": gzip.compress(plain[:8] + bytes(len(plain) - 8)),
                "longer": gzip.compress(plain + b"x"),
            }[damage]
        )
    source = DatasetsSource(mnist_config("split-mnist", folder=str(tmp_path)), allowed=ANYWHERE)
    with pytest.raises(SourceError, match=r"t10k-labels-idx1-ubyte|not MNIST's"):
        source.open({})


@pytest.mark.parametrize("cursor", ["-1", "9999", "x", "1:2"])
def test_a_cursor_of_another_stream_is_refused(cursor: str) -> None:
    with pytest.raises(SourceError, match="not a position"):
        DatasetsSource(SPLIT).open({"digits": cursor})


def test_polling_before_opening_is_an_error() -> None:
    with pytest.raises(SourceError, match="before it was opened"):
        DatasetsSource(SPLIT).poll(1, 0.0)


def test_a_schema_that_digits_do_not_fit_is_named() -> None:
    assert ROTATED.problem(DIGITS_SCHEMA) is None
    problem = ROTATED.problem(DIGITS_SCHEMA.model_copy(update={"shape": (28, 28)}))
    assert problem is not None
    assert "[8, 8]" in problem


@pytest.mark.parametrize("limits", [{"maximum": 1.0}, {"maximum": 15.9}, {"minimum": 0.1}])
def test_limits_that_digits_do_not_keep_are_named(limits: dict[str, float]) -> None:
    free = {"minimum": None, "maximum": None}
    problem = ROTATED.problem(DIGITS_SCHEMA.model_copy(update=free | limits))
    assert problem is not None
    assert "from 0 to 16" in problem


@pytest.mark.parametrize("limits", [{}, {"minimum": -1.0, "maximum": 16.0}, {"maximum": 255.0}])
def test_limits_that_digits_keep_are_taken(limits: dict[str, float]) -> None:
    free = {"minimum": None, "maximum": None}
    assert ROTATED.problem(DIGITS_SCHEMA.model_copy(update=free | limits)) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"angles": []},
        {"seed": -1},
        {"protocol": "spirals"},
        {"angle": 3},
        {"permutations": 0},
        {"protocol": "split-mnist"},
        {"folder": "somewhere"},
    ],
)
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DatasetsConfig.model_validate(wrong)


def test_reading_the_catalog_imports_no_heavy_library() -> None:
    heavy = "{'sklearn', 'scipy', 'torch', 'ray', 'mlflow', 'pandas'}"
    script = f"import sys, streams.catalog, streams.ingest; print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "set()"
