"""Streams over HTTP: their state, what stops them, and the replay of dead letters."""

import base64
import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from service.ingest.pipeline import PipelineIngest
from service.state import pipelines
from service.storage import store_location
from streams.state.manifest import Manifest
from tests.support.api_parts import Api, declare, push, record, running_api, spec, unchanged

NAMES = count()
HOLD = {"reason": "The sensor is being moved.", "by": "ada"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("api")) as running:
        yield running


class FilesPipeline:
    """A pipeline over a folder of its own, and its ingest role in this process."""

    def __init__(self, api: Api, *, reading: dict[str, Any] | None = None, **changes: Any) -> None:
        self.api = api
        self.name = f"files{next(NAMES)}"
        self.folder = api.settings.root / "incoming" / self.name
        self.folder.mkdir(parents=True)
        source = {"kind": "files", "location": str(self.folder), "settle_seconds": 0} | (reading or {})
        # So few records that its gate would ask about nearly all updates: here none is made.
        declare(api, self.name, source=source, **{"gate": {"accept": True}, **changes})
        with api.engine.begin() as connection:
            self._spec = pipelines.load_spec(connection, self.name)
        self.role = self._open()

    def _open(self) -> PipelineIngest:
        settings = self.api.settings
        return PipelineIngest(self.api.engine, settings, self._spec, store=store_location(settings).open())

    @property
    def path(self) -> str:
        return f"/v1/pipelines/{self.name}"

    def arrive(self, name: str, *lines: bytes) -> None:
        unfinished = self.folder / f"{name}.tmp"
        unfinished.write_bytes(b"".join(line + b"\n" for line in lines))
        unfinished.rename(self.folder / name)

    def turn(self, times: int = 3) -> None:
        """As many looks of the ingest role, which begins anew where it would pause after a failure."""
        for _ in range(times):
            self.role.turn()
        self.role.close()
        self.role = self._open()

    def get(self, path: str) -> Any:
        answer = self.api.http.get(self.path + path)
        assert answer.is_success, answer.text
        return answer.json()

    def post(self, path: str, body: Any) -> Any:
        answer = self.api.http.post(self.path + path, json=body)
        assert answer.is_success, answer.text
        return answer.json()

    def ids(self) -> list[str]:
        """Ids of all records in experiences."""
        store = store_location(self.api.settings).open()
        return sorted(
            name
            for row in Manifest(self.api.engine).experiences(self.name)
            for part in (row.train, row.gate, row.audit)
            for name in store.open(part.digest, index=row.index).record_ids.tolist()
        )


@pytest.fixture
def files(api: Api) -> Iterator[Callable[..., FilesPipeline]]:
    made: list[FilesPipeline] = []

    def make(**changes: Any) -> FilesPipeline:
        made.append(FilesPipeline(api, **changes))
        return made[-1]

    yield make
    for pipeline in made:
        pipeline.role.close()


def good(*names: str) -> list[bytes]:
    return [json.dumps(record(name)).encode() for name in names]


def test_a_new_stream_stands_at_its_beginning(api: Api) -> None:
    declare(api, "new")
    view = api.http.get("/v1/pipelines/new/stream").json()
    assert (view["status"], view["reason"], view["since"]) == ("running", "", None)
    assert (view["experiences"], view["records"], view["backlog_records"]) == (0, 0, 0)
    push(api, "new", 8)
    assert api.http.get("/v1/pipelines/new/stream").json()["backlog_records"] == 8
    api.refuses(api.http.get("/v1/pipelines/none/stream"), 404, "pipeline-unknown")


def test_a_stream_that_is_read_says_how_far_and_why_it_was_cut(files: Callable[..., FilesPipeline]) -> None:
    stream = files(trigger={"records": 30})
    stream.arrive("a.ndjson", *good(*(f"r{place}" for place in range(40))))
    stream.turn()
    view = stream.get("/stream")
    assert (view["experiences"], view["records"], view["pending_records"]) == (1, 30, 10)
    assert view["last_cut"] == "30 records have arrived."
    assert [place["partition"] for place in view["partitions"]] == ["a.ndjson"]
    (cut,) = stream.get("/experiences")
    assert (cut["cut_decision"]["trigger"], cut["cut_decision"]["records"]) == ("records", 30)


def test_a_paused_stream_is_not_read_until_it_is_resumed(files: Callable[..., FilesPipeline]) -> None:
    stream = files(trigger={"records": 10})
    view = stream.post("/stream/pause", HOLD)
    assert (view["status"], view["reason"], view["actor"]) == ("paused", HOLD["reason"], "ada")
    stream.arrive("a.ndjson", *good(*(f"r{place}" for place in range(10))))
    stream.turn()
    assert stream.ids() == []
    again = stream.api.http.post(f"{stream.path}/stream/pause", json=HOLD)
    stream.api.refuses(again, 409, "stream-conflict")
    assert stream.post("/stream/resume", HOLD)["status"] == "running"
    stream.turn()
    assert len(stream.ids()) == 10
    again = stream.api.http.post(f"{stream.path}/stream/resume", json=HOLD)
    stream.api.refuses(again, 409, "stream-conflict")


@pytest.mark.parametrize("body", [{}, {"reason": "  "}, {"reason": 7}, {"reason": "x", "colour": 1}])
def test_a_pause_without_a_reason_is_refused(api: Api, body: dict[str, object]) -> None:
    name = declare(api, f"bare{next(NAMES)}")
    with unchanged(api):
        api.refuses(api.http.post(f"/v1/pipelines/{name}/stream/pause", json=body), 422, "request-invalid")


def test_an_update_asked_for_does_not_wait_for_a_paused_stream(files: Callable[..., FilesPipeline]) -> None:
    stream = files()
    stream.arrive("a.ndjson", *good("r1"))
    stream.post("/stream/pause", HOLD)
    update = stream.post("/updates", {})["update"]
    stream.turn()
    assert stream.ids() == []
    assert stream.api.http.get(f"/v1/updates/{update}").json()["state"] == "queued"


def test_too_many_bad_records_stop_a_stream_and_a_person_resumes_it(
    files: Callable[..., FilesPipeline],
) -> None:
    breaker = {"max_bad_share": 0.3, "window": 10}
    stream = files(trigger={"records": 6}, circuit_breaker=breaker)
    stream.arrive("a.ndjson", *good("r1", "r2", "r3", "r4", "r5"), *[b"poison"] * 5)
    stream.turn()
    view = stream.get("/stream")
    assert view["status"] == "stopped"
    assert "5 of the last 10 records" in view["reason"]
    assert view["dead_letters"] == {"malformed": 5}
    stream.arrive("b.ndjson", *good("r6", "r7", "r8"))
    stream.turn()
    assert stream.ids() == []
    stream.post("/stream/resume", HOLD)
    stream.turn(5)
    assert stream.get("/stream")["status"] == "running"
    assert stream.ids() == ["r1", "r2", "r3", "r4", "r5", "r6"]
    assert stream.get("/stream")["dead_letters"] == {"malformed": 5}


def test_a_file_that_was_replaced_stops_the_stream_and_says_so(files: Callable[..., FilesPipeline]) -> None:
    stream = files(trigger={"records": 5})
    stream.arrive("a.ndjson", *good(*(f"r{place}" for place in range(5))))
    stream.turn()
    stream.arrive("a.ndjson", *good(*(f"other-{place}" for place in range(9))))
    stream.turn()
    view = stream.get("/stream")
    assert view["status"] == "stopped"
    assert "a.ndjson" in view["reason"]
    assert len(stream.ids()) == 5


def test_another_header_stops_the_stream_with_the_difference(files: Callable[..., FilesPipeline]) -> None:
    stream = files(schema={"columns": ["heat", "load"], "classes": ["down", "up"]})
    stream.arrive("a.csv", b"heat,laod,label", b"1,2,up")
    stream.turn()
    view = stream.get("/stream")
    assert view["status"] == "stopped"
    assert "missing: load" in view["reason"]
    assert "unknown: laod" in view["reason"]


def test_dead_letters_are_listed_and_shown_whole(files: Callable[..., FilesPipeline]) -> None:
    stream = files()
    poison = [b"poison \xff\x00", json.dumps(record("r2", label="sideways")).encode()]
    stream.arrive("a.ndjson", *good("r1"), *poison)
    stream.turn()
    listed = stream.get("/dead-letters")
    assert sorted(dead_letter["reason"] for dead_letter in listed) == ["malformed", "unknown-label"]
    (sideways,) = stream.get("/dead-letters?reason=unknown-label")
    assert "sideways" in sideways["detail"]
    assert stream.get("/dead-letters?reason=bad-id") == []
    assert len(stream.get("/dead-letters?limit=1")) == 1
    (broken,) = stream.get("/dead-letters?reason=malformed")
    whole = stream.get(f"/dead-letters/{broken['id']}")
    assert whole["text"] is None
    assert base64.b64decode(whole["base64"]) == poison[0]
    assert stream.get(f"/dead-letters/{sideways['id']}")["text"] == poison[1].decode()
    missing = stream.api.http.get(f"{stream.path}/dead-letters/{'0' * 16}")
    stream.api.refuses(missing, 404, "dead-letter-unknown")
    stream.api.refuses(stream.api.http.get(f"{stream.path}/dead-letters/x"), 422, "request-invalid")


def test_a_corrected_letter_becomes_one_record_however_often_it_is_replayed(
    files: Callable[..., FilesPipeline],
) -> None:
    stream = files(trigger={"records": 3})
    stream.arrive("a.ndjson", *good("r1", "r2"), json.dumps(record("r3", label="sideways")).encode())
    stream.turn()
    (dead_letter,) = stream.get("/dead-letters")
    body: dict[str, Any] = {"dead_letters": [dead_letter["id"]]}
    found = stream.post("/dead-letters/replay", body)
    assert (found["replayed"], found["refused"]) == (0, 1)
    assert "sideways" in found["dead_letters"][0]["reason"]
    body["payload"] = json.dumps(record("r3"))
    assert stream.post("/dead-letters/replay", body)["replayed"] == 1
    again = stream.post("/dead-letters/replay", body)
    assert (again["replayed"], again["dead_letters"][0]["reason"]) == (
        0,
        "It was replayed before; it is not learnt twice.",
    )
    stream.turn()
    assert stream.ids() == ["r1", "r2", "r3"]
    assert stream.get("/dead-letters?replayed=false") == []
    assert stream.get("/dead-letters?replayed=true")[0]["replayed_at"]


def test_all_letters_of_a_reason_are_replayed_at_once(files: Callable[..., FilesPipeline]) -> None:
    stream = files()
    stream.arrive("a.ndjson", *[b"poison"] * 3, json.dumps(record("r", label="sideways")).encode())
    stream.turn()
    found = stream.post("/dead-letters/replay", {"reason": "malformed"})
    assert (found["replayed"], found["refused"]) == (0, 3)
    assert stream.post("/dead-letters/replay", {})["refused"] == 4


def test_more_letters_than_one_answer_holds_are_listed_and_replayed_page_by_page(
    files: Callable[..., FilesPipeline],
) -> None:
    stream = files()
    count = 2_300
    stream.arrive("a.ndjson", *[b"poison %d" % number for number in range(count)])
    for _ in range(3):
        stream.turn()
    listed: list[str] = []
    while page := stream.get(f"/dead-letters?limit=1000{f'&after={listed[-1]}' if listed else ''}"):
        listed += [dead_letter["id"] for dead_letter in page]
    assert len(set(listed)) == len(listed) == count
    refused, answer = 0, dict[str, Any](next=None)
    for pages in range(1, 4):
        answer = stream.post("/dead-letters/replay", {"after": answer["next"]})
        refused += answer["refused"]
        assert (answer["next"] is None) == (pages == 3)
    assert refused == count
    assert stream.get("/stream")["dead_letters"] == {"malformed": count}


def test_a_row_of_a_table_that_was_refused_can_be_replayed(files: Callable[..., FilesPipeline]) -> None:
    """As it is, once it fits, and as a person mends it: kept in the form that records are sent in."""
    schema = {"columns": ["x", "y"], "classes": ["down", "up"], "maximum": 9}
    stream = files(
        reading={"id": "name", "label": "what"},
        schema=schema,
        trigger={"records": 2},
        split={"gate": 1e-9, "audit": 0},
    )
    table = pa.table({"name": ["r1", "r2"], "x": [1.0, 2.0], "y": [3.0, 40.0], "what": ["up", "up"]})
    parquet.write_table(table, stream.folder / "a.parquet")
    stream.turn()
    (dead_letter,) = stream.get("/dead-letters")
    assert dead_letter["reason"] == "out-of-range"
    kept = json.loads(stream.get(f"/dead-letters/{dead_letter['id']}")["text"])
    assert kept == {"id": "r2", "features": {"x": 2.0, "y": 40.0}, "label": "up"}
    (refusal,) = stream.post("/dead-letters/replay", {})["dead_letters"]
    assert refusal["reason"] == dead_letter["detail"], "it is read again, and still does not fit"
    corrected = json.dumps({**kept, "features": {"x": 2.0, "y": 4.0}})
    assert stream.post("/dead-letters/replay", {"dead_letters": [dead_letter["id"]], "payload": corrected})[
        "replayed"
    ]
    stream.turn()
    assert stream.ids() == ["r1", "r2"]
    found = stream.get("/stream")
    assert (found["dead_letters"], found["replayed_dead_letters"]) == ({}, 1)


def test_a_line_of_csv_is_corrected_as_csv_or_as_a_json_record(files: Callable[..., FilesPipeline]) -> None:
    schema = {"columns": ["x", "y"], "classes": ["down", "up"], "maximum": 9}
    stream = files(schema=schema, trigger={"records": 2}, split={"gate": 1e-9, "audit": 0})
    stream.arrive("a.csv", b"x,y,label", b"1,40,up", b"1,50,up")
    stream.turn()
    line, record_ = (dead_letter["id"] for dead_letter in stream.get("/dead-letters"))
    corrected = '{"id": "corrected", "features": {"x": 1, "y": 4}, "label": "up"}'
    assert stream.post("/dead-letters/replay", {"dead_letters": [line], "payload": "1,5,up"})["replayed"] == 1
    assert (
        stream.post("/dead-letters/replay", {"dead_letters": [record_], "payload": corrected})["replayed"]
        == 1
    )
    stream.turn()
    assert len(stream.ids()) == 2
    assert "corrected" in stream.ids()


def test_a_trigger_that_waits_for_more_than_may_wait_is_refused(api: Api) -> None:
    limit = api.settings.max_backlog_records
    for trigger in (
        {"records": limit + 1},
        {"kind": "any-of", "any": [{"records": limit + 1}, {"records": limit + 2}]},
        {"kind": "any-of", "any": [{"records": 1}], "min_records": limit + 1},
        {"kind": "performance", "at_least": limit + 1, "at_most": limit + 1},
    ):
        declared = spec(f"never{next(NAMES)}", trigger=trigger)
        problem = api.refuses(api.http.post("/v1/pipelines", json=declared), 422, "pipeline-invalid")
        assert "never cuts fewer than" in problem["detail"]
        assert "HOLDFAST_MAX_BACKLOG_RECORDS" in problem["fix"]
    late = {"kind": "any-of", "any": [{"records": limit + 1}], "max_seconds": 60}
    declare(api, f"late{next(NAMES)}", trigger=late)


@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [
        ({"dead_letters": ["0" * 16]}, 404, "dead-letter-unknown"),
        ({"dead_letters": []}, 422, "request-invalid"),
        ({"dead_letters": ["x"]}, 422, "request-invalid"),
        ({"dead_letters": ["0" * 16, "1" * 16], "payload": "{}"}, 422, "dead-letter-unfit"),
    ],
)
def test_a_replay_that_cannot_be_is_refused(api: Api, body: dict[str, Any], status: int, slug: str) -> None:
    name = declare(api, f"bare{next(NAMES)}")
    with unchanged(api):
        api.refuses(api.http.post(f"/v1/pipelines/{name}/dead-letters/replay", json=body), status, slug)


def test_only_the_folders_of_the_settings_can_be_read(api: Api, tmp_path: Path) -> None:
    for location in (
        "/etc",
        str(tmp_path),
        str(api.settings.root / "incoming" / ".." / "x"),
        "s3://bucket/c",
    ):
        spec = {
            "name": f"out{next(NAMES)}",
            "schema": {"shape": [2], "classes": ["down", "up"]},
            "trigger": {"records": 10},
            "strategy": {"name": "naive"},
            "source": {"kind": "files", "location": location},
        }
        problem = api.refuses(api.http.post("/v1/pipelines", json=spec), 422, "pipeline-invalid")
        assert "HOLDFAST_SOURCE_ROOTS" in problem["fix"]


def test_labels_that_come_later_complete_their_records(files: Callable[..., FilesPipeline]) -> None:
    schema = {"shape": [2], "classes": ["down", "up"], "labels_within_seconds": 3600}
    stream = files(schema=schema, trigger={"records": 4}, label_source={"kind": "pushed"})
    halves = [json.dumps({"id": f"r{place}", "features": [place, 1]}).encode() for place in range(6)]
    stream.arrive("a.ndjson", *halves)
    stream.turn()
    assert (stream.get("/stream")["unmatched_records"], stream.ids()) == (6, [])
    records = [{"id": f"r{place}", "label": "up"} for place in range(5)]
    stream.post("/records", {"records": records})
    stream.turn()
    assert stream.ids() == ["r0", "r1", "r2", "r3"]


def test_classes_of_an_open_set_come_with_the_stream(files: Callable[..., FilesPipeline]) -> None:
    schema = {"shape": [2], "open_classes": True, "max_classes": 3}
    stream = files(schema=schema, trigger={"records": 3})
    labels = ("cat", "dog", "eel", "fox")
    lines = [json.dumps(record(f"r{place}", label=label)).encode() for place, label in enumerate(labels)]
    stream.arrive("a.ndjson", *lines)
    stream.turn()
    view = stream.get("/stream")
    assert (view["classes"], view["dead_letters"]) == (3, {"too-many-classes": 1})
    assert Manifest(stream.api.engine).classes(stream.name) == ["cat", "dog", "eel"]
