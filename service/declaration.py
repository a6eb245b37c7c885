"""What a declaration means for its gate: the plan in one line, and the refusal of a gate without hope."""

from functools import lru_cache
from typing import TYPE_CHECKING

from service.errors import PipelineHopelessError
from service.gate.base import GateConfig
from service.pipelines import PipelineSpec

if TYPE_CHECKING:
    from service.gate.simulation.declared import DeclaredPlan


def gate_plan(spec: PipelineSpec) -> "DeclaredPlan":
    """What the gate of a pipeline means for the experiences that its trigger declares."""
    fewest, most = spec.trigger.declared_records
    return _plan(spec.gate.model_dump_json(), spec.split.gate, spec.split.audit, fewest, most)


def require_hope(spec: PipelineSpec) -> None:
    """Refuse a gate that would ask about most harmless updates, unless it is declared with `accept`.

    Raises:
        PipelineHopelessError: it says why, and what would help.
    """
    if spec.gate.accept:
        return
    plan = gate_plan(spec)
    if plan.hopeless is not None:
        raise PipelineHopelessError(
            f"{plan.hopeless}.",
            fix=f"{plan.remedy}; gate: {{accept: true}} declares it as it is.",
            members={"errors": [{"where": "gate", "problem": plan.hopeless}]},
        )


@lru_cache(maxsize=256)
def _plan(gate: str, judged: float, sealed: float, fewest: int, most: int | None) -> "DeclaredPlan":
    # Not at the top of the module: the API starts without scipy, which takes a second to load.
    from service.gate.simulation.declared import declared_plan

    config = GateConfig.model_validate_json(gate)
    return declared_plan(config, gate=judged, audit=sealed, fewest=fewest, most=most)
