"""Elec2, the field's standard stream with real drift, week by week through files to decisions."""

import gzip
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.pipelines import parse
from service.state import claims
from service.state.ledger import By
from service.updates.decisions import decide_review
from streams.state.manifest import ExperienceRow, Manifest
from tests.support.homes import Home, home, silent
from tests.support.real_data import DATA

WEEK = 336
"""Half-hours: records of one file."""
COLUMNS = ["period", "nswprice", "nswdemand", "vicprice", "vicdemand", "transfer"]
NAME = "elec2"


def declared(incoming: Path) -> dict[str, Any]:
    return {
        "name": NAME,
        "schema": {"columns": COLUMNS, "classes": ["0", "1"]},
        "source": {
            "kind": "files",
            "location": str(incoming),
            "label": "class",
            "settle_seconds": 0,
        },
        "trigger": {"kind": "performance", "first": 2000, "at_least": 1000, "at_most": 8000},
        "split": {"gate": 0.3, "audit": 0.05},
        "strategy": {"name": "replay", "capacity": 2000, "hidden": [64], "epochs": 5, "device": "cpu"},
        "gate": {"margin": 0.1, "learning_margin": 0.1, "label_error_excess": 0.3},
    }


def weeks() -> Iterator[str]:
    """CSV texts of a week each, in time order."""
    with gzip.open(DATA / "elec2" / "elec.csv.gz", "rt") as file:
        header, *rows = file.read().splitlines()
    for start in range(0, len(rows), WEEK):
        yield "\n".join([header, *rows[start : start + WEEK], ""])


def settle(place: Home) -> None:
    """Run every update that waits; a person approves what the gate asks about, and rejects nothing."""
    while (update := claims.claim(place.engine, "test", lease_seconds=60, max_attempts=3)) is not None:
        place.updater.run(update, silent)
        if place.read(update.id).state == "review":
            reason = "The market moves, and the old weeks are not asked for any more."
            choice = "approve" if place.read(update.id).version else "reject"
            decide_review(place.engine, update.id, choice=choice, by=By("Ada", reason))  # type: ignore[arg-type]


def stream(place: Home, incoming: Path) -> list[ExperienceRow]:
    """Every week arrives, is read, and what it makes due is learnt and decided before the next."""
    for number, text in enumerate(weeks()):
        unfinished = incoming / f"week-{number:03}.csv.tmp"
        unfinished.write_text(text)
        unfinished.rename(incoming / f"week-{number:03}.csv")
        for _ in range(3):
            while place.ingest.turn() == 0.0:
                settle(place)
        settle(place)
    return Manifest(place.engine).experiences(NAME)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_champion_that_gets_worse_has_the_stream_cut_and_is_replaced(
    tmp_path: Path, mlflow_store: Path
) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    with home(tmp_path / "home", mlflow_store, spec=parse(declared(incoming))) as place:
        rows = stream(place, incoming)
        manifest = Manifest(place.engine)
        sys.stdout.writelines(f"{row.index:>3} {row.rows:>6}  {row.cut_reason}\n" for row in rows)
        place.ingest.close()
        assert manifest.count_dead_letters(NAME) == {}
    records = sum(row.rows for row in rows)
    alarms = [row for row in rows if row.decision.get("alarm")]
    assert 45_312 - 8_000 < records <= 45_312
    assert rows[0].decision["first"] is True
    assert len(alarms) >= 5
    for row in alarms:
        assert row.decision["trigger"] == "performance"
        assert row.decision["latest_wrong"] / row.decision["latest"] > row.decision["acceptable"]
        assert f"Version {row.decision['version']} got {row.decision['latest_wrong']}" in row.cut_reason
    assert len({row.decision["version"] for row in alarms}) >= 3
