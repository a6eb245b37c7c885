"""Golden sets from their file to the verdict: judged at every update, never trained on, held to an anchor."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import HoldoutConflictError, HoldoutUnknownError
from service.gate.base import Finding, Verdict
from service.ingest import golden as adding
from service.ingest.golden import Added
from service.ingest.push import push
from service.state import golden, holdouts
from service.state.database import answers
from service.state.ledger import By
from service.storage import store_location
from service.training.tasks import read_result
from service.updates import decisions, golden_sets
from streams.records import Records
from streams.state import status
from streams.state.manifest import Manifest
from streams.wire.decode import encode_json
from tests.support.commands import holdfast
from tests.support.gate_parts import of_guard
from tests.support.homes import EXPIRED, NAME, Home, digits, home, silent, with_shuffled_labels

WHY = By("Ada", "curated by hand")
LOOSE: dict[str, Any] = {"strategy": {"name": "replay", "capacity": 300}}


@pytest.fixture
def make(tmp_path: Path, mlflow_store: Path) -> Iterator[Callable[..., Home]]:
    """Homes that are closed when the test ends."""
    with ExitStack() as stack:
        folders = iter(tmp_path / f"home-{number}" for number in range(10))
        yield lambda **changes: stack.enter_context(home(next(folders), mlflow_store, **changes))


def curated(records: int = 250, *, batch: int = 4) -> Records:
    """Upright images of a batch that no test learns."""
    return digits(batch, records=records)


def add(
    each: Home, records: Records, *, name: str = "curated", margin: float | None = 0.2, by: By = WHY
) -> Added:
    return adding.add(
        each.engine,
        store_location(each.settings).open(),
        NAME,
        name=name,
        margin=margin,
        body=b"\n".join(encode_json(records, each.spec.record_schema)),
        content_type="application/x-ndjson",
        by=by,
    )


def anchors(each: Home) -> dict[str, int | None]:
    with each.engine.begin() as connection:
        return {found.name: found.anchor_version for found in golden.of_pipeline(connection, NAME)}


def answered(each: Home, version: int) -> set[int]:
    with each.engine.begin() as connection:
        return set(holdouts.of_version(connection, NAME, version=version, part="golden"))


def one(verdict: Verdict, guard: str) -> Finding:
    (found,) = of_guard(verdict, guard)
    return found


def test_a_set_is_judged_from_the_next_update_on_and_what_is_answered_is_stored(
    make: Callable[..., Home],
) -> None:
    each = make(**LOOSE)
    each.learn(digits(0))
    added = add(each, curated())
    assert (added.golden.number, added.golden.since_version, added.golden.anchor_version) == (0, 1, 1)
    assert (added.entry.action, added.entry.actor) == ("golden", "Ada")
    assert added.entry.reason == "golden set curated of 250 records, margin 20 points: curated by hand"
    assert answered(each, 1) == set()
    verdict = each.learn(digits(1, angle=15))
    assert verdict.outcome == "promote", verdict
    assert verdict.reason.endswith("golden set curated kept")
    found = one(verdict, "golden")
    assert (found.answer, found.numbers["n"], found.numbers["golden"]) == ("pass", 250, 0)
    assert of_guard(verdict, "golden_anchor") == []
    assert answered(each, 1) == answered(each, 2) == {0}
    with each.engine.begin() as connection:
        assert holdouts.count_looks(connection, NAME, part="golden") == {0: 1}
    verdict = each.learn(digits(2, angle=15))
    assert one(verdict, "golden").numbers["looks"] == 2
    since = one(verdict, "golden_anchor")
    assert since.answer == "pass", since
    assert "since v1, its anchor" in since.sentence
    assert not read_result(each.updater.folder(each.updates()[2].id)).golden_baseline  # type: ignore[union-attr]


def test_a_set_that_is_lost_rejects_though_all_past_holdouts_are_kept(make: Callable[..., Home]) -> None:
    each = make(**LOOSE)
    each.learn(digits(0))
    add(each, curated(), margin=None)
    verdict = each.learn(digits(1, angle=40))
    found = one(verdict, "golden")
    assert (found.answer, verdict.outcome) == ("fail", "reject"), verdict
    lost = found.numbers["lost"]
    assert found.sentence.startswith(f"golden set curated lost {lost} of ")
    assert "none may be lost" in found.sentence


def test_a_set_that_came_before_the_first_version_is_anchored_at_it(make: Callable[..., Home]) -> None:
    each = make(**LOOSE)
    assert add(each, curated()).golden.anchor_version is None
    assert anchors(each) == {"curated": None}
    verdict = each.learn(digits(0))
    assert verdict.outcome == "promote"
    (note,) = [note for note in verdict.notes if note.about == "golden"]
    assert note.sentence.startswith("golden set curated: the first version answers ")
    assert anchors(each) == {"curated": 1}
    assert answered(each, 1) == {0}
    second = each.learn(digits(1, angle=15))
    assert one(second, "golden").answer == "pass", second


def test_an_anchor_that_never_answered_answers_from_its_checkpoint(make: Callable[..., Home]) -> None:
    each = make(**LOOSE)
    each.learn(digits(0))
    each.arrive(digits(1, angle=15))
    claimed = each.claim()

    # The plan of this update is made before the set comes, so neither of its models answers it.
    def late() -> None:
        if "curated" not in anchors(each):
            add(each, curated())

    each.before_training = late
    assert each.updater.run(claimed, silent).outcome == "promote"  # type: ignore[union-attr]
    assert (anchors(each), answered(each, 1), answered(each, 2)) == ({"curated": 1}, set(), set())
    verdict = each.learn(digits(2, angle=15))
    assert one(verdict, "golden").answer == "pass"
    assert one(verdict, "golden_anchor").answer == "pass"
    assert answered(each, 1) == answered(each, 2) == answered(each, 3) == {0}


def test_an_anchor_without_a_checkpoint_asks_a_person(make: Callable[..., Home]) -> None:
    each = make(**LOOSE)
    each.learn(digits(0))
    add(each, curated())
    assert each.learn(digits(1, angle=15)).outcome == "promote"
    with each.engine.begin() as connection:
        golden.set_anchor(connection, NAME, [0], version=1)
        connection.exec_driver_sql("DELETE FROM answers WHERE part = 'golden' AND version = 1")
    folder = each.updater.folder(each.updates()[0].id)
    folder.rename(folder.with_name("gone"))
    verdict = each.learn(digits(2, angle=15))
    assert verdict.outcome == "review"
    assert "the answers of the anchor are missing" in one(verdict, "golden_anchor").sentence
    # Nobody has seen a loss, so who approves accepts none.
    entry = decisions.decide_review(each.engine, each.updates()[2].id, choice="approve", by=WHY)
    assert (entry.reason, anchors(each)) == ("curated by hand", {"curated": 1})


def test_a_loss_that_a_person_approves_is_asked_about_once(make: Callable[..., Home]) -> None:
    each = make(**LOOSE, gate={"budget": 0.2})
    each.learn(digits(0))
    add(each, curated())
    assert each.learn(digits(1, angle=15)).outcome == "promote"
    with each.engine.begin() as connection:
        golden.set_margin(connection, NAME, 0, margin=None)
        kept = holdouts.of_version(connection, NAME, version=2, part="golden")[0]
        # As if the anchor had answered all right, and the champion one record alone.
        for version, bits in ((1, np.ones(250, dtype=bool)), (2, np.arange(250) == np.flatnonzero(kept)[0])):
            where = (answers.c.part == "golden", answers.c.version == version)
            connection.execute(answers.update().where(*where).values(bits=np.packbits(bits).tobytes()))
    verdict = each.learn(digits(2, angle=15))
    since = one(verdict, "golden_anchor")
    assert (since.answer, verdict.outcome) == ("undecided", "review"), verdict
    assert "since v1, its anchor" in since.sentence
    entry = decisions.decide_review(each.engine, each.updates()[2].id, choice="approve", by=WHY)
    assert entry.reason == "v3 is the anchor of golden set curated from now on: curated by hand"
    assert anchors(each) == {"curated": 3}
    assert of_guard(each.learn(digits(3, angle=15)), "golden_anchor") == []
    decisions.roll_back(each.engine, NAME, version=2, by=WHY)
    assert anchors(each) == {"curated": 1}, "what v3 was allowed to lose is no longer lost"


def test_only_losses_that_were_asked_about_move_the_anchor(make: Callable[..., Home]) -> None:
    each = make(**LOOSE)
    each.learn(digits(0))
    add(each, curated())
    asked = {"guard": "golden_anchor", "answer": "undecided", "numbers": {"golden": 0, "lost": 9}}
    others = [{**asked, "answer": "pass"}, {**asked, "guard": "golden"}, {**asked, "numbers": {"golden": 0}}]
    with each.engine.begin() as connection:
        for findings in ([], *([other] for other in others)):
            assert not golden_sets.approve_losses(connection, NAME, {"findings": findings}, version=7)
        assert not golden_sets.approve_losses(connection, NAME, None, version=7)
    assert anchors(each) == {"curated": 1}
    with each.engine.begin() as connection:
        found = golden_sets.approve_losses(connection, NAME, {"findings": [asked]}, version=7)
    assert found == ["curated"]
    assert anchors(each) == {"curated": 7}


def test_records_of_a_set_that_come_later_or_wait_are_never_learnt(make: Callable[..., Home]) -> None:
    each = make(**LOOSE)
    each.learn(digits(0))
    waiting = digits(1, records=100)
    each.arrive(waiting)
    each.ingest.turn()
    held = waiting.take(slice(0, 40))
    add(each, replace(held, labels=held.labels))
    # The ingest that has read the 40 opens again, and counts none of them towards the cut.
    later = digits(1)
    push_all(each, later.take(slice(100, 300)))
    push_all(each, held)
    for _ in range(5):
        each.ingest.turn()
    assert len(Manifest(each.engine).experiences(NAME)) == 1
    push_all(each, digits(2, records=40))
    deadline = 50
    while len(Manifest(each.engine).experiences(NAME)) < 2 and deadline:
        each.ingest.turn()
        deadline -= 1
    store = store_location(each.settings).open()
    row = Manifest(each.engine).experiences(NAME)[1]
    ids = {
        name
        for part in (row.train, row.gate, row.audit)
        for name in store.open(part.digest, index=1).record_ids.tolist()
    }
    assert not ids & set(held.ids.to_pylist())
    assert len(ids) == row.rows == 300
    with each.engine.begin() as connection:
        assert status.read(connection, NAME).held_out == 80


def push_all(each: Home, records: Records) -> None:
    push(
        each.engine,
        NAME,
        body=b"\n".join(encode_json(records, each.spec.record_schema)),
        content_type="application/x-ndjson",
        request_key=None,
        max_backlog_records=100_000,
    )


def test_a_crash_after_learning_judges_the_set_that_the_first_attempt_judged(
    make: Callable[..., Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    each = make(**LOOSE)
    each.learn(digits(0))
    add(each, curated())
    each.arrive(digits(1, angle=15))
    claimed = each.claim(lease_seconds=EXPIRED)

    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("the machine stops")

    with monkeypatch.context() as patch:
        patch.setattr(type(each.updater), "_settle", crash)
        with pytest.raises(RuntimeError, match="stops"):
            each.updater.run(claimed, silent)
    golden_sets.mark(each.engine, NAME, "curated", marking="retire", by=WHY)
    verdict = each.run()
    assert each.trained.count(claimed.id) == 1
    assert one(verdict, "golden").answer == "pass"
    assert of_guard(each.learn(digits(2, angle=15)), "golden") == []


def test_an_update_with_golden_sets_is_reproduced_and_a_changed_file_is_named(
    make: Callable[..., Home],
) -> None:
    each = make(**LOOSE)
    each.learn(digits(0))
    added = add(each, curated())
    add(each, curated(40, batch=3), name="few", margin=None)
    each.learn(digits(1, angle=10))
    last = each.learn(digits(2, angle=10))
    assert len(of_guard(last, "golden")) == 2
    for update in each.updates()[1:]:
        done = reproduce(each, update.id)
        assert done.returncode == 0, (done.stdout, done.stderr)
        found = json.loads(done.stdout)
        assert (found["outcome"], found["verdict"]["state"]) == ("reproduced", "same")
        names = {known["name"] for known in found["inputs"]}
        assert {"golden set curated", "golden set few"} <= names
    assert update.base_version == 1 or "champion's answers on golden set curated" in names
    path = store_location(each.settings).open().path(added.golden.part.digest)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    found = json.loads(reproduce(each, each.updates()[-1].id).stdout)
    assert found["outcome"] == "differs"
    assert "golden set curated" in found["reason"]


def reproduce(each: Home, update_id: str) -> subprocess.CompletedProcess[str]:
    place = {"HOLDFAST_HOME": str(each.settings.home), "HOLDFAST_DATABASE_URL": each.settings.database}
    return holdfast("update", "reproduce", update_id, "--json", env=place, timeout=300)


def test_marks_and_margins_are_decided_once_and_kept_in_the_ledger(make: Callable[..., Home]) -> None:
    each = make(**LOOSE)
    add(each, curated(100))
    entry = golden_sets.set_margin(each.engine, NAME, "curated", margin=None, by=WHY)
    assert (entry.action, entry.version) == ("margin", None)
    assert entry.reason == "golden set curated, no right answer may be lost from now on: curated by hand"
    with pytest.raises(HoldoutConflictError, match="no right answer may be lost"):
        golden_sets.set_margin(each.engine, NAME, "curated", margin=None, by=WHY)
    entry = golden_sets.mark(each.engine, NAME, "curated", marking="retire", by=WHY)
    assert (entry.action, entry.reason) == ("retire", "golden set curated: curated by hand")
    with pytest.raises(HoldoutConflictError, match="so already"):
        golden_sets.mark(each.engine, NAME, "curated", marking="retire", by=WHY)
    golden_sets.mark(each.engine, NAME, "curated", marking="restore", by=WHY)
    with pytest.raises(HoldoutUnknownError, match="no golden set 'other'"):
        golden_sets.mark(each.engine, NAME, "other", marking="retire", by=WHY)
    with pytest.raises(HoldoutConflictError, match="already"):
        add(each, with_shuffled_labels(curated(120)))
