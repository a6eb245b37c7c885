"""The demo of small experiences runs by itself, and counts what a person would have been asked."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from service.commands import demo_small
from service.pipelines import parse


def test_each_experience_has_records_of_its_own_and_keeps_the_images_apart() -> None:
    first, later = demo_small.records(0), demo_small.records(9)
    assert len(first) == len(later) == demo_small.RECORDS
    assert not set(first.ids.to_pylist()) & set(later.ids.to_pylist())
    images = dict(zip(first.split_keys.to_pylist(), first.labels.tolist(), strict=True))
    again = dict(zip(later.split_keys.to_pylist(), later.labels.tolist(), strict=True))
    shared = images.keys() & again.keys()
    assert shared
    assert all(images[each] == again[each] for each in shared)
    assert not np.array_equal(first.features, later.features)


def test_the_pipeline_leaves_the_gate_as_it_is() -> None:
    assert parse(demo_small.spec()).gate == parse({**demo_small.spec(), "gate": {}}).gate
    assert "gate" not in demo_small.spec()


@pytest.mark.slow
def test_it_runs_by_itself_and_counts_every_outcome(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "demo", "--small", "--json", "--home", str(tmp_path / "home")],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    outcomes = document["outcomes"]
    assert sum(outcomes.values()) == document["experiences"] == demo_small.EXPERIENCES
    assert len(document["reasons"]) == outcomes["review"] + outcomes["reject"]
    # Lines are as wide as the console.
    assert f"asked about {outcomes['review']}" in " ".join(done.stderr.split())
