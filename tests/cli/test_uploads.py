"""``trioresume uploads``: what earlier runs left unfinished."""

from __future__ import annotations

import fcntl
import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.cli.test_upload import Network
from trioresume import Journal, cli
from trioresume.testing import (
    ConnectionPlan,
    Direction,
    Fault,
    FaultKind,
    Schedule,
    no_faults,
)

MIB = 1 << 20


def _run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli.main, [*map(str, words)])


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def _each_cut_after(size: int) -> Schedule:
    """Every connection is cut when *size* bytes of requests have passed."""
    plan = ConnectionPlan((Fault(FaultKind.RST, Direction.UP, size),))
    return lambda index: plan


def _begin(network: Network, path: Path, protocol: str = "seed") -> None:
    """Leave an upload of *path* unfinished."""
    path.write_bytes(random.Random(path.name).randbytes(MIB))
    network.proxy.schedule = _each_cut_after(400_000)
    result = _run(
        "upload", "--retry-for", "0s", "--protocol", protocol, path, network.url
    )  # fmt: skip
    assert result.exit_code == 75, result.output


def _listed() -> list[dict[str, object]]:
    result = _run("uploads", "ls", "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_uploads_are_listed_resumed_and_forgotten(tmp_path: Path) -> None:
    assert _listed() == []
    assert _run("uploads", "resume", "--all").exit_code == 0
    one, two = tmp_path / "one.bin", tmp_path / "two.bin"
    with Network() as network:
        _begin(network, one)
        _begin(network, two, "tus")
        listed = _listed()
        assert [each["path"] for each in listed] == [str(one), str(two)]
        assert [each["protocol"] for each in listed] == ["seed", "tus"]
        assert {each["size"] for each in listed} == {MIB}
        text = _run("uploads", "ls").stdout
        assert f"1.0 MiB  {one}  POST {network.url}" in text
        # The rest fits into one connection, the whole would not.
        network.proxy.schedule = _each_cut_after(900_000)
        short = str(listed[0]["id"])[:8]
        result = _run("uploads", "resume", "--retry-for", "0s", "--checksum", short)
        assert result.exit_code == 0, result.output
        assert network.fetch(result.stdout.split()[1]) == one.read_bytes()
        assert [each["path"] for each in _listed()] == [str(two)]
        assert _run("uploads", "forget", str(listed[1]["id"])).exit_code == 0
        assert _listed() == []
        assert two.exists()


def test_file_that_is_gone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "one.bin"
    with Network() as network:
        _begin(network, path)
        path.unlink()
        result = _run("uploads", "resume", "--all")
    assert result.exit_code == 1
    assert f"{path}: the file does not exist any more" in result.stderr
    assert len(_listed()) == 1


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "name uploads by their IDs, or use --all"),
        (["--all", "abc"], "name uploads by their IDs, or use --all"),
        (["nothing"], "none begins with the ID 'nothing'"),
        ([""], "several unfinished uploads begin with the ID ''"),
    ],
)
@pytest.mark.parametrize("command", ["resume", "forget"])
def test_unclear_choice_is_a_usage_error(
    command: str, words: list[str], reason: str, tmp_path: Path
) -> None:
    with Network() as network:
        _begin(network, tmp_path / "one.bin")
        _begin(network, tmp_path / "two.bin")
    result = _run("uploads", command, *words)
    assert result.exit_code == 2
    assert reason in " ".join(result.output.split())
    assert len(_listed()) == 2


def test_credentials_go_to_one_server_only(tmp_path: Path) -> None:
    """A token given for the uploads to two servers would reach the wrong one."""
    with Network() as first, Network() as second:
        _begin(first, tmp_path / "one.bin")
        _begin(second, tmp_path / "two.bin")
        token = tmp_path / "token"
        token.write_text("s3cret\n")
        result = _run("uploads", "resume", "--all", "--token-file", token)
        assert result.exit_code == 2
        assert "several servers" in result.output
        first.proxy.schedule = second.proxy.schedule = no_faults
        assert _run("uploads", "resume", "--all").exit_code == 0
    assert _listed() == []


def test_upload_that_runs_now_is_not_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "one.bin"
    with Network() as network:
        _begin(network, path)
    (known,) = Journal().uploads()
    directory = Journal().directory
    lock = directory / f"{known.id}.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        result = _run("uploads", "forget", "--all")
    assert result.exit_code == 1
    assert "another run is sending" in result.stderr
    assert len(_listed()) == 1


def test_damaged_entry_is_left_out(tmp_path: Path) -> None:
    directory = Journal().directory
    directory.mkdir(parents=True)
    (directory / "abc.upload").write_bytes(b"\x81\xa1v\x03")
    (directory / "abd.upload").write_bytes(b"")
    assert _listed() == []
