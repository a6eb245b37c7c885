"""The learner over Avalanche's loop: reports, progress, data it takes, and state it refuses to drop."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from strategies.base import ExperienceUnfitError, StateError, StrategyError, StreamInfo
from strategies.cumulative import CumulativeConfig
from strategies.cumulative import build as build_cumulative
from strategies.learning.avalanche import SupervisedPlugin
from strategies.learning.learner import AvalancheLearner, choose_device
from strategies.learning.plugin_roles import StatefulPlugin
from strategies.learning.recorder import Recorder
from strategies.lwf import LwfConfig
from strategies.lwf import build as build_lwf
from strategies.naive import NaiveConfig
from streams.base import Experience

INFO = StreamInfo(shape=(4,), classes=("a", "b", "c"))
SMALL = {"hidden": (8,), "epochs": 3, "batch_size": 16, "device": "cpu"}


def learner(info: StreamInfo = INFO, **settings: Any) -> AvalancheLearner:
    torch.set_num_threads(1)
    return AvalancheLearner(NaiveConfig(**(SMALL | settings)), info)


def experience(
    inputs: NDArray[Any] | None = None, labels: NDArray[np.int64] | None = None, *, index: int = 0
) -> Experience:
    draw = np.random.default_rng(index)
    labels = draw.integers(3, size=50) if labels is None else labels
    if inputs is None:
        inputs = (draw.normal(size=(len(labels), 4)) + labels[:, None]).astype(np.float32)
    return Experience(index, inputs, labels, np.array([str(i) for i in range(len(labels))]), {}, "")


def test_a_report_tells_what_was_done(capfd: pytest.CaptureFixture[str]) -> None:
    built = learner()
    report = built.learn(experience(index=4))
    assert (report.experience, report.records, report.steps) == (4, 50, 3 * 4)
    assert len(report.losses) == 3
    assert report.losses[2] < report.losses[0] < 3
    assert report.seconds > 0
    assert built.experiences_learnt == 1
    assert capfd.readouterr() == ("", "")


def test_the_reported_loss_is_the_mean_over_records() -> None:
    # With no step to speak of, the training loss is that of the network as it was built.
    built = learner(learning_rate=1e-12, epochs=1)
    shown = experience()
    report = built.learn(shown)
    likelihood = built.predict(shown.inputs)[np.arange(50), shown.labels]
    assert report.losses[0] == pytest.approx(float(-np.log(likelihood).mean()), rel=1e-5)


def test_progress_is_told_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[tuple[int, int, float]] = []

    def progress(*, step: int, total_steps: int, loss: float) -> None:
        reported.append((step, total_steps, loss))

    report = learner().learn(experience(), progress)
    assert reported == [(12, 12, report.losses[-1])]
    reported.clear()
    monkeypatch.setattr(Recorder, "INTERVAL_SECONDS", 0.0)
    learner().learn(experience(), progress)
    assert [step for step, _, _ in reported] == [*range(1, 13), 12]


def test_a_learner_whose_progress_was_stopped_refuses_to_go_on() -> None:
    def stop(*, step: int, total_steps: int, loss: float) -> None:
        raise TimeoutError

    built = learner()
    with pytest.raises(TimeoutError):
        built.learn(experience(), stop)
    with pytest.raises(StrategyError, match="last saved state"):
        built.learn(experience())


def test_rows_follow_the_order_of_first_appearance() -> None:
    built = learner()
    built.learn(experience(labels=np.array([2, 2, 0])))
    built.learn(experience(labels=np.array([1, 0, 2])))
    assert built.classes_learnt == (2, 0, 1)


def test_memory_mapped_records_are_learnt_and_not_kept(tmp_path: Path) -> None:
    np.save(tmp_path / "inputs.npy", experience().inputs)
    mapped = np.load(tmp_path / "inputs.npy", mmap_mode="r")
    from_file, from_memory = learner(), learner()
    from_file.learn(experience(mapped))
    from_memory.learn(experience())
    assert np.array_equal(from_file.predict(mapped), from_memory.predict(experience().inputs))


@pytest.mark.parametrize("shape", [(6,), (1, 5, 4)])
def test_uint8_records(shape: tuple[int, ...]) -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(3, size=200)
    inputs = draw.integers(0, 80, size=(200, *shape)).astype(np.uint8)
    inputs += (80 * labels).astype(np.uint8).reshape(200, *[1] * len(shape))
    built = learner(StreamInfo(shape, INFO.classes, "uint8"), epochs=20, learning_rate=1e-2)
    built.learn(experience(inputs, labels))
    assert (built.predict(inputs).argmax(1) == labels).mean() > 0.95
    np.testing.assert_allclose(built.predict(inputs.astype(np.float64)), built.predict(inputs), atol=1e-6)


def test_one_record_of_one_class_can_be_learnt() -> None:
    built = learner()
    built.learn(experience(labels=np.array([1])))
    answers = built.predict(np.ones((2, 4), np.float32))
    assert answers.tolist() == [[0, 1, 0], [0, 1, 0]]


def test_predict_before_anything_was_learnt_and_of_nothing() -> None:
    built = learner()
    assert not built.predict(np.ones((2, 4), np.float32)).any()
    assert built.predict(np.ones((0, 4), np.float32)).shape == (0, 3)
    with pytest.raises(ExperienceUnfitError, match="takes"):
        built.predict(np.ones((2, 5), np.float32))


def test_predict_restores_the_modes_it_found() -> None:
    built = learner()
    built.learn(experience())
    built.network.train()
    built.network.get_submodule("body").eval()
    built.predict(experience().inputs)
    assert built.network.training
    assert not built.network.get_submodule("body").training


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(StrategyError, match="use 'auto' or 'cpu'"):
        choose_device("cuda")


class Silent(SupervisedPlugin):  # type: ignore[misc]  # Avalanche ships no types
    """Does not say what its state is."""


class Growing(Silent):
    """Says so, and then holds more."""

    name = "growing"
    known = frozenset({"memory"})

    def __init__(self) -> None:
        super().__init__()
        self.memory = 0

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        self.surprise = strategy.clock.train_iterations

    def tensors(self) -> dict[str, torch.Tensor]:
        return {}

    def facts(self) -> dict[str, Any]:
        return {}

    def restore(self, tensors: Any, facts: Any, network: nn.Module) -> None: ...


def test_state_that_saving_would_drop_is_refused(tmp_path: Path) -> None:
    config = NaiveConfig(**SMALL)
    with pytest.raises(StateError, match="Silent does not say"):
        AvalancheLearner(config, INFO, plugins=[Silent()]).save(tmp_path / "saved")
    assert isinstance(Growing(), StatefulPlugin)
    with pytest.raises(StateError, match="share a name"):
        AvalancheLearner(config, INFO, plugins=[Growing(), Growing()]).save(tmp_path / "saved")
    built = AvalancheLearner(config, INFO, plugins=[Growing()])
    built.learn(experience())
    with pytest.raises(StateError, match="surprise"):
        built.save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_state_that_the_training_loop_gains_is_refused(tmp_path: Path) -> None:
    built = learner()
    built._template.scheduler = object()
    with pytest.raises(StateError, match="scheduler"):
        built.save(tmp_path / "saved")


def test_the_lwf_teacher_rests_in_evaluation_mode() -> None:
    built = build_lwf(LwfConfig(**SMALL), INFO)
    built.learn(experience())
    assert isinstance(built, AvalancheLearner)
    teacher = built._template.plugins[0].teacher
    assert not any(module.training for module in teacher.modules())
    built.learn(experience(index=1))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_cumulative_says_where_its_growth_ends() -> None:
    built = build_cumulative(CumulativeConfig(max_records=80, **SMALL), INFO)
    built.learn(experience())
    with pytest.raises(ExperienceUnfitError, match=r"100 records, above max_records=80.*replay"):
        built.learn(experience(index=1))
