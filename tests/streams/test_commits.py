"""Commits of one ingest process: fenced by any other, whenever that one commits."""

from collections.abc import Callable
from pathlib import Path

import pytest

from streams.base import DataLostError, FencedError, RecordSchema
from streams.commits import Committer
from streams.state.manifest import Commit, Manifest, Span
from tests.support.stream_parts import SCHEMA, sqlite_engine

PIPELINE = "digits"
OPEN = RecordSchema(shape=(2,), classes=("down", "up"), open_classes=True)


class OvertakenManifest(Manifest):
    """Lets another process commit just before one of the reads."""

    overtake: Callable[[], object] | None = None
    read = ""

    def _before(self, read: str) -> None:
        if self.overtake is not None and read == self.read:
            overtake, self.overtake = self.overtake, None
            overtake()

    def cursors(self, pipeline: str) -> dict[str, str]:
        self._before("cursors")
        return super().cursors(pipeline)

    def classes(self, pipeline: str) -> list[str]:
        self._before("classes")
        return super().classes(pipeline)


@pytest.fixture
def manifest(tmp_path: Path) -> OvertakenManifest:
    return OvertakenManifest(sqlite_engine(tmp_path / "holdfast.db"))


def committer(manifest: Manifest, schema: RecordSchema = SCHEMA) -> Committer:
    return Committer(PIPELINE, schema, manifest=manifest)


def test_commits_follow_each_other(manifest: Manifest) -> None:
    first = committer(manifest)
    first.commit({"p": "10", "q": "3"}, dead_letters=[])
    first.commit({"p": "20"}, dead_letters=[])
    first.forget(["q"])
    first.forget([])
    first.commit({"p": "30"}, dead_letters=[])
    assert first.cursors == {"p": "30"} == manifest.cursors(PIPELINE)
    assert committer(manifest).cursors == {"p": "30"}


def test_new_classes_are_stored_with_the_next_commit_and_once(manifest: Manifest) -> None:
    first = committer(manifest, OPEN)
    first.commit({}, dead_letters=[])
    assert manifest.classes(PIPELINE) == []
    assert first.labels.id_of("sideways") == 2
    first.commit({}, dead_letters=[])
    first.commit({}, dead_letters=[])
    assert manifest.classes(PIPELINE) == ["down", "up", "sideways"]
    assert list(committer(manifest, OPEN).labels.names) == ["down", "up", "sideways"]


@pytest.mark.parametrize("read", ["cursors", "classes"])
def test_whoever_is_overtaken_while_opening_is_fenced(manifest: OvertakenManifest, read: str) -> None:
    other = Commit(0, {"p": Span("", "10")}, classes=["down", "up", "sideways"])
    manifest.read, manifest.overtake = read, lambda: manifest.commit(PIPELINE, other)
    overtaken = committer(manifest, OPEN)
    with pytest.raises(FencedError, match="another ingest process"):
        overtaken.commit({"q": "1"}, dead_letters=[])
    assert manifest.cursors(PIPELINE) == {"p": "10"}


def test_lost_data_is_a_fence_only_if_another_process_has_committed(manifest: Manifest) -> None:
    first, second = committer(manifest), committer(manifest)
    with pytest.raises(DataLostError, match="is gone"), first.fenced_if_lost():
        raise DataLostError("Batch 1 is gone.")
    second.commit({"p": "10"}, dead_letters=[])
    with pytest.raises(FencedError) as caught, first.fenced_if_lost():
        raise DataLostError("Batch 1 is gone.")
    assert isinstance(caught.value.__cause__, DataLostError)
    with second.fenced_if_lost():
        pass
