"""Avalanche's regularising plugins, with their state named so that it can be saved."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from strategies.avalanche_parts import EWCPlugin, LwFPlugin, ParamData
from strategies.base import StateError


class OnlineEwc(EWCPlugin):  # type: ignore[misc]  # Avalanche ships no types
    """Avalanche's EWC in its online mode: one importance and one anchor a parameter, for ever.

    The importance pass looks at `fisher_records` records at most, spread evenly over the experience. As in
    Avalanche, it squares the gradient of a batch's mean loss, not of each record's.
    """

    name = "ewc"
    known = frozenset(
        {
            "ewc_lambda",
            "mode",
            "decay_factor",
            "keep_importance_data",
            "fisher_records",
            "saved_params",
            "importances",
        }
    )

    def __init__(self, *, strength: float, decay: float, fisher_records: int) -> None:
        super().__init__(ewc_lambda=strength, mode="online", decay_factor=decay)
        self.fisher_records = fisher_records

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        """Fit importances and anchors to a head that has grown; new rows matter nothing yet.

        Avalanche would do so itself, by a form of indexing that torch is about to drop.
        """
        parameters = dict(strategy.model.named_parameters())
        for kept in (*self.importances.values(), *self.saved_params.values()):
            for name, old in kept.items():
                added = len(parameters[name]) - len(old.data)
                padding = old.data.new_zeros(added, *old.data.shape[1:])
                kept[name] = _param_data(name, torch.cat((old.data, padding)))

    def compute_importances(
        self,
        model: nn.Module,
        criterion: Any,
        optimizer: Any,
        dataset: Any,
        device: torch.device,
        batch_size: int,
        num_workers: int = 0,
    ) -> Any:
        """Avalanche's pass, over a bounded part of the dataset."""
        part = dataset.spread(self.fisher_records)
        return super().compute_importances(model, criterion, optimizer, part, device, batch_size, num_workers)

    def tensors(self) -> dict[str, Tensor]:
        """Importance and anchor of each parameter.

        Raises:
            StateError: the plugin holds more than one of each, which online mode never does.
        """
        if max(len(self.importances), len(self.saved_params)) > 1:
            raise StateError("online EWC holds importances of several experiences; saving would drop some")
        found: dict[str, Tensor] = {}
        for kind, kept in (("importance", self.importances), ("anchor", self.saved_params)):
            for parameters in kept.values():
                found |= {f"{kind}.{name}": value.data for name, value in parameters.items()}
        return found

    def facts(self) -> dict[str, JsonValue]:
        """The clock's count at which the importances were taken; Avalanche finds them by it."""
        return {"taken_at": next(iter(self.importances), None)}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], network: nn.Module) -> None:
        if facts["taken_at"] is None:
            return
        for kind, kept in (("importance", self.importances), ("anchor", self.saved_params)):
            for name, parameter in network.named_parameters():
                value = tensors[f"{kind}.{name}"].to(parameter.device)
                kept[facts["taken_at"]][name] = _param_data(name, value)


class Distillation(LwFPlugin):  # type: ignore[misc]  # Avalanche ships no types
    """Avalanche's LwF with the teacher in evaluation mode, so that its own statistics cannot drift."""

    name = "lwf"
    known = frozenset({"lwf"})
    known_within = frozenset({"alpha", "temperature", "prev_model", "expcount", "prev_classes_by_task"})

    def __init__(self, *, alpha: float, temperature: float) -> None:
        super().__init__(alpha=alpha, temperature=temperature)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        super().after_training_exp(strategy, **kwargs)
        self.lwf.prev_model.eval().requires_grad_(False)

    def tensors(self) -> dict[str, Tensor]:
        """The teacher's tensors; empty before the first experience.

        Raises:
            StateError: Avalanche's object holds something that is not accounted for.
        """
        unknown = set(vars(self.lwf)) - self.known_within
        if unknown:
            raise StateError(f"LwF holds state that saving would drop: {sorted(unknown)}")
        return {} if self.lwf.prev_model is None else dict(self.lwf.prev_model.state_dict())

    def facts(self) -> dict[str, JsonValue]:
        """Experiences counted, and the head rows the teacher knows."""
        rows: list[JsonValue] = [int(row) for row in sorted(self.lwf.prev_classes_by_task.get(0, ()))]
        return {"counted": self.lwf.expcount, "rows": rows}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], network: nn.Module) -> None:
        self.lwf.expcount = facts["counted"]
        if not tensors:
            return
        teacher = copy.deepcopy(network)
        teacher.load_state_dict(dict(tensors))
        self.lwf.prev_model = teacher.eval().requires_grad_(False)
        self.lwf.prev_classes_by_task[0] = set(facts["rows"])


def _param_data(name: str, value: Tensor) -> ParamData:
    return ParamData(name, init_tensor=value, device=value.device)
