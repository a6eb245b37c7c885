"""What a trainer notes about the machine that it runs on."""

from types import SimpleNamespace
from typing import Any

import pytest

from service.training import trainer


@pytest.mark.parametrize(
    ("strategy", "computes", "slow"),
    [
        ({"precision": "bfloat16", "device": "cpu"}, False, True),
        ({"precision": "bfloat16", "device": "cpu"}, True, False),
        ({"device": "cpu"}, False, False),
    ],
)
def test_a_trainer_notes_bfloat16_that_its_processor_only_imitates(
    strategy: dict[str, Any], computes: bool, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "computes_bfloat16", lambda: computes)
    task: Any = SimpleNamespace(strategy=strategy, update_id="u-1")
    assert trainer.learner_is_slow(task) is slow
