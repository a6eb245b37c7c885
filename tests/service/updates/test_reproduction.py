"""`holdfast update reproduce` in a process of its own: on updates of every kind, and on changed bytes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from safetensors.numpy import load_file

from service.gate.base import GATE_VERSION
from service.state import inputs
from service.state.database import update_inputs, updates
from service.state.ledger import By
from service.training.tasks import LEARNER_FOLDER, SERVED_FILE
from service.updates import decisions
from streams.state.manifest import Manifest
from streams.state.tables import EXPERIENCES, METADATA
from tests.support import postgres
from tests.support.commands import holdfast, preload
from tests.support.homes import EXPIRED, NAME, Home, digits, home, silent, with_shuffled_labels

LOOSE: dict[str, Any] = {
    "split": {"gate": 0.25, "audit": 0.25},
    "strategy": {"name": "replay", "capacity": 100, "epochs": 6},
    "gate": {"margin": 0.3, "learning_margin": 0.3, "budget": 0.4, "audits": 5},
}
STRICT: dict[str, Any] = {
    "strategy": {"epochs": 30},
    "gate": {
        "margin": 0.05,
        "learning_margin": 0.05,
        "calibration": 0.05,
        "metrics": {"macro_f1": 0.1},
        "robustness": 0.3,
        "robustness_records": 100,
        "latency_ratio": 900,
        "size_ratio": 10,
        "update_seconds": 3600,
        "seeds": 2,
    },
}


@dataclass(frozen=True)
class Reproduced:
    """One run of the command."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found

    def inputs(self, state: str) -> list[str]:
        return [each["name"] for each in self.document["inputs"] if each["state"] == state]


def settings_of(each: Home) -> dict[str, str]:
    """The variables that point a command at this home."""
    return {"HOLDFAST_HOME": str(each.settings.home), "HOLDFAST_DATABASE_URL": each.settings.database}


def reproduce(each: Home, update: str, *flags: str, **environment: str) -> Reproduced:
    """The command as a person runs it, in a fresh process."""
    settings = settings_of(each)
    done = holdfast("update", "reproduce", update, *flags, env={**settings, **environment}, timeout=300)
    return Reproduced(done.returncode, done.stdout, done.stderr)


def snapshot(each: Home) -> tuple[Mapping[str, Any], Mapping[str, tuple[int, int]]]:
    """Every row of every table, and every file of the home."""
    with each.engine.begin() as connection:
        rows = {
            name: sorted(map(repr, connection.execute(sa.select(table)).all()))
            for name, table in METADATA.tables.items()
        }
    files = {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in each.settings.root.rglob("*")
        # What SQLite keeps of its readers beside the file.
        if path.is_file() and path.suffix not in (".db-shm", ".db-wal")
    }
    return rows, files


@pytest.fixture(scope="module", autouse=True)
def _libraries_of_learning() -> None:
    # What learning imports at its first use takes longer than to reproduce an update here.
    preload(
        "service.updates.reproduction", "strategies.learning.environment", "torch.export", "torch._dynamo"
    )


def by_shell(each: Home, update: str, *flags: str) -> Reproduced:
    """As `reproduce`, in a process that begins with nothing."""
    settings = settings_of(each)
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "update", "reproduce", update, *flags],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Reproduced(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path) -> Iterator[Home]:
    """A pipeline with a life behind it."""
    with home(tmp_path_factory.mktemp("loose") / "home", mlflow_store, **LOOSE) as each:
        first = each.learn(digits(0))
        each.arrive(digits(1, angle=10))
        each.arrive(digits(2, angle=10))
        merged = each.run()
        stopped = each.learn(with_shuffled_labels(digits(3)))
        each.arrive(digits(3, records=60))
        each.ask()
        few = each.run()
        assert [first.outcome, merged.outcome, stopped.outcome, few.outcome] == [
            "promote",
            "promote",
            "reject",
            "review",
        ], few
        assert merged.audit, merged
        decisions.decide_review(each.engine, each.updates()[3].id, choice="approve", by=By("Ada", "ok"))
        decisions.roll_back(each.engine, NAME, version=1, by=By("Ada", "strange"))
        each.ask([1])
        assert each.run().outcome == "promote"
        retried(each)
        yield each


def retried(each: Home) -> None:
    """An update whose worker dies when the trainer is done; meanwhile a person pins and sets margins."""
    each.arrive(digits(4, angle=5))
    stale = each.claim(lease_seconds=EXPIRED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.updates.update.decide", die)
        with pytest.raises(DiedError):
            each.updater.run(stale, silent)
    decisions.set_holdout_margin(each.engine, NAME, 0, margin=0.01, by=By("Ada", "expensive"))
    decisions.mark_holdout(each.engine, NAME, 1, marking="retire", by=By("Ada", "old"))
    each.run()


class DiedError(Exception):
    pass


def die(*_arguments: Any) -> Any:
    raise DiedError


KINDS = {
    "the first": (0, "promote"),
    "of merged experiences, audited": (1, "promote"),
    "stopped before it was learnt": (2, "reject"),
    "reviewed and approved": (3, "review"),
    "after a rollback": (4, "promote"),
    "of a second attempt": (5, "promote"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_gives_the_same_challenger_and_verdict_in_a_fresh_process(loose: Home, kind: str) -> None:
    place, outcome = KINDS[kind]
    update = loose.updates()[place]
    before = snapshot(loose)
    done = (by_shell if place == 1 else reproduce)(loose, update.id, "--json")
    assert done.status == 0, (done.out, done.err)
    assert snapshot(loose) == before
    found = done.document
    assert (found["outcome"], found["verdict"]["state"]) == ("reproduced", "same")
    assert found["verdict"]["outcome"] == outcome
    assert {each["state"] for each in found["inputs"]} == {"same"}
    learnt = update.version is not None
    assert found["challenger"]["state"] == ("same" if learnt else "none")
    if learnt:
        assert found["challenger"]["files"] == [
            f"{LEARNER_FOLDER}/state.json",
            f"{LEARNER_FOLDER}/tensors.safetensors",
            SERVED_FILE,
        ]
    assert found["environment"] == []


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path) -> Iterator[Home]:
    """A pipeline whose gate asks everything, time and other seeds too; its second update is rejected."""
    with home(tmp_path_factory.mktemp("strict") / "home", mlflow_store, **STRICT) as each:
        assert each.learn(digits(0)).outcome == "review"
        decisions.decide_review(each.engine, each.updates()[0].id, choice="approve", by=By("Ada", "ok"))
        verdict = each.learn(digits(1, angle=90))
        assert verdict.outcome == "reject", verdict
        guards = {finding.guard for finding in verdict.findings}
        assert guards >= {"retention", "calibration", "macro_f1", "robustness", "latency", "size"}
        assert guards >= {"update_cost", "seeds", "disagreement"}
        yield each


def test_a_rejected_update_with_every_guard_and_other_seeds_is_reproduced(strict: Home) -> None:
    done = reproduce(strict, strict.updates()[1].id)
    assert done.status == 0, (done.out, done.err)
    assert done.err == ""
    assert "Challenger: same, bit for bit (learner/state.json" in done.out
    assert "Verdict: same (reject, " in done.out
    assert done.out.splitlines()[-1].startswith("Reproduced. The challenger is the same, bit for bit")
    assert len(done.out.splitlines()) < 30


def test_updates_are_reproduced_on_postgresql_as_well(
    tmp_path: Path, mlflow_store: Path, postgres_server: postgres.Server
) -> None:
    url = postgres_server.migrated_database()
    with home(tmp_path / "home", mlflow_store, database_url=url, **LOOSE) as each:
        for batch in range(2):
            assert each.learn(digits(batch)).outcome == "promote"
        before = snapshot(each)
        done = reproduce(each, each.updates()[1].id, "--json")
        assert (done.status, done.document["outcome"]) == (0, "reproduced"), (done.out, done.err)
        assert snapshot(each) == before


@contextmanager
def flipped(path: Path, place: int) -> Iterator[None]:
    """One bit of one byte of a file is another until the block ends; its times stay."""
    stat, whole = path.stat(), path.read_bytes()
    changed = bytearray(whole)
    changed[place] ^= 1
    path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(whole)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def part_file(each: Home, experience: int, part: str) -> Path:
    row = Manifest(each.engine).experience(NAME, experience)
    assert row is not None
    return each.settings.experiences / f"{getattr(row, part).digest}.arrow"


@pytest.mark.parametrize(
    ("experience", "part"), [(2, "train"), (0, "gate"), (1, "audit")], ids=lambda value: str(value)
)
def test_a_flipped_byte_in_an_experience_file_names_it(loose: Home, experience: int, part: str) -> None:
    with flipped(part_file(loose, experience, part), -100):
        done = reproduce(loose, loose.updates()[1].id, "--json")
    assert done.status == 3, (done.out, done.err)
    assert done.inputs("differs") == [f"experience {experience}, {part} part"]
    assert done.document["challenger"] is None
    assert done.document["reason"].startswith(f"Changed since the update: experience {experience}")


@pytest.mark.parametrize("file", [f"{LEARNER_FOLDER}/tensors.safetensors", SERVED_FILE])
def test_a_flipped_byte_in_the_base_checkpoint_names_its_file(loose: Home, file: str) -> None:
    base = loose.updater.folder(loose.updates()[0].id)
    with flipped(base / file, -50):
        done = reproduce(loose, loose.updates()[1].id)
    assert done.status == 3, (done.out, done.err)
    assert f"  differs  version 1, {file} (" in done.out
    assert done.out.splitlines()[-1].startswith("Differs. Changed since the update: version 1, ")


@contextmanager
def rewritten(each: Home, update_id: str, **changes: Any) -> Iterator[None]:
    """The stored documents of an update have other columns until the block ends."""
    table = update_inputs
    with each.engine.begin() as connection:
        rows = connection.execute(sa.select(table).where(table.c.update_id == update_id)).all()
    for row in rows:
        if row.name in changes:
            with each.engine.begin() as connection:
                own = sa.and_(table.c.update_id == update_id, table.c.name == row.name)
                connection.execute(sa.update(table).where(own).values(**changes[row.name](row)))
    try:
        yield
    finally:
        with each.engine.begin() as connection:
            connection.execute(sa.delete(table).where(table.c.update_id == update_id))
            connection.execute(sa.insert(table), [dict(row._mapping) for row in rows])


OF_THIS_GATE = f'"gate":{GATE_VERSION}'


def one_byte(row: Any) -> dict[str, str]:
    assert '"margin":0.3' in row.document or '"attempt":1' in row.document or OF_THIS_GATE in row.document
    changed = row.document.replace('"margin":0.3', '"margin":0.7').replace('"attempt":1', '"attempt":7')
    return {"document": changed.replace(OF_THIS_GATE, '"gate":7')}


@pytest.mark.parametrize("name", ["configuration", "plan", "result"])
def test_a_flipped_byte_in_a_stored_document_names_it(loose: Home, name: str) -> None:
    update = loose.updates()[1]
    with rewritten(loose, update.id, **{name: one_byte}):
        done = reproduce(loose, update.id, "--json")
    assert done.status == 3, (done.out, done.err)
    assert done.inputs("differs") == [f"stored {name}"]
    (detail,) = [each["detail"] for each in done.document["inputs"] if each["detail"]]
    assert detail == "its row in the table update_inputs was changed"


def test_a_configuration_that_was_changed_with_its_digest_is_not_what_the_result_was_made_for(
    loose: Home,
) -> None:
    def changed(row: Any) -> dict[str, str]:
        text = one_byte(row)["document"]
        return {"document": text, "digest": inputs.digest_of(text)}

    update = loose.updates()[1]
    with rewritten(loose, update.id, configuration=changed):
        done = reproduce(loose, update.id, "--json")
    assert done.status == 3, (done.out, done.err)
    assert done.inputs("differs") == ["inputs that the result was made for"]


def test_a_flipped_byte_in_the_stored_challenger_names_the_tensor(loose: Home) -> None:
    update = loose.updates()[0]
    file = loose.updater.folder(update.id) / LEARNER_FOLDER / "tensors.safetensors"
    with flipped(file, -1):
        done = reproduce(loose, update.id, "--json")
    assert done.status == 3, (done.out, done.err)
    (difference,) = done.document["challenger"]["differences"]
    assert difference["file"] == f"{LEARNER_FOLDER}/tensors.safetensors"
    assert difference["what"] in load_file(file)
    assert difference["detail"].startswith("1 of ")
    assert done.document["verdict"]["state"] == "same"


def test_a_challenger_that_meets_another_digest_than_the_stored_one_is_not_the_same(loose: Home) -> None:
    def other(row: Any) -> dict[str, str]:
        document = json.loads(row.document)
        document["origin"]["made"][SERVED_FILE] = "0" * 64
        text = json.dumps(document)
        return {"document": text, "digest": inputs.digest_of(text)}

    update = loose.updates()[0]
    with rewritten(loose, update.id, result=other):
        done = reproduce(loose, update.id, "--json")
    assert done.status == 3, (done.out, done.err)
    (difference,) = done.document["challenger"]["differences"]
    assert difference == {
        "file": SERVED_FILE,
        "what": "",
        "detail": "neither file has the digest that was stored with the update",
    }


def test_answers_in_the_database_are_not_used_to_decide_again(loose: Home) -> None:
    table = METADATA.tables["answers"]
    with loose.engine.begin() as connection:
        rows = connection.execute(sa.select(table)).all()
        connection.execute(sa.delete(table))
    try:
        done = reproduce(loose, loose.updates()[1].id, "--json")
    finally:
        with loose.engine.begin() as connection:
            connection.execute(sa.insert(table), [dict(row._mapping) for row in rows])
    assert (done.status, done.document["outcome"]) == (0, "reproduced"), (done.out, done.err)


def test_a_stored_verdict_that_was_changed_is_named(loose: Home) -> None:
    update = loose.updates()[1]
    assert update.verdict is not None
    with loose.engine.begin() as connection:
        own = sa.update(updates).where(updates.c.id == update.id)
        connection.execute(own.values(verdict={**update.verdict, "outcome": "reject"}))
    try:
        done = reproduce(loose, update.id, "--json")
    finally:
        with loose.engine.begin() as connection:
            connection.execute(own.values(verdict=update.verdict))
    assert (done.status, done.inputs("differs")) == (3, ["stored verdict"])


def test_a_verdict_of_an_older_gate_is_not_judged_by_this_one(loose: Home) -> None:
    def older(row: Any) -> dict[str, str]:
        text = row.document.replace(OF_THIS_GATE, '"gate":0')
        return {"document": text, "digest": inputs.digest_of(text)}

    update = loose.updates()[0]
    with rewritten(loose, update.id, result=older):
        done = reproduce(loose, update.id)
    assert done.status == 4, (done.out, done.err)
    assert done.out.splitlines()[-1] == (
        f"Verdict not compared. Gate version 0 judged the update; this release has {GATE_VERSION}. "
        "The challenger is the same, bit for bit; the verdict is not compared."
    )


def test_records_that_retention_removed_are_named_with_the_moment(loose: Home) -> None:
    update, file = loose.updates()[0], part_file(loose, 0, "train")
    aside = file.with_suffix(".aside")
    with loose.engine.begin() as connection:
        Manifest(loose.engine).remove_train(connection, NAME, [0], moment=1_700_000_000.0)
    file.rename(aside)
    try:
        done = reproduce(loose, update.id, "--json")
    finally:
        aside.rename(file)
        with loose.engine.begin() as connection:
            connection.execute(sa.update(EXPERIENCES).values(train_removed_at=None))
    assert (done.status, done.document["outcome"]) == (1, "impossible"), done.err
    assert done.inputs("gone") == ["experience 0, train part"]
    assert "removed by the pipeline's retention at 2023-11-14T22:13:20+00:00" in done.document["reason"]


def refused(done: Reproduced, status: int, *words: str) -> None:
    assert (done.status, done.out) == (status, "")
    assert done.err.count("\n") == 1
    for word in words:
        assert word in done.err


def test_what_has_no_verdict_or_no_inputs_cannot_be_reproduced_and_says_why(
    tmp_path: Path, mlflow_store: Path
) -> None:
    with home(tmp_path / "home", mlflow_store) as each:
        refused(reproduce(each, "u-none"), 1, "There is no update 'u-none'")
        each.arrive(digits(0))
        (update,) = each.updates()
        refused(reproduce(each, update.id), 1, "is queued: it has no verdict yet", "Wait")
        decisions.cancel(each.engine, update.id, by=By("Ada", "wrong"))
        refused(reproduce(each, update.id), 1, "was cancelled, so it made neither challenger nor verdict")
        each.learn(digits(1))
        judged = each.updates()[1]
        nowhere = {"HOLDFAST_STORE": "s3://nowhere/parts", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
        keys = {"AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
        refused(reproduce(each, judged.id, **nowhere, **keys), 1, "The experience store cannot be read")
        with each.engine.begin() as connection:
            connection.execute(sa.delete(update_inputs))
        refused(reproduce(each, judged.id), 1, "the release that made it did not store them")
        elsewhere = each.settings.model_copy(update={"home": tmp_path / "nowhere"})
        each.settings = elsewhere
        refused(reproduce(each, judged.id), 2, "There is no database", "HOLDFAST_HOME")
        assert not (tmp_path / "nowhere").exists()
