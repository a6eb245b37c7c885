"""The allow-list of an installation: how servers are written, and what is within what."""

import os
from pathlib import Path

import pytest

from streams.allowed import LOOPBACK, Allowed, Peer, Server, Trim, bound_secrets


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("kafka-1", ("kafka-1", 9092)),
        ("Kafka-1.Example:19092", ("kafka-1.example", 19092)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("[::1]", ("::1", 9092)),
        ("[0:0:0:0:0:0:0:1]:7", ("::1", 7)),
        ("[::ffff:127.0.0.2]:7", ("127.0.0.2", 7)),
    ],
)
def test_a_server_has_one_spelling(text: str, server: tuple[str, int]) -> None:
    assert Server.parse(text, port=9092) == server


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a b",
        "a:0",
        "a:65536",
        "a:",
        "::1",
        "[::1%eth0]",
        "127.1",
        "2130706433",
        "0x7f000001",
        "a.0x7f",
        "127.0.0.1.",
        "user@a",
        "a/b",
        "a%2e",
        "[a",
        "\uff41",
        "a\n",
    ],
)
def test_what_may_be_read_as_another_server_is_none(text: str) -> None:
    assert Server.parse(text, port=9092) is None


@pytest.mark.parametrize(
    ("peer", "good", "bad"),
    [
        ("a.example", "a.example:1", "b.a.example:1"),
        ("a.example:2", "A.EXAMPLE:2", "a.example:3"),
        ("*.example", "b.a.example:1", "example:1"),
        ("*.example:2", "a.example:2", "aexample:2"),
        ("::1", "[::1]:2", "127.0.0.1:2"),
        ("[::1]:2", "[::1]:2", "[::1]:3"),
        ("127.0.0.1", "127.0.0.1:9", "127.0.0.2:9"),
    ],
)
def test_an_entry_names_one_host_or_all_below_a_suffix(peer: str, good: str, bad: str) -> None:
    allowed = Allowed(hosts=(Peer.parse(peer),))
    for text, expected in ((good, True), (bad, False)):
        server = Server.parse(text, port=1)
        assert server is not None
        assert allowed.reaches(server) is expected
    assert Peer.parse(str(Peer.parse(peer))) == Peer.parse(peer)


def test_by_default_only_this_machine_is_reached_and_nothing_is_read() -> None:
    allowed = Allowed()
    assert allowed.hosts == LOOPBACK
    assert not allowed.reads("/")
    assert not allowed.reads("s3://bucket")
    assert allowed.variable_refusal("HOME") is not None


def test_a_secret_goes_only_where_it_is_bound_to() -> None:
    allowed = Allowed(secrets=bound_secrets("ONE=a:1|b:2, TWO = c"))
    a, b, c = Server("a", 1), Server("b", 2), Server("c", 3)
    reached = {
        name: [allowed.reaches(server, secret=name) for server in (a, b, c)] for name in ("ONE", "TWO")
    }
    assert reached == {"ONE": [True, True, False], "TWO": [False, False, True]}
    assert not any(allowed.reaches(server) for server in (a, b, c))
    assert not allowed.reaches(Server("localhost", 1), secret="ONE")
    assert not allowed.reaches(Server("localhost", 1), secret="THREE")


def test_streams_are_deleted_from_only_where_the_operator_said_so() -> None:
    allowed = Allowed(trims=(Trim.parse("a:1/turbines:*"), Trim.parse("b")))
    assert allowed.trims_stream(Server("a", 1), "turbines:north")
    assert not allowed.trims_stream(Server("a", 1), "cards")
    assert allowed.trims_stream(Server("b", 9), "cards")
    assert not allowed.trims_stream(Server("c", 9), "turbines:north")


def test_files_are_plain_ones_below_a_root(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").touch()
    os.mkfifo(tmp_path / "pipe")
    allowed = Allowed(roots=(str(tmp_path),))
    assert allowed.reads_file(str(tmp_path / "cert.pem"))
    assert allowed.reads_file(str(tmp_path / "comes-later.pem"))
    assert not allowed.reads_file(str(tmp_path / "pipe"))
    assert not allowed.reads_file(str(tmp_path))
    assert not Allowed(roots=("s3://bucket",)).reads_file("s3://bucket/cert.pem")


@pytest.mark.parametrize("tail", ["/..", "/../other", "/./x", "/%2e%2e/other", "/a\\..\\b"])
def test_a_prefix_of_a_bucket_is_not_climbed_out_of(tail: str) -> None:
    allowed = Allowed(roots=("s3://bucket/prefix",))
    assert allowed.reads("s3://bucket/prefix/day")
    assert not allowed.reads(f"s3://bucket/prefix{tail}")


def test_a_socket_is_listed_by_its_path(tmp_path: Path) -> None:
    allowed = Allowed(hosts=(Peer.parse(f"unix://{tmp_path}/s"),), secrets={"ONE": (Peer("a"),)})
    assert allowed.reaches_socket(f"{tmp_path}/s")
    assert not allowed.reaches_socket(f"{tmp_path}/t")
    assert not allowed.reaches_socket(f"{tmp_path}/s", secret="ONE")
