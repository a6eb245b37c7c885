"""Saved states: atomic, checked, without pickle."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from strategies.base import StateError, StreamInfo
from strategies.catalog import STRATEGIES
from strategies.learning.state import LearnerState, load_any, read_state, write_state
from strategies.naive import NaiveConfig
from strategies.state_document import document_digest

INFO = StreamInfo(shape=(4,), classes=("a", "b"))


def small_state(**changes: Any) -> LearnerState:
    fields: dict[str, Any] = {
        "strategy": "naive",
        "config": NaiveConfig().model_dump(mode="json"),
        "stream_info": INFO,
        "facts": {"third": 1 / 3, "nested": {"list": [1, None, True]}},
        "tensors": {"weight": torch.randn(3, 2), "count": torch.tensor(7), "none": torch.empty(0, 4)},
    }
    return LearnerState(**(fields | changes))


def rewrite(directory: Path, **changes: Any) -> None:
    """Change the document as a program would, with a digest that fits."""
    path = directory / "state.json"
    document = json.loads(path.read_text())["document"] | changes
    path.write_text(json.dumps({"document": document, "sha256": document_digest(document)}))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    saved = small_state()
    write_state(saved, tmp_path / "deep" / "er")
    found = read_state(tmp_path / "deep" / "er")
    assert (found.strategy, found.config, found.facts) == (saved.strategy, saved.config, saved.facts)
    assert found.stream_info == INFO
    assert found.tensors.keys() == saved.tensors.keys()
    for name, tensor in saved.tensors.items():
        assert torch.equal(found.tensors[name], tensor)
        assert found.tensors[name].dtype == tensor.dtype


def test_views_and_shared_tensors_are_saved_as_they_look(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    write_state(
        small_state(tensors={"whole": whole, "turned": whole.T, "part": whole[1:, 1]}), tmp_path / "s"
    )
    found = read_state(tmp_path / "s").tensors
    assert torch.equal(found["turned"], whole.T)
    assert torch.equal(found["part"], whole[1:, 1])


def test_a_full_folder_is_never_overwritten_and_an_empty_one_is_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_state(small_state(), tmp_path / "empty")
    before = (tmp_path / "empty" / "state.json").read_bytes()
    with pytest.raises(StateError, match="does not exist yet"):
        write_state(small_state(facts={}), tmp_path / "empty")
    assert (tmp_path / "empty" / "state.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_state(small_state(facts={"loss": float("nan")}), tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_the_tensor_file_outlives_its_folder(tmp_path: Path) -> None:
    write_state(small_state(), tmp_path / "saved")
    found = read_state(tmp_path / "saved")
    (tmp_path / "saved" / "tensors.safetensors").write_bytes(b"")
    assert found.tensors["weight"].isfinite().all()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"document": 3, "sha256": ""}', "\x00\xff"])
def test_a_document_that_is_no_state_is_refused(content: str, tmp_path: Path) -> None:
    write_state(small_state(), tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_bytes(content.encode("latin1"))
    with pytest.raises(StateError, match="damaged"):
        read_state(tmp_path / "saved")


def test_a_truncated_tensor_file_is_refused(tmp_path: Path) -> None:
    write_state(small_state(), tmp_path / "saved")
    path = tmp_path / "saved" / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(StateError, match=r"damaged.*restore the folder"):
        read_state(tmp_path / "saved")


def test_a_missing_state_says_where_it_was_sought(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="nowhere"):
        load_any(tmp_path / "nowhere", STRATEGIES)


def test_an_unknown_version_is_refused_before_anything_else_is_read(tmp_path: Path) -> None:
    write_state(small_state(), tmp_path / "saved")
    rewrite(tmp_path / "saved", schema_version=99, novelty=True)
    with pytest.raises(StateError, match="version 99"):
        load_any(tmp_path / "saved", STRATEGIES)


def test_a_strategy_the_catalog_lacks_is_refused(tmp_path: Path) -> None:
    write_state(small_state(strategy="dreaming"), tmp_path / "saved")
    with pytest.raises(StateError, match="'dreaming'"):
        load_any(tmp_path / "saved", STRATEGIES)


def test_a_config_that_is_no_longer_valid_is_refused(tmp_path: Path) -> None:
    write_state(small_state(config={"name": "naive", "epochs": 0}), tmp_path / "saved")
    with pytest.raises(StateError, match="no longer valid"):
        load_any(tmp_path / "saved", STRATEGIES)


def test_a_state_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    learner = STRATEGIES["naive"].build(NaiveConfig(hidden=(8,), device="cpu"), INFO)
    learner.save(tmp_path / "saved")
    good = read_state(tmp_path / "saved")
    some = {name: tensor for name, tensor in good.tensors.items() if "body" not in name}
    write_state(small_state(facts=good.facts, config=good.config, tensors=some), tmp_path / "lacking")
    with pytest.raises(StateError, match="does not fit"):
        load_any(tmp_path / "lacking", STRATEGIES)
