"""Avalanche's training loop over whole tensors, with a head that grows by rows.

Avalanche's loop and its plugins do the learning, one experience at a time. Ours are the loading of batches,
the growth of the head, and the choice of what a step computes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from strategies.learning.augmentation import Augmentation
from strategies.learning.avalanche import SupervisedPlugin, SupervisedTemplate
from strategies.learning.batches import Records, TensorBatches, ahead
from strategies.learning.networks import Network
from strategies.learning.plugin_roles import ForwardPlugin, LossPlugin
from strategies.learning.recorder import Recorder

RESIDENT_BYTES = 2**31
"""On a CPU, records are prepared ahead of the steps up to this size; on a GPU, up to half of what is free."""
PREPARED_VALUES = 2**22
"""Feature values that are prepared at a time, at most."""
CACHED_VALUES = 2**17
"""The same where they are only scaled on a CPU: what is worked on stays in its cache."""


@dataclass(frozen=True)
class Options:
    """How a step is computed, for every strategy."""

    augmentation: Augmentation | None = None
    bfloat16: bool = False
    """The forward pass in bfloat16; weights and their steps stay float32."""
    channels_last: bool = False
    compile_mode: str | None = None
    """A mode of torch.compile; None: steps are not compiled."""


class Template(SupervisedTemplate):  # type: ignore[misc]  # Avalanche ships no types
    """Avalanche's training loop over whole tensors and over a head that grows by rows.

    Each step calls the plugins' hooks as Avalanche's own loop does, and skips hooks that no plugin has.
    A plugin with a `criterion` sets the loss of a step, one with a `forward` sets the logits. Where no weight
    is trained, a step only computes the loss of its batch.
    """

    def __init__(self, *, evaluator: Recorder, options: Options, **settings: Any) -> None:
        super().__init__(evaluator=evaluator, **settings)
        self.options = options
        self.generator = torch.Generator()
        """On the CPU; replaced before every experience."""
        self.rows_before = 0
        """Rows of the head before this experience."""
        self.answer: Callable[[Tensor], Tensor] = self.model.answer
        self._whole_step = 0
        """Records of a step that is compiled; others are few, or each of another size."""
        if options.channels_last:
            self.model.to(memory_format=torch.channels_last)
        if options.compile_mode:
            # Not the head: each growth would compile it again, and torch gives up after a few.
            # For one size: kernels for any size take up to three times as long in batch normalisation.
            features: Any = torch.compile(self.model.features, dynamic=False, mode=options.compile_mode)
            self.answer = lambda prepared: self.model.head(
                features(prepared) if len(prepared) == self._whole_step else self.model.features(prepared)
            )

    @property
    def mb_task_id(self) -> Tensor:
        return torch.zeros_like(self.mb_y)

    def records(self, inputs: Tensor, rows: Tensor) -> Records:
        """Raw inputs (n, *shape) with their dense labels, to be cut into batches.

        They are prepared here and now where that fits and nothing varies them, else batch by batch. They are
        on the device where they fit, else each batch goes there.
        """
        rows = rows.to(self.device)
        spare = self._spare_bytes()
        if self.options.augmentation is None and self._prepared_bytes(inputs) <= spare:
            prepared = self._prepare_all(inputs)
            last = self.options.channels_last and prepared.dim() == 4
            if last:
                prepared = prepared.permute(0, 2, 3, 1).contiguous()
            return Records(prepared, rows, channels_last=last)
        if inputs.nbytes <= spare:
            inputs = inputs.to(self.device)
        return Records(inputs, rows, self._prepare_batch)

    @torch.no_grad()
    def _prepare_all(self, inputs: Tensor) -> Tensor:
        values = PREPARED_VALUES if self.device.type == "cuda" or self.model.frozen else CACHED_VALUES
        step = max(1, min(values // max(1, inputs[0].numel()), self.model.records_at_once))
        whole: Tensor | None = None
        for start in range(0, len(inputs), step):
            part = self.model.prepare(inputs[start : start + step].to(self.device))
            if whole is None:
                whole = part.new_empty(len(inputs), *part.shape[1:])
            whole[start : start + step] = part
        assert whole is not None, "an experience is never empty"
        return whole

    def unvaried(self, records: Records) -> Records:
        """The same records without augmentation."""
        if self.options.augmentation is None:
            return records
        return replace(records, prepare=partial(self._prepare_batch, varied=False))

    @torch.no_grad()
    def _prepare_batch(self, inputs: Tensor, *, varied: bool = True) -> Tensor:
        if inputs.device != self.device:
            # From pinned memory, the copy waits for no step.
            inputs = inputs.pin_memory().to(self.device, non_blocking=True)
        vary = self.options.augmentation if varied else None
        if vary is None:
            prepared: Tensor = self.model.prepare(inputs)
        else:
            prepared = vary.of_scaled(self.model.prepare(vary.of_raw(inputs)))
        if self.options.channels_last and prepared.dim() == 4:
            return prepared.contiguous(memory_format=torch.channels_last)
        return prepared

    def _prepared_bytes(self, inputs: Tensor) -> int:
        values = self.model.head.width if self.model.frozen else inputs[0].numel()
        return 4 * values * len(inputs)

    def _spare_bytes(self) -> int:
        if self.device.type != "cuda":
            return RESIDENT_BYTES
        free, _ = torch.cuda.mem_get_info(self.device)
        return free // 2

    def make_train_dataloader(self, **_: Any) -> None:
        data = self.adapted_dataset
        self.dataloader = self.batches(self.records(data.inputs, data.rows))

    def batches(self, records: Records) -> TensorBatches:
        return TensorBatches(records, batch_size=self.train_mb_size, generator=self.generator)

    def model_adaptation(self, model: Network | None = None) -> nn.Module:
        network: Network = self.model if model is None else model
        self.rows_before = network.head.rows
        network.head.grow(self.experience.head_rows, self.generator)
        return network.to(self.device)

    def restart(self) -> None:
        """Draw new weights for the network, and clear the state of the optimizer."""
        self.model.forget(self.generator)
        self.optimizer.state.clear()

    def make_optimizer(self, **settings: Any) -> None:
        """Bind the optimizer to weights that were replaced; a grown head's old rows keep their moments.

        Avalanche drops all the state of a weight that has grown.
        """
        before = {
            name: dict(self.optimizer.state.get(old, {}))
            for name, old in (self.optimized_param_id or {}).items()
        }
        super().make_optimizer(**settings)
        for name, weight in self.model.named_parameters():
            if before.get(name) and not self.optimizer.state.get(weight):
                self.optimizer.state[weight] = {
                    key: _with_rows(value, weight) for key, value in before[name].items()
                }

    def forward(self) -> Tensor:
        if not self.options.bfloat16:
            return self.answer(self.mb_x)
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.answer(self.mb_x)
        return logits.float()

    def training_epoch(self, **_: Any) -> None:
        functions = self._step_functions()
        self._whole_step = self.dataloader.whole_step
        resident = all(records.resident for records in self.dataloader.sources)
        for batch in self.dataloader if resident else ahead(self.dataloader, self.device):
            if self._stop_training:
                break
            self.mbatch = batch
            for function in functions:
                function(self)

    def _step_functions(self) -> list[Callable[["Template"], None]]:
        """The functions of one training step in Avalanche's order: its own, and the hooks of the plugins."""
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        forward, criterion = self._forward_of_plugins(), self._criterion_of_plugins()

        def clear(_: Template) -> None:
            for weight in weights:
                weight.grad = None

        def answer(step: Template) -> None:
            step.mb_output = forward()

        def judge(step: Template) -> None:
            step.loss = criterion()

        step = [
            *self._calls("before_backward"),
            Template.backward,
            *self._calls("after_backward"),
            *self._calls("before_update"),
            Template.optimizer_step,
            *self._calls("after_update"),
        ]
        return [
            *self._calls("before_training_iteration"),
            clear,
            *self._calls("before_forward"),
            answer,
            *self._calls("after_forward"),
            judge,
            *(step if any(weight.requires_grad for weight in weights) else ()),
            *self._calls("after_training_iteration"),
        ]

    def _calls(self, hook: str) -> list[Callable[["Template"], None]]:
        """The methods of the plugins for this hook, in their order."""
        nothing = getattr(SupervisedPlugin, hook)
        return [
            getattr(plugin, hook)
            for plugin in self.plugins
            if getattr(type(plugin), hook, nothing) is not nothing
        ]

    def _forward_of_plugins(self) -> Callable[[], Tensor]:
        for plugin in self.plugins:
            if isinstance(plugin, ForwardPlugin):
                return partial(plugin.forward, self)
        return self.forward

    def _criterion_of_plugins(self) -> Callable[[], Tensor]:
        for plugin in self.plugins:
            if isinstance(plugin, LossPlugin):
                return partial(plugin.criterion, self)
        own: Callable[[], Tensor] = self.criterion
        return own


def _with_rows(moment: Tensor, weight: Tensor) -> Tensor:
    """The moment with zeros for the rows that its weight has gained; a counter stays as it is."""
    gained = len(weight) - len(moment) if moment.dim() else 0
    if not gained:
        return moment
    return torch.cat((moment, moment.new_zeros(gained, *moment.shape[1:])))
