"""Imports run downhill: which package may import which, which are strangers, and where heavy things live.

A new module gets its name in RANKS (in a package) or in FLOORS (beside the packages). A failure says which
wall was crossed and why the wall stands.
"""

import ast
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support import layers
from tests.support.layers import Crossing, Floor, Home, Limit, Tree
from tests.support.repository import ROOT

TREE = Tree(ROOT)

FLOORS = (
    Floor(("streams.allowed",), "what an installation allows is known before anything is declared"),
    Floor(
        ("streams.base", "streams.hashing", "streams.shift", "streams.watermark"),
        "the words and the arithmetic of the data side depend on nothing of ours",
    ),
    Floor(("streams.records",), "records are arrays; they do not know how they came"),
    Floor(
        (
            "streams.wire",
            "streams.split",
            "streams.joining",
            "streams.triggers",
            "streams.breaker",
            "streams.duplicates",
        ),
        "each of these asks one question about records, and can be read and tested without the others",
    ),
    Floor(
        ("streams.held_out",),
        "which records are never trained on is a question of ids, asked before they are split",
    ),
    Floor(
        ("streams.pending", "streams.store", "streams.state"),
        "bytes do not know rows and rows do not know bytes: their order of writes is ingest's alone",
    ),
    Floor(("streams.sources",), "a source reads and decodes; it neither cuts nor stores experiences"),
    Floor(
        ("streams.late_labels", "streams.commits", "streams.recall"),
        "joining late labels, fencing commits and recalling ids are questions that ingest puts together",
    ),
    Floor(("streams.catalog",), "the catalog names the sources, and is named by whoever declares one"),
    Floor(
        ("streams.ingest",), "the ingest loop is the one place that puts all parts of the data side together"
    ),
    Floor(
        ("strategies.augment_choice", "strategies.network_choice"),
        "what a pipeline may declare is validated without torch",
    ),
    Floor(
        ("strategies.errors", "strategies.stream_info", "strategies.processors"),
        "errors and shapes are words that all of strategies use",
    ),
    Floor(("strategies.state_document",), "what a saved state is can be read without torch"),
    Floor(("strategies.base",), "the contract of a strategy does not know how one learns"),
    Floor(("strategies.learning",), "the learner works for every strategy, so it knows none of them"),
    Floor(("strategies.plugins",), "a plugin serves several strategies, so it knows none of them"),
    Floor(
        (
            "strategies.averaging",
            "strategies.cumulative",
            "strategies.ema",
            "strategies.ewc",
            "strategies.lwf",
            "strategies.mas",
            "strategies.naive",
            "strategies.replay",
            "strategies.si",
            "strategies.slda",
        ),
        "a strategy is one file that can be checked against its paper",
    ),
    Floor(
        (
            "strategies.agem",
            "strategies.der",
            "strategies.er_ace",
            "strategies.er_aml",
            "strategies.gdumb",
            "strategies.gem",
            "strategies.icarl",
            "strategies.joint",
            "strategies.mir",
            "strategies.scr",
        ),
        "a strategy that builds on another's configuration is still one file, and knows no third",
    ),
    Floor(("strategies.combined",), "the combination knows its members; they do not know it"),
    Floor(
        ("strategies.catalog",),
        "the catalog names the strategies, so a strategy that read it would be a ring",
    ),
    Floor(
        ("service.errors", "service.differences", "service.yaml_text"),
        "every part may raise a named error, read a text, or say where documents differ",
    ),
    Floor(
        ("service.settings", "service.client", "service.incidents"),
        "a client needs an address, not the settings of a server",
    ),
    Floor(
        ("service.exported", "service.loops"),
        "whoever reads an exported network, or runs a loop, does it here",
    ),
    Floor(
        ("service.gate", "service.logs", "service.home"),
        "a verdict is a pure function of its evidence, to be recomputed by anybody",
    ),
    Floor(
        ("service.pipelines", "service.storage", "service.registry", "service.evidence"),
        "each wraps one outside thing: a declaration, a store, MLflow, a report",
    ),
    Floor(
        ("service.declaration",),
        "whether a declaration is accepted depends on its text alone, on nothing that is stored or runs",
    ),
    Floor(
        ("service.state", "service.training"),
        "training runs on Ray nodes without a database, and rows outlive any trainer",
    ),
    Floor(
        ("service.ingest", "service.updates"),
        "records come in and updates go out by rows alone, so that each role can be down without the other",
    ),
    Floor(("service.api",), "HTTP is one way in; what it does can be done without it"),
    Floor(("service.commands",), "a command is a caller like any other"),
    Floor(("service.cli",), "the command line starts everything, so nothing starts it"),
)

RANKS: Mapping[str, str] = {
    "streams.wire": "base rules features rows tables csv arrow_sizes arrow decode",
    "streams.triggers": """
        detectors event_time base bursts records shift performance cost any_of catalog
    """,
    "streams.store": "objects files experiences",
    "streams.state": "tables status dead_letters experiences offsets waiting pushed manifest",
    "streams.sources": """
        pushed merged mnist datasets kafka.config kafka.topic kafka.source redis.config redis.cursor
        redis.source
        files.cursor files.listing files.text files.lines files.tables files.config files.source
    """,
    "strategies.learning": """
        checks batches randomness bodies networks record_gradients augmentation
        avalanche optimizers state training_plugins plugin_roles dataset recorder bridge robustness
        timing learner environment
    """,
    "strategies.plugins": """
        buffers rehearsal metric_rehearsal importance gradient_rehearsal distillation prototypes
        discriminant weight_averages
    """,
    "service.gate": """
        pairs golden batch_evidence presets config base schema stats sizes proportions sentences comparisons
        screen obsolete measures holdouts suspects blocks guards.batch guards.judgements guards.retention
        guards.learning guards.classes guards.golden guards.groups guards.quality guards.robustness
        guards.cost guards.seeds
        guards.budget disputes decide
        simulation.rule simulation.rates simulation.lifetimes simulation.planning simulation.questions
        simulation.asked_table simulation.asked simulation.declared
    """,
    "service.state": """
        database migrations.env migrations.versions.v0001_first migrations.versions.v0002_streams
        migrations.versions.v0003_looks migrations.versions.v0004_details
        migrations.versions.v0005_margins migrations.versions.v0006_words
        migrations.versions.v0007_words migrations.versions.v0008_inputs
        migrations.versions.v0009_causes migrations.versions.v0010_golden
        migrations.versions.v0011_disputes migrations.versions.v0012_anchors migrations.versions.v0013_pushed
        migrations.versions.v0014_troubles presence
        pipelines backlog jobs inputs outcomes ledger endings claims
        golden champions freezes holdouts
    """,
    "service.training": "answers inspection tasks checkpoint origin screening served trainer repeats pool",
    "service.ingest": """
        sources retention bodies push golden relabel status replay champion_answers pipeline ingester
    """,
    "service.updates": """
        golden_sets requests inputs results past decisions golden_plan plan comparison input_checks
        verification reproduction publication update dispatcher
    """,
    "service.api": """
        methods problems texts origins pace limits parameters bodies.base bodies.health bodies.pipelines
        bodies.records bodies.holdouts bodies.streams bodies.updates pipelines golden holdouts records
        streams updates reference app server
    """,
    "service.commands": """
        mlflow_pages up demo demo_small outcomes pipelines reproduction streams holdouts declared_gate
        gate_tables gate_questions presets gate
    """,
}
"""The modules of each package, lowest first: one may import what stands before it."""

LIMITS = (
    Limit(
        "service.gate",
        ("service.gate",),
        "anybody can recompute a verdict from its evidence, with neither service nor torch at hand",
    ),
    Limit(
        "service.commands",
        (
            "service.commands",
            "service.client",
            "service.errors",
            "service.gate",
            "service.home",
            "service.settings",
            "service.yaml_text",
            "streams",
        ),
        "a command speaks to the API as every caller does; what it could do by itself, a caller could not",
    ),
)

HOMES = {
    "avalanche": Home(("strategies.learning", "strategies.plugins"), "its API moves between releases"),
    "mlflow": Home(("service.registry",), "MLflow is a projection of our rows, reached in one place"),
    "ray": Home(("service.training.pool",), "everything else runs, and is tested, without a cluster"),
    "fastapi": Home(("service.api",), "what the API does can be done and tested without HTTP"),
    "torch": Home(
        (
            "strategies",
            "service.training.trainer",
            "service.training.served",
            "service.training.pool",
            "service.exported",
            "service.ingest.champion_answers",
        ),
        "the API and the command line start in a second, on machines without torch",
    ),
    "confluent_kafka": Home(("streams.sources.kafka.topic",), "who does not read Kafka does not load it"),
    "redis": Home(("streams.sources.redis.source",), "who does not read Redis does not load it"),
    "cleanlab": Home(("service.training.inspection",), "it is an extra that a user may lack"),
}

SQL_HOMES = ("streams.state", "service.state")
SQL_WHY = "what a row means is decided beside its table, so that a migration has one folder to look through"

GATE_MAY_IMPORT = {
    "numpy",
    "scipy",
    "pydantic",
    "service",
    "collections",
    "dataclasses",
    "functools",
    "math",
    "statistics",
    "typing",
}


LOADS_BY_NAME = ("streams.catalog", "strategies.base", "strategies.learning.bodies")
"""Catalogs load what their own strings "module:function" name, which are read here where they are written; a
body of an installation is the installation's code, not ours."""


def listed(found: list[Crossing]) -> str:
    return "\n".join(str(each) for each in found)


def test_every_module_of_a_package_has_one_rank() -> None:
    named = [f"{room}.{name}" for room, names in RANKS.items() for name in names.split()]
    alone = [room for floor in FLOORS for room in floor.rooms if room not in RANKS]
    assert sorted([*named, *alone]) == list(TREE.modules)


def test_imports_between_packages_run_downhill_and_strangers_stay_strangers() -> None:
    found = layers.across_rooms(TREE, FLOORS)
    assert not found, listed(found)


def test_imports_inside_a_package_run_downhill() -> None:
    found = layers.against_ranks(TREE, RANKS, FLOORS)
    assert not found, listed(found)


def test_no_modules_import_each_other_in_a_ring_strings_counted() -> None:
    assert TREE.cycles() == []


def test_a_limited_room_imports_no_more_than_it_may() -> None:
    found = layers.beyond_limits(TREE, LIMITS)
    assert not found, listed(found)


def test_each_heavy_library_has_one_home() -> None:
    found = layers.outside_homes(TREE, HOMES)
    assert not found, listed(found)


def test_no_import_is_made_by_a_name_that_is_not_written_down() -> None:
    found = layers.unreadable(TREE, LOADS_BY_NAME)
    assert not found, listed(found)


def test_every_name_in_a_rule_is_a_module_or_a_package() -> None:
    names = [name for limit in LIMITS for name in (limit.room, *limit.may_import)]
    names += [place for home in HOMES.values() for place in home.places]
    names += [room for floor in FLOORS for room in floor.rooms]
    assert layers.nowhere(TREE, (*names, *RANKS, *SQL_HOMES, *LOADS_BY_NAME)) == []


def test_sql_stands_only_beside_its_tables() -> None:
    found = layers.sql_outside(TREE, SQL_HOMES, why=SQL_WHY)
    assert not found, listed(found)


def test_no_folder_is_crowded() -> None:
    assert layers.crowded(TREE, modules=30, same_prefix=3) == []


def test_no_file_and_no_function_is_two_things() -> None:
    assert layers.too_long(TREE, lines=400, function_lines=50) == []


def test_the_gate_imports_few_libraries() -> None:
    for module in TREE.modules:
        if layers.within(module, "service.gate"):
            assert {name.split(".")[0] for name in TREE.imports(module)} <= GATE_MAY_IMPORT, module


def test_every_package_is_a_docstring() -> None:
    for package in layers.PACKAGES:
        for path in (ROOT / package).rglob("__init__.py"):
            body = ast.parse(path.read_text()).body
            assert len(body) == 1, path
            assert isinstance(body[0], ast.Expr), path


@pytest.mark.parametrize(
    ("entry", "forbidden"),
    [
        ("service.api.app", ("torch", "ray", "mlflow", "avalanche", "sklearn", "scipy")),
        ("service.ingest.ingester", ("torch", "ray", "mlflow", "avalanche", "sklearn")),
        ("service.updates.dispatcher", ("torch", "torchvision", "avalanche", "sklearn")),
        ("service.cli", ("torch", "ray", "mlflow", "fastapi", "numpy", "sqlalchemy")),
        ("strategies.catalog", ("torch", "ray", "mlflow", "avalanche", "sklearn")),
        ("streams.catalog", ("torch", "ray", "mlflow", "avalanche", "sklearn", "redis", "confluent_kafka")),
    ],
)
def test_light_processes_stay_light(entry: str, forbidden: tuple[str, ...]) -> None:
    script = f"import sys, {entry}; print([name for name in {forbidden!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# The checks themselves: each kind of crossing, in a tree made for it.


def tree(folder: Path, **files: str) -> Tree:
    """A source tree of modules; `a__b` is the module a.b."""
    for name, text in files.items():
        path = folder.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Tree(folder)


def test_training_that_imports_rows_is_caught_wherever_the_import_stands(tmp_path: Path) -> None:
    crossed = tree(
        tmp_path,
        service__state__jobs="",
        service__training__pool="def claim() -> None:\n    from service.state import jobs\n",
        service__training__tasks="if TYPE_CHECKING:\n    import service.state.jobs\n",
    )
    (found,) = layers.across_rooms(crossed, FLOORS)
    assert found.module == "service.training.pool"
    assert "service.training may not know service.state, a stranger" in str(found)
    assert "Ray nodes without a database" in str(found)


def test_rows_that_import_training_and_the_two_roles_are_strangers_too(tmp_path: Path) -> None:
    crossed = tree(
        tmp_path,
        service__state__jobs="import service.training.pool\n",
        service__training__pool="",
        service__ingest__push="from service.updates.decisions import approve\n",
        service__updates__decisions="from service.ingest import push\n",
    )
    found = {(each.module, each.what.split(";")[0]) for each in layers.across_rooms(crossed, FLOORS)}
    assert found == {
        ("service.state.jobs", "imports service.training.pool"),
        ("service.ingest.push", "imports service.updates.decisions"),
        ("service.updates.decisions", "imports service.ingest.push"),
    }


@pytest.mark.parametrize(
    "text",
    [
        'import_module("strategies.catalog")',
        'importlib.import_module("strategies.catalog").STRATEGIES',
        'import_module(f"strategies.{name}")',
        'BUILDER = "strategies.catalog:STRATEGIES"',
        '__import__("strategies.catalog")',
        'from importlib import import_module as load\nload("strategies.catalog")',
        'import_module(name="strategies.catalog")',
        'import_module("strategies." + name)',
        'pkgutil.resolve_name("strategies.catalog:STRATEGIES")',
        'runpy.run_module("strategies.catalog")',
    ],
)
def test_an_import_made_by_a_string_is_caught(tmp_path: Path, text: str) -> None:
    crossed = tree(tmp_path, strategies__base=text, strategies__catalog="import strategies.base\n")
    (found,) = [each for each in layers.across_rooms(crossed, FLOORS) if "catalog" in each.what]
    assert found.module == "strategies.base"
    assert crossed.cycles() == [["strategies.base", "strategies.catalog"]]


@pytest.mark.parametrize(
    "text",
    ["import_module(name)", 'import_module(f"{package}.jobs")', 'import_module(".jobs", "service.state")'],
)
def test_an_import_whose_name_is_not_written_down_is_caught(tmp_path: Path, text: str) -> None:
    crossed = tree(tmp_path, service__training__pool=text, service__training__tasks="import math\n")
    (found,) = layers.unreadable(crossed, ())
    assert str(found).startswith("service.training.pool loads a module in line 1")
    assert layers.unreadable(crossed, ["service.training.pool"]) == []


@pytest.mark.parametrize(
    "text",
    ["from ..state import jobs\n", "from ..state.jobs import claim\n", "from .. import state\n"],
)
def test_a_relative_import_is_caught(tmp_path: Path, text: str) -> None:
    crossed = tree(tmp_path, service__state__jobs="", service__training__pool=text)
    (found,) = layers.across_rooms(crossed, FLOORS)
    assert "service.training may not know service.state, a stranger" in str(found)


@pytest.mark.parametrize(
    "text",
    ["from service import state\n", "import service.state\n", "from service.state import *\n"],
)
def test_a_package_that_is_imported_whole_is_caught(tmp_path: Path, text: str) -> None:
    crossed = tree(
        tmp_path,
        service__state__jobs="",
        service__training__pool=text,
        service__commands__gate=text,
        service__updates__plan=text,
    )
    (found,) = layers.across_rooms(crossed, FLOORS)
    assert found.module == "service.training.pool"
    (found,) = layers.beyond_limits(crossed, LIMITS)
    assert found.module == "service.commands.gate"


def test_a_rule_about_a_name_that_is_gone_is_caught(tmp_path: Path) -> None:
    names = ["service.state", "service.state.jobs", "service.sate", "streams"]
    assert layers.nowhere(tree(tmp_path, service__state__jobs=""), names) == ["service.sate"]


@pytest.mark.parametrize(
    "text",
    [
        "from service.state.database import jobs\njobs.delete()\n",
        "from service.state import database\ndatabase.jobs.insert()\n",
        "from service.state import jobs\ndef f(engine: Engine) -> None:\n    engine.begin().execute('x')\n",
        "from sqlalchemy import sql\nsql.select(1)\n",
        "import sqlalchemy.sql\nsqlalchemy.sql.text('x')\n",
        "import sqlalchemy.dialects.sqlite as lite\nlite.insert('x')\n",
        "import sqlalchemy as sa\nQUERY = sa.select(1)\n",
        "from sqlalchemy import text\nQUERY = text('DELETE FROM jobs')\n",
        "from sqlalchemy.dialects.sqlite import insert as add\nadd(1)\n",
        "import sqlalchemy\ndef f(connection: sqlalchemy.Connection) -> None:\n    connection.execute('x')\n",
        "import sqlite3\nsqlite3.connect('a').execute('SELECT 1')\n",
    ],
)
def test_sql_in_a_wrong_room_is_caught(tmp_path: Path, text: str) -> None:
    crossed = tree(tmp_path, service__updates__plan=text, service__state__jobs=text)
    (found,) = layers.sql_outside(crossed, SQL_HOMES, why=SQL_WHY)
    assert found.module == "service.updates.plan"
    assert SQL_WHY in str(found)


@pytest.mark.parametrize("called", ["jobs.add", "jobs.update", "jobs.exists"])
def test_passing_a_connection_on_is_no_sql(tmp_path: Path, called: str) -> None:
    text = "import sqlalchemy as sa\nfrom service.state import jobs\n"
    text += f"def f(connection: sa.Connection) -> None:\n    {called}(connection)\n"
    assert layers.sql_outside(tree(tmp_path, service__updates__plan=text), SQL_HOMES, why=SQL_WHY) == []


def test_fastapi_outside_the_api_is_caught_and_a_home_is_a_whole_name(tmp_path: Path) -> None:
    text = "from fastapi import Depends\n"
    crossed = tree(tmp_path, service__ingest__push=text, service__api__records=text, service__apifoo=text)
    found = layers.outside_homes(crossed, HOMES)
    assert [each.module for each in found] == ["service.apifoo", "service.ingest.push"]
    assert "can be done and tested without HTTP" in str(found[0])


def test_a_library_is_a_whole_name(tmp_path: Path) -> None:
    crossed = tree(tmp_path, service__ingest__push="import rayon\nimport torchvision_like\n")
    assert layers.outside_homes(crossed, HOMES) == []


def test_a_rank_that_is_crossed_inside_a_package_is_caught(tmp_path: Path) -> None:
    crossed = tree(tmp_path, streams__wire__base="from streams.wire.csv import read\n", streams__wire__csv="")
    (found,) = layers.against_ranks(crossed, RANKS, FLOORS)
    assert "imports streams.wire.csv, which ranks above it" in str(found)


def test_a_command_that_reaches_past_the_api_is_caught(tmp_path: Path) -> None:
    crossed = tree(tmp_path, service__commands__gate="import service.state.jobs\n", service__state__jobs="")
    (found,) = layers.beyond_limits(crossed, LIMITS)
    assert "a command speaks to the API as every caller does" in str(found)


def test_a_gate_that_reads_the_world_is_caught(tmp_path: Path) -> None:
    crossed = tree(tmp_path, service__gate__base="import service.errors\n", service__errors="")
    (found,) = layers.beyond_limits(crossed, LIMITS)
    assert "anybody can recompute a verdict" in str(found)


def test_a_crowded_folder_is_caught(tmp_path: Path) -> None:
    names = {f"streams__m{number}": "" for number in range(31)} | dict.fromkeys(
        ["service__a_b", "service__a_c", "service__a_d", "service__a"], ""
    )
    crowd, family = sorted(layers.crowded(tree(tmp_path, **names), modules=30, same_prefix=3), reverse=True)
    assert "streams holds 31 modules" in crowd
    assert "service holds ['a', 'a_b', 'a_c', 'a_d']" in family


def test_what_is_too_long_is_caught(tmp_path: Path) -> None:
    long = "def f() -> None:\n" + "    pass\n" * 50
    file, function = layers.too_long(
        tree(tmp_path, streams__a=long + "\n" * 350), lines=400, function_lines=50
    )
    assert "streams.a has 401 lines" in file
    assert "streams.a.f has 51 lines" in function


def test_a_module_without_a_room_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match=r"service.surprise stands in no room: give it one in FLOORS"):
        layers.across_rooms(tree(tmp_path, service__surprise=""), FLOORS)
