"""Learning on a CUDA device: the same promises as on the CPU, and no copy from the host a batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from strategies.base import StreamInfo
from strategies.catalog import STRATEGIES
from strategies.learning.bridge import Template
from strategies.learning.learner import AvalancheLearner
from strategies.learning.recorder import Recorder
from strategies.learning.state import load_any
from streams.base import Experience

pytestmark = pytest.mark.gpu

INFO = StreamInfo(shape=(1, 8, 8), classes=tuple("0123456789"), dtype="uint8")
NAMES = [name for name in STRATEGIES if name != "combined"]


def digits(index: int) -> Experience:
    """Two classes more each time, of real digits."""
    images, labels = load_digits(return_X_y=True)
    chosen = np.flatnonzero(labels // 2 == index)
    inputs = np.minimum(images[chosen] * 16, 255).astype(np.uint8).reshape(-1, 1, 8, 8)
    return Experience(index, inputs, labels[chosen].astype(np.int64), chosen.astype(str), {}, "")


def build(name: str, **settings: Any) -> AvalancheLearner:
    spec = STRATEGIES[name]
    settings = {"device": "cuda", "epochs": 10} | settings
    learner = spec.build(spec.config.model_validate(settings), INFO)
    assert isinstance(learner, AvalancheLearner)
    return learner


def taught(name: str, experiences: int = 3, **settings: Any) -> AvalancheLearner:
    learner = build(name, **settings)
    for index in range(experiences):
        learner.learn(digits(index))
    return learner


@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_learns_and_goes_on_from_its_checkpoint(name: str, tmp_path: Path) -> None:
    learner = taught(name)
    assert learner.network.head.weight.device.type == "cuda"
    learner.save(tmp_path / "saved")
    reloaded = load_any(tmp_path / "saved", STRATEGIES)
    assert isinstance(reloaded, AvalancheLearner)
    inputs = digits(1).inputs
    assert np.array_equal(reloaded.predict(inputs), learner.predict(inputs))
    for each in (learner, reloaded):
        each.learn(digits(3))
    np.testing.assert_allclose(reloaded.predict(inputs), learner.predict(inputs), atol=1e-3)
    assert (learner.predict(digits(3).inputs).argmax(1) == digits(3).labels).mean() > 0.8


@pytest.mark.parametrize(
    "name", ["naive", "replay", "er-ace", "er-aml", "der", "mir", "a-gem", "lwf", "ewc", "si", "mas"]
)
def test_no_step_waits_for_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = taught(name, 2, batch_size=32)
    # Progress reads the loss, twice a second.
    monkeypatch.setattr(Recorder, "INTERVAL_SECONDS", 3600)

    def watched(self: Template, **kwargs: Any) -> None:
        # The order of an epoch is drawn on the host and brought over once, before the first step.
        functions, batches = self._step_functions(), iter(self.dataloader)
        self.mbatch = next(batches)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for function in functions:
                function(self)
            for batch in batches:
                self.mbatch = batch
                for function in functions:
                    function(self)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Template, "training_epoch", watched)
    learner.learn(digits(2))


@pytest.mark.parametrize("name", ["naive", "replay", "der", "lwf"])
def test_records_that_do_not_fit_are_learnt_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resident = taught(name)
    monkeypatch.setattr(Template, "_spare_bytes", lambda _: 0)
    streamed = taught(name)
    inputs = digits(1).inputs
    np.testing.assert_allclose(streamed.predict(inputs), resident.predict(inputs), atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bfloat16"},
        {"network": "cnn", "channels_last": True},
        {"network": "cnn", "channels_last": True, "precision": "bfloat16", "augment": ["crop", "noise"]},
        {"network": "resnet18", "epochs": 5},
        {"compile": True},
        {"compile": "graphs"},
        {"network": "cnn", "channels_last": True, "precision": "bfloat16", "compile": "graphs"},
    ],
    ids=str,
)
def test_options_of_the_gpu(settings: dict[str, Any]) -> None:
    learner = taught("replay", 5, **({"epochs": 15} | settings))
    right = [
        float((learner.predict(digits(index).inputs).argmax(1) == digits(index).labels).mean())
        for index in range(5)
    ]
    assert min(right) > (0.2 if settings.get("network") == "resnet18" else 0.6)


def test_a_checkpoint_of_the_gpu_is_loaded_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = taught("replay", device="auto")
    learner.save(tmp_path / "saved")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reloaded = load_any(tmp_path / "saved", STRATEGIES)
    assert isinstance(reloaded, AvalancheLearner)
    assert reloaded.device.type == "cpu"
    inputs = digits(1).inputs
    np.testing.assert_allclose(reloaded.predict(inputs), learner.predict(inputs), atol=1e-3)
    reloaded.learn(digits(3))
