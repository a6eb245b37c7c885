"""Imports run downhill: every module has a rank, and each heavy library has one home."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Lowest first. A module may import, at its top or inside a function, only what stands before it.
RANKS = [
    "streams.base",
    "streams.hashing",
    "streams.records",
    "streams.wire.base",
    "streams.wire.rules",
    "streams.wire.features",
    "streams.wire.rows",
    "streams.wire.tables",
    "streams.wire.csv",
    "streams.wire.arrow_sizes",
    "streams.wire.arrow",
    "streams.wire.decode",
    "streams.split",
    "streams.state.tables",
    "streams.state.status",
    "streams.state.dead_letters",
    "streams.watermark",
    "streams.joining",
    "streams.state.experiences",
    "streams.state.offsets",
    "streams.state.waiting",
    "streams.state.manifest",
    "streams.store.objects",
    "streams.store.files",
    "streams.store.experiences",
    "streams.shift",
    "streams.triggers.detectors",
    "streams.triggers.event_time",
    "streams.triggers.base",
    "streams.triggers.records",
    "streams.triggers.shift",
    "streams.triggers.performance",
    "streams.triggers.cost",
    "streams.triggers.any_of",
    "streams.triggers.catalog",
    "streams.breaker",
    "streams.duplicates",
    "streams.pending",
    "streams.sources.pushed",
    "streams.sources.merged",
    "streams.sources.mnist",
    "streams.sources.datasets",
    "streams.sources.kafka.config",
    "streams.sources.kafka.topic",
    "streams.sources.kafka.source",
    "streams.sources.redis_cursor",
    "streams.sources.redis",
    "streams.sources.files.cursor",
    "streams.sources.files.text",
    "streams.sources.files.lines",
    "streams.sources.files.tables",
    "streams.sources.files.config",
    "streams.sources.files.source",
    "streams.catalog",
    "streams.ingest",
    "strategies.augment_choice",
    "strategies.network_choice",
    "strategies.base",
    "strategies.learning.checks",
    "strategies.learning.batches",
    "strategies.learning.randomness",
    "strategies.learning.bodies",
    "strategies.learning.networks",
    "strategies.learning.record_gradients",
    "strategies.learning.augmentation",
    "strategies.learning.avalanche",
    "strategies.learning.optimizers",
    "strategies.learning.state",
    "strategies.plugins.buffers",
    "strategies.plugins.rehearsal",
    "strategies.plugins.metric_rehearsal",
    "strategies.plugins.importance",
    "strategies.plugins.gradient_rehearsal",
    "strategies.plugins.distillation",
    "strategies.plugins.prototypes",
    "strategies.plugins.discriminant",
    "strategies.learning.training_plugins",
    "strategies.plugins.weight_averages",
    "strategies.learning.bridge",
    "strategies.learning.robustness",
    "strategies.learning.timing",
    "strategies.learning.learner",
    "strategies.learning.surroundings",
    "strategies.naive",
    "strategies.replay",
    "strategies.er_ace",
    "strategies.er_aml",
    "strategies.mir",
    "strategies.der",
    "strategies.agem",
    "strategies.gem",
    "strategies.gdumb",
    "strategies.icarl",
    "strategies.scr",
    "strategies.slda",
    "strategies.si",
    "strategies.mas",
    "strategies.ewc",
    "strategies.lwf",
    "strategies.averaging",
    "strategies.ema",
    "strategies.combined",
    "strategies.cumulative",
    "strategies.joint",
    "strategies.catalog",
    "service.errors",
    "service.settings",
    "service.differences",
    "service.logs",
    "service.gate.base",
    "service.gate.schema",
    "service.gate.stats",
    "service.gate.sentences",
    "service.gate.comparisons",
    "service.gate.screen",
    "service.gate.obsolete",
    "service.gate.measures",
    "service.gate.suspects",
    "service.gate.guards.batch",
    "service.gate.guards.forgetting",
    "service.gate.guards.groups",
    "service.gate.guards.quality",
    "service.gate.guards.robustness",
    "service.gate.guards.cost",
    "service.gate.guards.seeds",
    "service.gate.guards.budget",
    "service.gate.decide",
    "service.gate.simulation.rates",
    "service.gate.simulation.lifetimes",
    "service.gate.simulation.planning",
    "service.pipelines",
    "service.training.answers",
    "service.state.database",
    "service.state.migrations.env",
    "service.state.migrations.versions.v0001_first",
    "service.state.migrations.versions.v0002_streams",
    "service.state.migrations.versions.v0003_looks",
    "service.state.migrations.versions.v0004_details",
    "service.state.migrations.versions.v0005_margins",
    "service.state.migrations.versions.v0008_inputs",
    "service.ingest.sources",
    "service.storage",
    "service.state.presence",
    "service.state.pipelines",
    "service.state.backlog",
    "service.state.jobs",
    "service.state.inputs",
    "service.state.ledger",
    "service.state.champions",
    "service.state.freezes",
    "service.state.holdouts",
    "service.updates.decisions",
    "service.ingest.retention",
    "service.ingest.bodies",
    "service.ingest.push",
    "service.ingest.status",
    "service.ingest.replay",
    "service.evidence",
    "service.registry",
    "service.training.inspection",
    "service.training.tasks",
    "service.training.checkpoint",
    "service.training.origin",
    "service.training.trainer",
    "service.training.repeats",
    "service.training.pool",
    "service.updates.inputs",
    "service.updates.results",
    "service.updates.plan",
    "service.updates.comparison",
    "service.updates.input_checks",
    "service.updates.verification",
    "service.updates.reproduction",
    "service.updates.publication",
    "service.updates.update",
    "service.updates.dispatcher",
    "service.ingest.champion_answers",
    "service.ingest.ingester",
    "service.api.problems",
    "service.api.limits",
    "service.api.parameters",
    "service.api.bodies",
    "service.api.pipelines",
    "service.api.holdouts",
    "service.api.records",
    "service.api.streams",
    "service.api.updates",
    "service.api.reference",
    "service.api.app",
    "service.client",
    "service.commands.mlflow_pages",
    "service.commands.up",
    "service.commands.demo",
    "service.commands.pipelines",
    "service.commands.reproduction",
    "service.commands.streams",
    "service.commands.holdouts",
    "service.commands.gate_tables",
    "service.commands.gate",
    "service.cli",
]

# A library, and the only places that may import it.
HOMES = {
    "avalanche": ("strategies.",),
    "mlflow": ("service.registry",),
    "ray": ("service.training.pool",),
    "fastapi": ("service.api.",),
    "torch": (
        "strategies.",
        "service.training.trainer",
        "service.training.pool",
        "service.registry",
        "service.ingest.champion_answers",
    ),
    "confluent_kafka": ("streams.sources.kafka.topic",),
    "redis": ("streams.sources.redis",),
    "cleanlab": ("service.training.inspection",),
}

# Reached by name and late, where the arrow would otherwise run uphill: the catalog line names the builder.
GATE_MAY_IMPORT = {
    "numpy",
    "scipy",
    "pydantic",
    "service",
    "collections",
    "dataclasses",
    "functools",
    "math",
    "typing",
}


def modules() -> list[str]:
    found = []
    for package in ("streams", "strategies", "service"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[-1] != "__init__":
                found.append(".".join(parts))
    return sorted(found)


def path_of(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


def imports(module: str) -> set[str]:
    """Dotted names that a module imports, anywhere in it; type-checking blocks are left out."""
    tree = ast.parse(path_of(module).read_text())
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def test_every_module_has_one_rank() -> None:
    assert sorted(RANKS) == modules()


@pytest.mark.parametrize("module", RANKS)
def test_imports_run_downhill(module: str) -> None:
    own = {name for name in imports(module) if name in RANKS}
    uphill = {name for name in own if RANKS.index(name) >= RANKS.index(module)}
    assert not uphill, f"{module} imports {sorted(uphill)}, which rank above it"


@pytest.mark.parametrize("library", HOMES)
def test_each_heavy_library_has_one_home(library: str) -> None:
    guests = [
        module
        for module in modules()
        if any(name.split(".")[0] == library for name in imports(module))
        and not module.startswith(HOMES[library])
    ]
    assert not guests, f"{library} is imported by {guests}; its home is {HOMES[library]}"


@pytest.mark.parametrize("module", [name for name in RANKS if name.startswith("service.gate.")])
def test_the_gate_is_pure(module: str) -> None:
    assert {name.split(".")[0] for name in imports(module)} <= GATE_MAY_IMPORT
    service = {name for name in imports(module) if name in RANKS}
    assert all(name.startswith("service.gate.") for name in service)


def test_every_package_is_a_docstring() -> None:
    for path in ROOT.glob("s*/**/__init__.py"):
        body = ast.parse(path.read_text()).body
        assert len(body) == 1, path
        assert isinstance(body[0], ast.Expr), path


@pytest.mark.parametrize(
    ("entry", "forbidden"),
    [
        ("service.api.app", ("torch", "ray", "mlflow", "avalanche", "sklearn", "scipy")),
        ("service.ingest.ingester", ("torch", "ray", "mlflow", "avalanche", "sklearn")),
        ("service.cli", ("torch", "ray", "mlflow", "fastapi", "numpy", "sqlalchemy")),
        ("strategies.catalog", ("torch", "ray", "mlflow", "avalanche", "sklearn")),
        ("streams.catalog", ("torch", "ray", "mlflow", "avalanche", "sklearn", "redis", "confluent_kafka")),
    ],
)
def test_light_processes_stay_light(entry: str, forbidden: tuple[str, ...]) -> None:
    script = f"import sys, {entry}; print([name for name in {forbidden!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
