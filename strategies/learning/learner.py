"""The learner behind every strategy of the catalog: a network, an optimizer and Avalanche's plugins.

Random numbers depend on (seed, experiences learnt) alone. With the same number of threads on the same kind
of CPU, the same experiences give the same learner, bit for bit, whether or not it was saved in between.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, JsonValue
from torch import Tensor

from strategies.base import (
    ExperienceUnfitError,
    LearnReport,
    Progress,
    StateError,
    StrategyConfig,
    StrategyError,
    StreamInfo,
    silent,
)
from strategies.learning.augmentation import Augmentation
from strategies.learning.avalanche import Clock, PeriodicEval, SupervisedPlugin
from strategies.learning.bridge import Options, Template
from strategies.learning.checks import check_fits, check_shape
from strategies.learning.dataset import BridgedExperience, TensorDataset
from strategies.learning.networks import Network, ServedNetwork
from strategies.learning.optimizers import (
    make_optimizer,
    optimizer_facts,
    optimizer_tensors,
    restore_optimizer,
)
from strategies.learning.plugin_roles import StatefulPlugin
from strategies.learning.randomness import seeded
from strategies.learning.recorder import Recorder
from strategies.learning.state import LearnerState, read_state, write_state
from strategies.learning.training_plugins import ClippedGradient, EarlyStop, PassingPlugin, Schedule
from streams.base import Experience

PREDICTION_VALUES = 2**22
"""Feature values of one prediction batch, at most."""


def _as_it_is(network: Network) -> None:
    """Adds nothing."""


class LearnerFacts(BaseModel):
    """A learner's state besides tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes_by_row: tuple[int, ...]
    """Class ids in order of first appearance: index i is row i of the head."""
    clock: dict[str, int]
    optimizer: list[dict[str, JsonValue]]
    plugins: dict[str, dict[str, JsonValue]]


class AvalancheLearner:
    """Implements `Learner` with Avalanche's training loop.

    A `learn` that raises anything but `ExperienceUnfitError` from its first checks leaves the learner in
    an undefined state: it then refuses to learn, predict or save, and the last saved state must be loaded.
    """

    def __init__(
        self,
        config: StrategyConfig,
        stream_info: StreamInfo,
        *,
        plugins: Sequence[SupervisedPlugin] = (),
        equip: Callable[[Network], None] = _as_it_is,
    ) -> None:
        """A learner that learnt nothing yet.

        Args:
            equip: adds to a network just drawn what the strategy needs of it, before there is an optimizer;
                it draws by torch's global random state.

        Raises:
            StrategyError: the config asks for a GPU and there is none, or it does not fit such records.
        """
        if problem := config.problem(stream_info.shape, stream_info.dtype):
            raise StrategyError(problem[1])
        self.config = config
        self.stream_info = stream_info
        self.device = choose_device(config.device)
        self._classes_by_row: list[int] = []
        self._failed = False
        self._recorder = Recorder()
        with seeded(config.seed, 0, device=self.device):
            network = Network(config, stream_info.shape, stream_info.dtype)
            equip(network)
            network = network.to(self.device)
        self._template = Template(
            model=network,
            optimizer=make_optimizer(config, network),
            train_mb_size=config.batch_size,
            train_epochs=config.epochs,
            device=self.device,
            plugins=_with_training_plugins(config, plugins),
            evaluator=self._recorder,
            options=Options(
                augmentation=Augmentation(config.augment, stream_info.shape) if config.augment else None,
                bfloat16=config.precision == "bfloat16",
                channels_last=config.channels_last,
                compile_mode=_compile_mode(config, self.device),
            ),
        )
        self._attributes = frozenset(vars(self._template))

    @property
    def network(self) -> Network:
        """The live network: raw features (n, *shape) -> logits (n, rows). Not a copy."""
        network: Network = self._template.model
        return network

    @property
    def experiences_learnt(self) -> int:
        count: int = self._template.clock.train_exp_counter
        return count

    @property
    def classes_learnt(self) -> tuple[int, ...]:
        """Class ids in order of first appearance; the head's row i answers for the i-th."""
        return tuple(self._classes_by_row)

    def learn(self, experience: Experience, progress: Progress = silent) -> LearnReport:
        """Learn one experience; see `Learner.learn`, and above for what a failure means."""
        self._check_usable()
        started = time.perf_counter()
        check_fits(experience, self.stream_info)
        self._failed = True
        bridged = self._bridge(experience)
        self._recorder.progress = progress
        with seeded(self.config.seed, 1 + self.experiences_learnt, device=self.device) as generator:
            self._template.generator = generator
            if self.experiences_learnt == 0:
                self._template.model.scaling.fit(bridged.dataset.inputs)
            self._template.train(bridged, eval_streams=[])
        self._template.optimizer.zero_grad()
        self.network.eval()
        self._recorder.progress = silent
        self._failed = False
        return LearnReport(
            experience=experience.index,
            records=len(experience),
            steps=self._template.clock.train_exp_iterations,
            seconds=time.perf_counter() - started,
            losses=tuple(self._recorder.losses),
        )

    def predict(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Probabilities (n, n_classes); all zero while nothing was learnt. See `Learner.predict`.

        Raises:
            ExperienceUnfitError: the records are of another shape.
        """
        return self._at_rest(self._served(), inputs, width=len(self.stream_info.classes))

    def embed(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Features below the head (n, width). See `Learner.embed`.

        Raises:
            ExperienceUnfitError: the records are of another shape.
        """
        network = self.network
        return self._at_rest(
            lambda batch: network.features(network.prepare(batch)), inputs, width=network.head.width
        )

    def _at_rest(
        self, answer: Callable[[Tensor], Tensor], inputs: NDArray[Any], *, width: int
    ) -> NDArray[np.float32]:
        """(n, width) answers to raw features, a few records at a time, by the network in evaluation mode."""
        self._check_usable()
        check_shape(inputs, self.stream_info)
        inputs = inputs if inputs.dtype == np.uint8 else inputs.astype(np.float32, copy=False)
        modes = {module: module.training for module in self.network.modules()}
        step = max(1, PREDICTION_VALUES // max(1, int(np.prod(self.stream_info.shape))))
        step = min(step, self.network.records_at_once)
        answers = [np.zeros((0, width), np.float32)]
        try:
            self.network.eval()
            with torch.no_grad():
                for start in range(0, len(inputs), step):
                    batch = torch.from_numpy(np.array(inputs[start : start + step], order="C"))
                    answers.append(answer(batch.to(self.device)).float().cpu().numpy())
        finally:
            for module, mode in modes.items():
                module.training = mode
        return np.concatenate(answers)

    def reseed(self, seed: int) -> None:
        """See `Learner.reseed`. The seed is saved with the learner."""
        self.config = self.config.model_copy(update={"seed": seed})

    def widen(self, classes: Sequence[str]) -> None:
        """See `Learner.widen`. The head grows when records of the new classes are learnt."""
        known = self.stream_info.classes
        if tuple(classes[: len(known)]) != known:
            raise ExperienceUnfitError(
                f"the stream's classes do not begin with the {len(known)} that were learnt: a class id would "
                "change its meaning; restore the database that this checkpoint belongs to"
            )
        self.stream_info = replace(self.stream_info, classes=tuple(classes))

    def served_network(self) -> ServedNetwork:
        """See `Learner.served_network`. The copy is on the CPU."""
        self._check_usable()
        return self._served().detached()

    def save(self, directory: Path) -> None:
        """Write the whole state into `directory`, which must not exist yet, or be empty.

        Raises:
            StateError: the folder holds something, or the learner something that would not be saved.
        """
        write_state(self.state(), directory)

    def state(self) -> LearnerState:
        """The whole state; the tensors are the live ones, not copies.

        Raises:
            StateError: a plugin or the loop holds state that would be dropped.
        """
        self._check_usable()
        stateful = self._stateful_plugins()
        optimizer = self._template.optimizer
        tensors = {f"network/{name}": tensor for name, tensor in self.network.state_dict().items()}
        for name, tensor in optimizer_tensors(optimizer, self.network).items():
            tensors[f"optimizer/{name}"] = tensor
        for plugin in stateful:
            tensors |= {f"plugin/{plugin.name}/{key}": tensor for key, tensor in plugin.tensors().items()}
        facts = LearnerFacts(
            classes_by_row=tuple(self._classes_by_row),
            clock=dict(vars(self._template.clock)),
            optimizer=optimizer_facts(optimizer, self.network),
            plugins={plugin.name: plugin.facts() for plugin in stateful},
        )
        return LearnerState(
            strategy=self.config.name,
            config=self.config.model_dump(mode="json"),
            stream_info=self.stream_info,
            facts=facts.model_dump(mode="json"),
            tensors=tensors,
        )

    def restore(self, saved: LearnerState) -> None:
        """Become the learner whose state this is; for a learner just built of the same config.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: the state does not fit this strategy.
        """
        facts = LearnerFacts.model_validate(saved.facts)
        self.network.load_state_dict(_below(saved.tensors, "network/"))
        self.network.eval()
        self._classes_by_row = list(facts.classes_by_row)
        self._template.optimizer = restore_optimizer(
            self.config,
            self.network,
            tensors=_below(saved.tensors, "optimizer/"),
            groups=facts.optimizer,
        )
        # Without it, Avalanche takes the next experience for the first and clears the optimizer.
        self._template.optimized_param_id = dict(self.network.named_parameters())
        if set(facts.clock) != set(vars(self._template.clock)):
            raise ValueError("the counters are not those of this version")
        self._template.clock.__dict__.update(facts.clock)
        stateful = self._stateful_plugins()
        if {plugin.name for plugin in stateful} != set(facts.plugins):
            raise ValueError(f"the plugins are not {sorted(facts.plugins)}")
        for plugin in stateful:
            tensors = _below(saved.tensors, f"plugin/{plugin.name}/")
            plugin.restore(tensors, facts.plugins[plugin.name], self.network)

    def load_state(self, directory: Path) -> None:
        """See `LoadableLearner.load_state`."""
        saved = read_state(directory)
        try:
            self.restore(saved)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise StateError(
                f"{directory}: the state does not fit strategy {self.config.name!r}: {error}"
            ) from error

    def _served(self) -> ServedNetwork:
        """Shares the live network."""
        served = ServedNetwork(
            self.network, classes_by_row=self._classes_by_row, n_classes=len(self.stream_info.classes)
        )
        return served.to(self.device)

    def _stateful_plugins(self) -> list[StatefulPlugin]:
        """The strategy's plugins, once it is sure that all they hold is accounted for."""
        stateful: list[StatefulPlugin] = []
        for plugin in self._template.plugins:
            if isinstance(plugin, (Recorder, PeriodicEval, Clock, PassingPlugin)):
                continue
            if not isinstance(plugin, StatefulPlugin):
                raise StateError(
                    f"{type(plugin).__name__} does not say what its state is; it cannot be saved"
                )
            _refuse_unknown(type(plugin).__name__, set(vars(plugin)) - plugin.known)
            stateful.append(plugin)
        _refuse_unknown("the training loop", set(vars(self._template)) - self._attributes)
        if len({plugin.name for plugin in stateful}) != len(stateful):
            raise StateError("two plugins share a name; one would overwrite the state of the other")
        return stateful

    def _check_usable(self) -> None:
        if self._failed:
            raise StrategyError("this learner failed while it learnt; load its last saved state instead")

    def _bridge(self, experience: Experience) -> BridgedExperience:
        """The experience with dense labels, as an owned copy; classes that are new get the next rows."""
        found, first = np.unique(experience.labels, return_index=True)
        for label in found[np.argsort(first)].tolist():
            if label not in self._classes_by_row:
                self._classes_by_row.append(label)
        rows_by_class = np.zeros(len(self.stream_info.classes), np.int64)
        rows_by_class[self._classes_by_row] = np.arange(len(self._classes_by_row))
        dataset = TensorDataset(
            inputs=torch.from_numpy(np.array(experience.inputs, order="C")),
            rows=torch.from_numpy(rows_by_class[experience.labels]),
        )
        return BridgedExperience(
            dataset=dataset,
            current_experience=experience.index,
            head_rows=len(self._classes_by_row),
            classes_in_this_experience=rows_by_class[found].tolist(),
        )


def _with_training_plugins(
    config: StrategyConfig, plugins: Sequence[SupervisedPlugin]
) -> list[SupervisedPlugin]:
    parts = list(plugins)
    if config.early_stop is not None:
        parts.insert(0, EarlyStop(config.early_stop, share=config.validation_share))
    if config.schedule != "constant" or config.warmup:
        parts.append(Schedule(config.schedule, warmup=config.warmup))
    if config.clip_gradient is not None:
        parts.append(ClippedGradient(config.clip_gradient))
    return parts


def _compile_mode(config: StrategyConfig, device: torch.device) -> str | None:
    """The mode of torch.compile that a config asks for; graphs are a GPU's."""
    if not config.compile:
        return None
    return "reduce-overhead" if config.compile == "graphs" and device.type == "cuda" else "default"


def choose_device(wish: str) -> torch.device:
    """The device a config asks for.

    Raises:
        StrategyError: a GPU is asked for by name and there is none.
    """
    if wish == "cpu" or (wish == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise StrategyError("the config asks for device 'cuda' and there is no GPU here; use 'auto' or 'cpu'")
    return torch.device("cuda", torch.cuda.current_device())


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _refuse_unknown(holder: str, unknown: Iterable[str]) -> None:
    if unknown:
        raise StateError(f"{holder} holds state that saving would drop: {sorted(unknown)}")
