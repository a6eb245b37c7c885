"""Fixtures that several files share: real databases, of both kinds, and a real S3 server."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from xdist.scheduler import LoadFileScheduling

from service.settings import Settings
from service.state.database import connect, migrate
from tests.support import postgres
from tests.support.demo_run import DemoRun, demo_run
from tests.support.s3 import s3, s3_server

__all__ = ["s3", "s3_server"]

KINDS = ("sqlite", "postgresql")
pytest_plugins = ["tests.support.cpu_budget"]

LOOK_AT_THE_DEMO = ("tests/service/commands/test_demo.py", "tests/browser/test_mlflow_pages.py")
"""These share one run of the demo, which takes a minute: they stay in one process."""


SHARE_NOTHING = (
    "tests/service/updates/test_audits.py",
    "tests/service/updates/test_update.py",
    "tests/service/gate/guards/test_guards_in_updates.py",
    "tests/service/ingest/test_retention.py",
    "tests/contracts/test_learners.py",
)
"""Each test here sets up all that it needs and takes seconds: spread out, they fill up the end of a run."""


LONG_FILES = (
    "tests/service/updates/test_reproduction.py",
    "tests/chaos/test_kill.py",
    *LOOK_AT_THE_DEMO,
    "tests/chaos/test_cancel_learning.py",
    "tests/chaos/test_stream_crashes.py",
    "tests/service/training/test_pool.py",
    "tests/service/gate/test_poison.py",
    "tests/service/gate/test_screen.py",
    "tests/service/test_packaging.py",
)
"""These take longest, and come first: one that began last would keep one process busy alone."""


class FilesTogether(LoadFileScheduling):  # type: ignore[misc]  # xdist's schedulers ship no types
    """Tests of a file follow each other in one process, since they share what it starts."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        if file in SHARE_NOTHING:
            return nodeid
        return LOOK_AT_THE_DEMO[0] if file in LOOK_AT_THE_DEMO else file


TORCH_SEED = 67280421310721
"""Where torch's generators stand when it is imported."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Each test draws the same weights, whichever tests ran before it in its process.

    Tests of the GPU say why they are left out; no package brings one, so CI leaves them out as well.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(TORCH_SEED)
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("there is no CUDA device here")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, and what can be spread over the processes of a run last."""

    def turn(item: pytest.Item) -> int:
        file = item.nodeid.split("::", 1)[0]
        if file in LONG_FILES:
            return LONG_FILES.index(file)
        return len(LONG_FILES) + (file in SHARE_NOTHING)

    items.sort(key=turn)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> FilesTogether:
    """Keep the order above, where xdist would begin with the files of most tests."""
    config.option.loadscopereorder = False
    return FilesTogether(config, log)


@pytest.fixture(scope="session")
def demo() -> DemoRun:
    """One run of the demo, for all tests that look at what it left behind."""
    return demo_run()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Server]:
    """One PostgreSQL server for all tests that ask for it."""
    with postgres.server() as server:
        yield server


@pytest.fixture(params=KINDS)
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server: postgres.Server = request.getfixturevalue("postgres_server")
    url = server.empty_database()
    yield url
    server.drop(url)


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """A migrated database of this test alone."""
    server: postgres.Server | None = None
    url = f"sqlite:///{tmp_path / 'test.db'}"
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres_server")
        url = server.migrated_database()
    engine = connect(url)
    if server is None:
        migrate(engine)
    yield engine
    engine.dispose()
    if server is not None:
        server.drop(url)


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store on SQLite with its schema: copied, because making it takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    from service.registry import warm_up

    settings = Settings(home=folder)
    warm_up(settings)
    return folder / "mlflow.db"
