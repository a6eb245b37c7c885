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
    "streams.wire_base",
    "streams.wire_rules",
    "streams.wire_features",
    "streams.wire_rows",
    "streams.wire_tables",
    "streams.wire_csv",
    "streams.arrow_sizes",
    "streams.wire_arrow",
    "streams.wire",
    "streams.split",
    "streams.tables",
    "streams.states",
    "streams.letters",
    "streams.watermark",
    "streams.joining",
    "streams.experience_rows",
    "streams.offsets",
    "streams.waiting_parts",
    "streams.manifest",
    "streams.objects",
    "streams.experience_files",
    "streams.experiences",
    "streams.shift",
    "streams.detectors",
    "streams.event_time",
    "streams.trigger_base",
    "streams.trigger_records",
    "streams.trigger_shift",
    "streams.trigger_performance",
    "streams.trigger_cost",
    "streams.trigger_any",
    "streams.triggers",
    "streams.breaker",
    "streams.duplicates",
    "streams.pending",
    "streams.pushed",
    "streams.merged",
    "streams.mnist",
    "streams.datasets",
    "streams.kafka_settings",
    "streams.kafka_topic",
    "streams.kafka",
    "streams.redis_places",
    "streams.redis",
    "streams.file_places",
    "streams.file_texts",
    "streams.file_readers",
    "streams.file_tables",
    "streams.files_config",
    "streams.files",
    "streams.catalog",
    "streams.ingest",
    "strategies.augment_choice",
    "strategies.network_choice",
    "strategies.base",
    "strategies.checks",
    "strategies.batches",
    "strategies.randomness",
    "strategies.bodies",
    "strategies.networks",
    "strategies.record_gradients",
    "strategies.augmentation",
    "strategies.avalanche_parts",
    "strategies.optimizers",
    "strategies.state",
    "strategies.buffers",
    "strategies.rehearsal",
    "strategies.rehearsal_by_metric",
    "strategies.importance",
    "strategies.rehearsal_by_gradient",
    "strategies.distillation",
    "strategies.prototypes",
    "strategies.discriminant",
    "strategies.training_parts",
    "strategies.weight_averages",
    "strategies.bridge",
    "strategies.robustness",
    "strategies.timing",
    "strategies.learner",
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
    "service.logs",
    "service.gate.base",
    "service.gate.form",
    "service.gate.stats",
    "service.gate.sentences",
    "service.gate.comparisons",
    "service.gate.screen",
    "service.gate.obsolete",
    "service.gate.measures",
    "service.gate.suspects",
    "service.gate.arrivals",
    "service.gate.forgetting",
    "service.gate.groups",
    "service.gate.quality",
    "service.gate.robustness",
    "service.gate.running",
    "service.gate.seeds",
    "service.gate.budget",
    "service.gate.decide",
    "service.gate.simulate",
    "service.gate.lives",
    "service.gate.planning",
    "service.pipelines",
    "service.answering",
    "service.database",
    "service.migrations.env",
    "service.migrations.versions.v0001_first",
    "service.migrations.versions.v0002_streams",
    "service.migrations.versions.v0003_looks",
    "service.migrations.versions.v0004_details",
    "service.migrations.versions.v0005_margins",
    "service.sources",
    "service.storage",
    "service.roles",
    "service.specs",
    "service.backlog",
    "service.jobs",
    "service.ledger",
    "service.champions",
    "service.freezes",
    "service.holdouts",
    "service.decisions",
    "service.retention",
    "service.bodies",
    "service.intake",
    "service.streaming",
    "service.replays",
    "service.evidence",
    "service.registry",
    "service.inspection",
    "service.tasks",
    "service.trainer",
    "service.repeats",
    "service.pool",
    "service.plan",
    "service.publication",
    "service.update",
    "service.dispatcher",
    "service.judging",
    "service.ingester",
    "service.api.problems",
    "service.api.doors",
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
    "service.pages",
    "service.up",
    "service.demo",
    "service.commands",
    "service.stream_commands",
    "service.holdout_commands",
    "service.gate_tables",
    "service.gate_commands",
    "service.cli",
]

# A library, and the only places that may import it.
HOMES = {
    "avalanche": ("strategies.",),
    "mlflow": ("service.registry",),
    "ray": ("service.pool",),
    "fastapi": ("service.api.",),
    "torch": ("strategies.", "service.trainer", "service.pool", "service.registry", "service.judging"),
    "confluent_kafka": ("streams.kafka_topic",),
    "redis": ("streams.redis",),
    "cleanlab": ("service.inspection",),
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
        ("service.ingester", ("torch", "ray", "mlflow", "avalanche", "sklearn")),
        ("service.cli", ("torch", "ray", "mlflow", "fastapi", "numpy", "sqlalchemy")),
        ("strategies.catalog", ("torch", "ray", "mlflow", "avalanche", "sklearn")),
        ("streams.catalog", ("torch", "ray", "mlflow", "avalanche", "sklearn", "redis", "confluent_kafka")),
    ],
)
def test_light_processes_stay_light(entry: str, forbidden: tuple[str, ...]) -> None:
    script = f"import sys, {entry}; print([name for name in {forbidden!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
