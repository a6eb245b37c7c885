"""Where two checkpoints differ: by tensor, by field, or by file."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from service.training.checkpoint import Difference, digests, file_differences
from service.training.tasks import RESULT_FILE


def tensors(path: Path, **named: torch.Tensor) -> Path:
    save_file({name: tensor.clone() for name, tensor in named.items()}, path)
    return path


def test_tensors_that_differ_are_named_with_how_far(tmp_path: Path) -> None:
    base = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    moved = base.clone()
    moved[1, 2] += 0.5
    stored = tensors(
        tmp_path / "a.safetensors",
        same=base,
        moved=base,
        half=base.to(torch.bfloat16),
        wide=base,
        old=base,
        count=torch.tensor([1, 2]),
        nan=torch.full((2,), torch.nan),
        zero=torch.zeros(3),
    )
    made = tensors(
        tmp_path / "b.safetensors",
        same=base.clone(),
        moved=moved,
        half=moved.to(torch.bfloat16),
        wide=base.reshape(3, 2).contiguous(),
        new=base.clone(),
        count=torch.tensor([1, 3]),
        nan=torch.full((2,), torch.nan),
        zero=-torch.zeros(3),
    )
    found = {each.what: each.detail for each in file_differences("f", stored, made)}
    assert found == {
        "moved": "1 of 6 values, by 0.5 at most",
        "half": "1 of 6 values, by 0.5 at most",
        "wide": "shape [2, 3] stored, [3, 2] made again",
        "old": "only the stored checkpoint has it",
        "new": "only the reproduced checkpoint has it",
        "count": "other bytes",
        "zero": "3 of 3 values, by 0 at most",
    }


def test_fields_of_a_state_are_named_and_digests_of_the_rest_are_not(tmp_path: Path) -> None:
    document = {"facts": {"clock": {"iterations": 8}}, "tensors_sha256": "aa"}
    stored, made = tmp_path / "a.json", tmp_path / "b.json"
    stored.write_text(json.dumps({"document": document, "sha256": "1"}))
    other = {"facts": {"clock": {"iterations": 9}}, "tensors_sha256": "bb"}
    made.write_text(json.dumps({"document": other, "sha256": "2"}))
    assert file_differences("state.json", stored, made) == [
        Difference("state.json", "document.facts.clock.iterations", "8 stored, 9 made again")
    ]


def test_a_file_that_cannot_be_read_or_only_looks_otherwise_is_told(tmp_path: Path) -> None:
    good = tensors(tmp_path / "good.safetensors", a=torch.zeros(2))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\xff" * 40)
    (difference,) = file_differences("f", broken, good)
    assert (difference.file, difference.what) == ("f", "")
    assert "cannot be read" in difference.detail
    spaced, plain = tmp_path / "spaced.json", tmp_path / "plain.json"
    spaced.write_text('{"a":  1}')
    plain.write_text('{"a": 1}')
    assert file_differences("f", spaced, plain) == [
        Difference("f", "", "the bytes differ, the content is the same")
    ]
    graph, again = tmp_path / "served.pt2", tmp_path / "again.pt2"
    graph.write_bytes(b"one")
    again.write_bytes(b"other")
    assert file_differences("served.pt2", graph, again) == [Difference("served.pt2", "", "other bytes")]


def test_digests_are_of_the_challengers_files_and_not_of_what_the_gate_was_shown(tmp_path: Path) -> None:
    (tmp_path / "learner").mkdir()
    np.save(tmp_path / "learner" / "a.npy", np.zeros(2))
    (tmp_path / RESULT_FILE).write_text("{}")
    assert list(digests(tmp_path)) == ["learner/a.npy"]
    assert digests(None) == {}
