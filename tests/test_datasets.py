"""Real digits as a stream: the published protocols, the same every time."""

import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from streams.base import SourceError
from streams.datasets import DIGITS_SCHEMA, DatasetsConfig, DatasetsSource, digits_step
from streams.records import Records, join_records
from streams.triggers import RecordsTrigger, Surroundings
from streams.wire import decode, decode_json, encode_json, json_fields

ROTATED = DatasetsConfig()
SPLIT = DatasetsConfig(protocol="split-digits")


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
    place = {key: row for row, key in enumerate(turned.split_keys.tolist())}
    for row, key in enumerate(upright.split_keys.tolist()[:50]):
        other = place[key]
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


@pytest.mark.parametrize("config", [ROTATED, SPLIT], ids=["rotated", "split"])
def test_a_trigger_of_one_step_cuts_one_experience_a_step(config: DatasetsConfig) -> None:
    source, trigger = DatasetsSource(config), RecordsTrigger(records=config.records_per_step)
    source.open({})
    pending: list[Records] = []
    while batches := source.poll(700, 0.0):
        pending += [decode(batch, DIGITS_SCHEMA).records for batch in batches]
    left, step = join_records(pending, DIGITS_SCHEMA), 0
    while (cut := trigger.watch({}, Surroundings()).see(left, 0.0, 0.0)) is not None:
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
    ids: list[str] = []
    while batches := source.poll(700, 0.0):
        for batch in batches:
            found = decode(batch, DIGITS_SCHEMA)
            assert not found.rejected
            ids += found.records.ids.tolist()
    assert ids == [name for step in range(5) for name in digits_step(SPLIT, step).ids.tolist()]


def test_records_can_be_sent_as_json() -> None:
    fields = json_fields(digits_step(ROTATED, 1).take(slice(2)), DIGITS_SCHEMA)
    assert set(fields[0]) == {"id", "features", "label", "split_key"}
    assert np.shape(fields[0]["features"]) == (8, 8)


@pytest.mark.parametrize("cursor", ["-1", "9999", "x", "1:2"])
def test_a_cursor_of_another_stream_is_refused(cursor: str) -> None:
    with pytest.raises(SourceError, match="not a place"):
        DatasetsSource(SPLIT).open({"digits": cursor})


def test_polling_before_opening_is_an_error() -> None:
    with pytest.raises(SourceError, match="before it was opened"):
        DatasetsSource(SPLIT).poll(1, 0.0)


def test_a_schema_that_digits_do_not_fit_is_named() -> None:
    assert ROTATED.misfit(DIGITS_SCHEMA) is None
    problem = ROTATED.misfit(DIGITS_SCHEMA.model_copy(update={"shape": (28, 28)}))
    assert problem is not None
    assert "[8, 8]" in problem


@pytest.mark.parametrize("limits", [{"maximum": 1.0}, {"maximum": 15.9}, {"minimum": 0.1}])
def test_limits_that_digits_do_not_keep_are_named(limits: dict[str, float]) -> None:
    free = {"minimum": None, "maximum": None}
    problem = ROTATED.misfit(DIGITS_SCHEMA.model_copy(update=free | limits))
    assert problem is not None
    assert "from 0 to 16" in problem


@pytest.mark.parametrize("limits", [{}, {"minimum": -1.0, "maximum": 16.0}, {"maximum": 255.0}])
def test_limits_that_digits_keep_are_taken(limits: dict[str, float]) -> None:
    free = {"minimum": None, "maximum": None}
    assert ROTATED.misfit(DIGITS_SCHEMA.model_copy(update=free | limits)) is None


@pytest.mark.parametrize("wrong", [{"angles": []}, {"seed": -1}, {"protocol": "spirals"}, {"angle": 3}])
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DatasetsConfig.model_validate(wrong)


def test_reading_the_catalog_imports_no_heavy_library() -> None:
    heavy = "{'sklearn', 'scipy', 'torch', 'ray', 'mlflow', 'pandas'}"
    script = f"import sys, streams.catalog, streams.ingest; print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "set()"
