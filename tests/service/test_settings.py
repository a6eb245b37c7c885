"""Settings: every name is a promise; secrets are not shown."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.settings import Settings, url_of
from strategies.network_choice import Installation
from streams.allowed import LOOPBACK, Allowed, Peer, Trim

NAMES = {
    "home",
    "database_url",
    "host",
    "port",
    "allowed_hosts",
    "mlflow_tracking_uri",
    "mlflow_ui",
    "mlflow_host",
    "mlflow_port",
    "ray_address",
    "trainers",
    "lease_seconds",
    "max_attempts",
    "poll_seconds",
    "max_backlog_records",
    "max_backlog_bytes",
    "max_duplicate_window",
    "max_queue_bytes",
    "max_bytes_in_flight",
    "source_roots",
    "source_hosts",
    "source_secrets",
    "source_trims",
    "store",
    "cache_bytes",
    "networks",
    "weights",
    "upkeep_seconds",
    "orphan_grace_seconds",
    "log_format",
    "log_level",
}
"""A new one must be added here, which is the moment to ask whether it is needed."""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(f"HOLDFAST_{name.upper()}", raising=False)


def test_these_are_all_settings_and_each_is_described() -> None:
    assert set(Settings.model_fields) == NAMES
    assert all(field.description for field in Settings.model_fields.values())


def test_every_setting_is_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {
        "home": "/srv/holdfast",
        "database_url": "postgresql://u:p@db/holdfast",
        "host": "0.0.0.0",
        "port": 1,
        "allowed_hosts": "Holdfast.example, *.lab.example",
        "mlflow_tracking_uri": "http://mlflow:5000",
        "mlflow_ui": False,
        "mlflow_host": "10.0.0.9",
        "mlflow_port": 2,
        "ray_address": "ray://head:10001",
        "trainers": 3,
        "lease_seconds": 4.5,
        "max_attempts": 5,
        "poll_seconds": 6.5,
        "max_backlog_records": 7,
        "max_backlog_bytes": 2**22,
        "max_duplicate_window": 0,
        "max_queue_bytes": 2**23,
        "max_bytes_in_flight": 2**28,
        "source_roots": "/srv/in;s3://bucket/in",
        "source_hosts": "redis-1:6379, *.stream.example, unix:///run/r.sock",
        "source_secrets": "KAFKA=k-1:9093|k-2:9093,CARDS=redis-2",
        "source_trims": "redis-1:6379/turbines:*,redis-2",
        "store": "s3://bucket/experiences",
        "cache_bytes": 2**21,
        "networks": "mine=pkg.nets:make",
        "weights": "/srv/weights",
        "upkeep_seconds": 8.5,
        "orphan_grace_seconds": 90.5,
        "log_format": "json",
        "log_level": "DEBUG",
    }
    assert set(given) == NAMES
    for name, value in given.items():
        monkeypatch.setenv(f"HOLDFAST_{name.upper()}", str(value))
    settings = Settings()
    assert settings.database == given.pop("database_url")
    assert settings.home == Path(given.pop("home"))
    assert settings.weights == Path(given.pop("weights"))
    assert {name: getattr(settings, name) for name in given} == given
    assert settings.tracking_uri == "http://mlflow:5000"
    assert settings.roots == [Path("/srv/in"), "s3://bucket/in"]
    assert settings.allowed == Allowed(
        roots=("/srv/in", "s3://bucket/in"),
        hosts=(Peer("redis-1", 6379), Peer(".stream.example"), Peer("unix:///run/r.sock")),
        secrets={"KAFKA": (Peer("k-1", 9093), Peer("k-2", 9093)), "CARDS": (Peer("redis-2"),)},
        trims=(Trim(Peer("redis-1", 6379), "turbines:*"), Trim(Peer("redis-2"))),
        queue_bytes=2**23,
    )
    assert settings.listed_hosts == ("holdfast.example", "*.lab.example")
    assert settings.installation == Installation({"mine": "pkg.nets:make"}, Path("/srv/weights"))


def test_the_defaults_keep_everything_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings()
    root = tmp_path / "holdfast-home"
    assert settings.root == root
    assert settings.roots == [root / "incoming"]
    assert settings.allowed == Allowed(roots=(str(root / "incoming"),), hosts=LOOPBACK)
    assert Settings(source_hosts="").allowed.hosts == ()
    assert settings.database == f"sqlite:///{root}/holdfast.db"
    assert settings.tracking_uri == f"sqlite:///{root}/mlflow.db"
    folders = {settings.experiences, settings.checkpoints, settings.artifacts}
    assert len(folders) == 3
    assert {folder.parent for folder in folders} == {root}
    assert settings.host == "127.0.0.1"
    assert settings.installation == Installation()


def test_a_home_may_be_named_relative_to_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings(home=Path("~/keeps")).root == tmp_path / "keeps"


def test_passwords_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_DATABASE_URL", "postgresql://user:hunter2@db/holdfast")
    monkeypatch.setenv("HOLDFAST_MLFLOW_TRACKING_URI", "https://user:hunter2@mlflow")
    settings = Settings()
    assert "hunter2" not in repr(settings) + str(settings)
    assert "hunter2" not in repr(settings.database_url)
    assert "hunter2" in settings.database


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "70000"),
        ("allowed_hosts", "*"),
        ("allowed_hosts", "fine.example, *fine.example"),
        ("allowed_hosts", "https://fine.example"),
        ("allowed_hosts", "fine.example:8400"),
        ("allowed_hosts", "127.0.0.1:8400"),
        ("source_hosts", "*"),
        ("source_hosts", "redis://fine.example"),
        ("source_hosts", "127.1"),
        ("source_hosts", "fine.example:port"),
        ("source_secrets", "KAFKA"),
        ("source_secrets", "KAFKA="),
        ("source_secrets", "KAFKA=a,KAFKA=b"),
        ("source_secrets", "NO NAME=a"),
        ("source_trims", "*"),
        ("trainers", "0"),
        ("lease_seconds", "0"),
        ("max_attempts", "0"),
        ("poll_seconds", "-1"),
        ("max_backlog_records", "0"),
        ("networks", "mine=pkg.nets"),
        ("networks", "Mine=pkg.nets:make"),
        ("log_format", "xml"),
        ("log_level", "LOUD"),
        ("mlflow_ui", "perhaps"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"HOLDFAST_{name.upper()}", value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert [error["loc"] for error in caught.value.errors()] == [(name,)]


@pytest.mark.parametrize(
    ("uri", "seen", "login"),
    [
        ("https://user:p%40ss@mlflow:5000/a?b#c", "https://mlflow:5000/a?b#c", ("user", "p@ss")),
        ("HTTP://user:a:b@c@mlflow", "HTTP://mlflow", ("user", "a:b@c")),
        ("http://user@mlflow", "http://mlflow", ("user", "")),
        ("http://mlflow/a@b", "http://mlflow/a@b", None),
        ("sqlite:////srv/a@b.db", "sqlite:////srv/a@b.db", None),
    ],
)
def test_user_and_password_are_taken_out_of_the_uri_of_mlflow(
    uri: str, seen: str, login: tuple[str, str] | None
) -> None:
    settings = Settings(mlflow_tracking_uri=uri)
    assert settings.tracking_uri == seen
    found = settings.tracking_login
    assert (found and (found[0], found[1].get_secret_value())) == login


def test_settings_do_not_change_while_a_process_runs() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8400"),
        ("box.example", "http://box.example:8400"),
        ("0.0.0.0", "http://127.0.0.1:8400"),
        ("", "http://127.0.0.1:8400"),
        ("::", "http://[::1]:8400"),
        ("2001:db8::1", "http://[2001:db8::1]:8400"),
    ],
)
def test_what_listens_everywhere_is_reached_on_loopback(host: str, url: str) -> None:
    assert url_of(host, 8400) == url
