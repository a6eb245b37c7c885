"""Exported networks: read as they were, and never run where they were changed."""

import ast
import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from service.errors import ServedDamagedError
from service.exported import load_served, read_served
from tests.support.repository import ROOT
from tests.support.served_archives import Creates, rewrite, torch_file

ALLOWED = {
    ("service/exported.py", "torch.export.load"),
    ("strategies/learning/bodies.py", "torch.load"),
}


class Network(torch.nn.Module):
    """A weight, an empty buffer and a constant: every kind of member."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)
        self.register_buffer("empty", torch.zeros(0))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.reshape(inputs.shape[0] * 1, 3)
        return torch.as_tensor(self.linear(rows) + torch.tensor([1.0, 2.0]))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network()


@pytest.fixture(scope="module")
def original(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "served.pt2"
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(network, (torch.zeros(2, 3),), dynamic_shapes=({0: batch},)), path)
    return path


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_the_network_answers_as_it_did_before_it_was_exported(
    original: Path, network: Network, rows: int
) -> None:
    sha256 = hashlib.sha256(original.read_bytes()).hexdigest()
    inputs = torch.randn(rows, 3)
    torch.testing.assert_close(load_served(original, sha256)(inputs), network(inputs))
    torch.testing.assert_close(load_served(original, None)(inputs), network(inputs))


def test_other_bytes_than_those_of_the_update_are_refused(original: Path) -> None:
    with pytest.raises(ServedDamagedError, match="sha256"):
        load_served(original, "0" * 64)
    with pytest.raises(ServedDamagedError, match="cannot be read"):
        load_served(original.with_name("none.pt2"), None)


def replaced(member: str, content: Callable[[Path], bytes]) -> Callable[[Path, Path], bytes]:
    return lambda served, made: rewrite(served, {member: content(made)})


def changed(member: str, change: Callable[[dict[str, Any], Path], None]) -> Callable[[Path, Path], bytes]:
    def craft(served: Path, made: Path) -> bytes:
        with zipfile.ZipFile(served) as archive:
            (name,) = (each for each in archive.namelist() if each.endswith(member))
            document = json.loads(archive.read(name))
        change(document, made)
        return rewrite(served, {member: json.dumps(document).encode()})

    return craft


def pickled_member(served: Path, made: Path) -> bytes:
    """A weight that its configuration calls a pickle."""
    member = "data/weights/model_weights_config.json"
    with zipfile.ZipFile(served) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(member))
        document = json.loads(archive.read(name))
    document["config"]["linear.weight"]["use_pickle"] = True
    return rewrite(
        served, {member: json.dumps(document).encode(), "weights/weight_0": torch_file(Creates(made))}
    )


def _call(document: dict[str, Any], made: Path) -> None:
    node = document["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.serialization.os.system"
    node["inputs"] = [{"name": "command", "arg": {"as_string": f"touch {made}"}, "kind": 1}]


def _size(document: dict[str, Any], made: Path) -> None:
    for value in document["graph_module"]["graph"]["tensor_values"].values():
        for size in value["sizes"]:
            if "as_expr" in size:
                size["as_expr"]["expr_str"] = f"open({str(made)!r}, 'w').close() or 2"


def _guard(document: dict[str, Any], made: Path) -> None:
    document["guards_code"] = [f"open({str(made)!r}, 'w').close() is None"]


CRAFTED = {
    "sample inputs": replaced("sample_inputs/model.pt", lambda made: torch_file(Creates(made))),
    "bare pickle": replaced("sample_inputs/model.pt", lambda made: pickle.dumps(Creates(made))),
    "weight": pickled_member,
    "legacy weights": replaced("data/weights/model.pt", lambda made: torch_file(Creates(made))),
    "opaque object": replaced("data/constants/opaque_obj_0", lambda made: pickle.dumps(Creates(made))),
    "library": replaced("data/aotinductor/model/a.so", lambda made: b"\x7fELF"),
    "call": changed("models/model.json", _call),
    "size": changed("models/model.json", _size),
}


@pytest.mark.parametrize("how", CRAFTED)
def test_a_changed_archive_is_refused_and_nothing_of_it_runs(
    how: str, original: Path, tmp_path: Path
) -> None:
    made, path = tmp_path / "made", tmp_path / "served.pt2"
    path.write_bytes(CRAFTED[how](original, made))
    for read in (load_served, read_served):
        with pytest.raises(ServedDamagedError, match=r"Nothing of it was run"):
            read(path, None)
    assert not made.exists()


def test_guards_are_left_out_and_never_executed(original: Path, network: Network, tmp_path: Path) -> None:
    made, path = tmp_path / "made", tmp_path / "served.pt2"
    path.write_bytes(changed("models/model.json", _guard)(original, made))
    inputs = torch.randn(2, 3)
    torch.testing.assert_close(load_served(path, None)(inputs), network(inputs))
    assert not made.exists()


def test_such_an_archive_would_have_run(original: Path, tmp_path: Path) -> None:
    """Else the tests above would pass whatever the reader does."""
    made, path = tmp_path / "made", tmp_path / "served.pt2"
    path.write_bytes(CRAFTED["sample inputs"](original, made))
    with pytest.raises(AssertionError):
        torch.export.load(path)
    assert made.exists()


@pytest.mark.parametrize("member", ["twice", "compressed"])
def test_a_member_that_readers_see_differently_is_refused(
    member: str, original: Path, tmp_path: Path
) -> None:
    written = io.BytesIO()
    with zipfile.ZipFile(original) as archive, zipfile.ZipFile(written, "w") as copy:
        for info in archive.infolist():
            packed = zipfile.ZIP_DEFLATED if member == "compressed" else zipfile.ZIP_STORED
            copy.writestr(info.filename, archive.read(info), packed)
        if member == "twice":
            with pytest.warns(UserWarning, match="Duplicate"):
                copy.writestr(archive.infolist()[0].filename, b"")
    path = tmp_path / "served.pt2"
    path.write_bytes(written.getvalue())
    with pytest.raises(ServedDamagedError, match="twice, or is compressed"):
        read_served(path, None)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", pickle.dumps([1])])
def test_what_is_no_archive_is_said_to_be_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "served.pt2").write_bytes(content)
    with pytest.raises(ServedDamagedError, match="no archive"):
        load_served(tmp_path / "served.pt2", None)


def test_torch_reads_files_in_known_places_only() -> None:
    """A new reader must go through `load_served`, or be a `torch.load` with `weights_only=True`."""
    found = set()
    for package in ("service", "strategies", "streams"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
                    names = {alias.name for alias in node.names}
                    assert not names & {"load", "load_pt2"}, f"{path}: import torch and call torch.load"
                if not isinstance(node, ast.Call):
                    continue
                called = ast.unparse(node.func)
                if called.startswith(("torch.", "pickle.")) and called.split(".")[-1].startswith("load"):
                    found.add((path.relative_to(ROOT).as_posix(), called))
                    if called == "torch.load":
                        assert "weights_only=True" in ast.unparse(node), path
    assert found == ALLOWED
