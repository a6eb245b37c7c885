"""Every module has a test file of its name, or one that imports it, or a line that says which covers it."""

from pathlib import Path

import pytest

from tests.support.layers import Tree, within
from tests.support.repository import ROOT

TREE = Tree(ROOT)

COVERED_BY = {
    "service.api.bodies": "tests/service/api/test_app.py",
    "service.api.parameters": "tests/service/api/test_app.py",
    "service.api.pipelines": "tests/service/api/test_app.py",
    "service.commands.declared_gate": "tests/service/gate/simulation/test_declared.py",
    "service.commands.gate": "tests/service/gate/simulation/test_rates.py",
    "service.commands.gate_questions": "tests/service/gate/simulation/test_questions.py",
    "service.commands.gate_tables": "tests/service/test_cli.py",
    "service.commands.holdouts": "tests/service/test_cli.py",
    "service.commands.outcomes": "tests/service/test_cli.py",
    "service.commands.streams": "tests/service/test_cli.py",
    "service.api.golden": "tests/service/ingest/test_golden.py",
    "service.gate.golden": "tests/service/gate/guards/test_golden.py",
    "service.updates.golden_plan": "tests/service/updates/test_golden_sets.py",
    "streams.recall": "tests/streams/test_ingest.py",
    "service.gate.holdouts": "tests/service/updates/test_audits.py",
    "service.gate.suspects": "tests/service/gate/test_poison.py",
    "service.state.migrations": "tests/service/state/test_database.py",
    "service.commands.reproduction": "tests/service/updates/test_reproduction.py",
    "service.training.origin": "tests/service/updates/test_reproduction.py",
    "service.updates.comparison": "tests/service/updates/test_update.py",
    "service.updates.input_checks": "tests/service/updates/test_reproduction.py",
    "service.updates.results": "tests/service/updates/test_update.py",
    "service.updates.verification": "tests/service/updates/test_reproduction.py",
    "strategies.learning.environment": "tests/service/updates/test_reproduction.py",
    "strategies.agem": "tests/contracts/test_learners.py",
    "strategies.averaging": "tests/contracts/test_learners.py",
    "strategies.der": "tests/contracts/test_learners.py",
    "strategies.ema": "tests/contracts/test_learners.py",
    "strategies.er_ace": "tests/contracts/test_learners.py",
    "strategies.er_aml": "tests/contracts/test_learners.py",
    "strategies.ewc": "tests/contracts/test_learners.py",
    "strategies.gdumb": "tests/contracts/test_learners.py",
    "strategies.gem": "tests/contracts/test_learners.py",
    "strategies.icarl": "tests/contracts/test_learners.py",
    "strategies.joint": "tests/contracts/test_learners.py",
    "strategies.learning.augmentation": "tests/strategies/learning/test_training.py",
    "strategies.mas": "tests/contracts/test_learners.py",
    "strategies.mir": "tests/contracts/test_learners.py",
    "strategies.plugins.distillation": "tests/strategies/plugins/test_prototypes.py",
    "strategies.plugins.importance": "tests/strategies/test_catalog.py",
    "strategies.plugins.weight_averages": "tests/strategies/test_catalog.py",
    "strategies.replay": "tests/contracts/test_learners.py",
    "strategies.scr": "tests/contracts/test_learners.py",
    "strategies.si": "tests/contracts/test_learners.py",
    "strategies.slda": "tests/contracts/test_learners.py",
    "streams.breaker": "tests/streams/test_ingest.py",
    "streams.joining": "tests/streams/test_ingest_late_labels.py",
    "streams.sources.files.cursor": "tests/streams/sources/test_files.py",
    "streams.sources.files.lines": "tests/streams/sources/test_files.py",
    "streams.sources.files.listing": "tests/streams/sources/test_files.py",
    "streams.sources.files.tables": "tests/streams/sources/test_files.py",
    "streams.sources.files.text": "tests/streams/sources/test_files.py",
    "streams.sources.redis.cursor": "tests/streams/sources/test_redis.py",
    "streams.state.experiences": "tests/streams/state/test_manifest.py",
    "streams.state.offsets": "tests/streams/state/test_manifest.py",
    "streams.state.waiting": "tests/streams/test_ingest_late_labels.py",
    "streams.store.files": "tests/streams/store/test_experiences.py",
    "streams.triggers.base": "tests/streams/triggers/test_catalog.py",
    "streams.watermark": "tests/streams/test_ingest_late_labels.py",
    "streams.wire.base": "tests/streams/wire/test_rules.py",
    "streams.wire.features": "tests/streams/wire/test_rows.py",
    "streams.wire.tables": "tests/streams/wire/test_arrow.py",
}
"""Module, or package with all that is in it, and the test file that runs it."""
BY_PROCESS = ("service.commands", "service.state.migrations")
"""Run by a command of the test, or found by Alembic in its folder: no import leads there."""


def imported(path: Path) -> frozenset[str]:
    """Dotted names that a test file imports."""
    return TREE.imports(".".join(path.relative_to(ROOT).with_suffix("").parts))


def has_a_test(module: str, named: frozenset[str]) -> bool:
    *folders, name = module.split(".")
    return module in named or ROOT.joinpath("tests", *folders, f"test_{name}.py").exists()


def covered(module: str) -> list[str]:
    return [name for name in COVERED_BY if within(module, name)]


def test_every_module_has_a_test_that_names_it_or_a_line_that_says_which_covers_it() -> None:
    named = frozenset[str]().union(*(imported(path) for path in (ROOT / "tests").rglob("test_*.py")))
    without = [module for module in TREE.modules if not has_a_test(module, named) and not covered(module)]
    assert without == []
    needless = [name for name in COVERED_BY if name in TREE.modules and has_a_test(name, named)]
    assert needless == [], "these have a test that names them: take their line out"


@pytest.mark.parametrize("name", COVERED_BY)
def test_what_is_said_to_cover_a_module_reaches_it(name: str) -> None:
    path = ROOT / COVERED_BY[name]
    assert path.exists()
    assert [module for module in TREE.modules if within(module, name)], f"{name} is no module any more"
    if any(within(name, place) for place in BY_PROCESS):
        return
    reached = set(imported(path) & set(TREE.modules)) | {
        module
        for support in imported(path)
        if within(support, "tests")
        for file in [ROOT.joinpath(*support.split(".")).with_suffix(".py")]
        if file.exists()
        for module in imported(file) & set(TREE.modules)
    }
    # The module that the file is named after, which it may run as a command.
    own = ".".join(path.relative_to(ROOT / "tests").with_suffix("").parts).replace("test_", "")
    reached |= {own} & set(TREE.modules)
    waiting = list(reached)
    while waiting:
        new = TREE.own_imports(waiting.pop()) - reached
        reached |= new
        waiting += new
    assert [module for module in reached if within(module, name)], f"{path.name} does not lead to {name}"
