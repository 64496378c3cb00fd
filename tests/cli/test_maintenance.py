"""``ls``, ``show``, ``verify`` and ``gc``: what they print and how they end."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import trioresume
from tests.store.helpers import (
    do,
    file_record,
    put,
    record,
    store_content,
)
from trioresume.cli import main, units
from trioresume.cli.options import ExitCode
from trioresume.store.disk_store import open_store
from trioresume.store.port import (
    CreateOperation,
    EndOperation,
    OperationId,
    PublishFile,
    request_key,
)
from trioresume.store.port.recipes import digest_of

DATA = bytes(range(256)) * 8


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A directory with two files, an upload that is not done and one that is gone."""
    path = tmp_path / "data"
    store = open_store(path, chunk_size=1024, durability="process")
    content = store_content(store, DATA, "stored")
    do(store, PublishFile(file_record("report.pdf", content, expires_at=86400.0)))
    do(store, PublishFile(file_record("a\x1b[2J\n", content, owner="alice")))
    do(store, EndOperation(OperationId("stored"), 3600.0))
    do(store, CreateOperation(record("token", principal="bob", length=5000)))
    put(store, store.open_writer(request_key(OperationId("token"))), DATA[:1500])
    store.close()
    return path


def run(command: str, data_dir: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [command, "--data-dir", str(data_dir), *arguments])


def objects(result: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_ls_is_a_table(data_dir: Path) -> None:
    """One line each; what came from the network does not control the terminal."""
    result = run("ls", data_dir)
    assert result.exit_code == ExitCode.DONE
    head, *lines = result.stdout.splitlines()
    assert head.split() == ["STATE", "BYTES", "OF", "EXPIRES", "OWNER", "NAME"]
    assert [line.split() for line in lines] == [
        ["file", "2.0", "KiB", "2.0", "KiB", "1970-01-02T00:00:00Z", "-", "report.pdf"],
        ["file", "2.0", "KiB", "2.0", "KiB", "never", "alice", "a\\x1b[2J\\n"],
        [
            *("receiving", "1.5", "KiB", "4.9", "KiB", "1970-01-01T00:16:40Z", "bob"),
            *("token", "POST", "/files/?a=%20b"),
        ],
    ]


def test_ls_as_json_has_every_member(data_dir: Path) -> None:
    """An object a line: sizes are bytes, times Unix seconds."""
    files = objects(run("ls", data_dir, "--json", "--no-uploads"))
    assert [(file["kind"], file["name"]) for file in files] == [
        ("file", "report.pdf"),
        ("file", "a\x1b[2J\n"),
    ]
    [upload] = objects(run("ls", data_dir, "--json", "--no-files"))
    assert upload["kind"] == "upload"
    assert (upload["received"], upload["length"]) == (1500, 5000)
    assert upload["fields"] == [["content-type", "text/plain"], ["x-a", "\xe9"]]
    ended = objects(run("ls", data_dir, "--json", "--no-files", "--ended"))
    assert [entry["state"] for entry in ended] == ["gone", "receiving"]


def test_show_names_what_it_shows(data_dir: Path) -> None:
    """An upload by its id, a file by its name, everything counted without either."""
    upload = run("show", data_dir, "token").stdout
    assert "principal       bob\n" in upload
    assert "field           x-a: \xe9\n" in upload
    assert "lost            no\n" in upload
    [file] = objects(run("show", data_dir, "--json", "report.pdf"))
    assert (file["kind"], file["length"]) == ("file", len(DATA))
    [totals] = objects(run("show", data_dir, "--json"))
    assert totals["files"] == 2
    assert totals["uploads"] == {"gone": 1, "receiving": 1}
    assert "uploads         1 receiving\n" in run("show", data_dir).stdout


def test_show_of_nothing_fails(data_dir: Path) -> None:
    """There is none of that name: exit code 1, and nothing on standard output."""
    result = run("show", data_dir, "nobody")
    assert result.exit_code == ExitCode.FAILED
    assert result.stdout == ""
    assert "nobody" in result.stderr


def test_verify_says_what_it_read(data_dir: Path) -> None:
    """Exit code 0 where nothing is damaged."""
    result = run("verify", data_dir)
    assert result.exit_code == ExitCode.DONE
    assert result.stdout == ("Chunks: 1, 1.5 KiB. Files: 2. Uploads: 2. Damages: 0.\n")


def test_verify_names_damage_and_whom_it_concerns(data_dir: Path) -> None:
    """Exit code 3; a flipped byte, its chunk, both files."""
    [summary] = objects(run("verify", data_dir, "--json"))
    assert summary["damages"] == 0
    chunk = max((data_dir / "chunks").rglob("1e20*"), key=lambda p: p.stat().st_size)
    chunk.write_bytes(b"?" + chunk.read_bytes()[1:])
    result = run("verify", data_dir)
    assert result.exit_code == ExitCode.DAMAGED
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"chunk {chunk.name}: does not have the bytes")
    assert lines[0].endswith(f"({chunk})")
    concerned = [line for line in lines if line.startswith("file ")]
    assert concerned[0].startswith("file report.pdf: ")
    assert concerned[1].startswith("file a\\x1b[2J\\n of alice: ")
    damages = objects(run("verify", data_dir, "--json"))
    assert damages[0]["kind"] == "chunk"
    assert damages[0]["path"] == str(chunk)
    assert damages[-1]["damages"] == len(damages) - 1


def spoil(data_dir: Path, at: int = 0) -> Path:
    """Flip a bit of the chunk at *at* of the files; where it lies."""
    name = digest_of(DATA[at : at + 1024]).hex()
    chunk = data_dir / "chunks" / name[4:6] / name
    data = bytearray(chunk.read_bytes())
    data[5] ^= 4
    chunk.write_bytes(data)
    return chunk


def test_verify_repairs_from_a_file(data_dir: Path, tmp_path: Path) -> None:
    """Exit code 0 once all is right; the chunk and the file it came from are named."""
    chunk = spoil(data_dir)
    good = tmp_path / "copies" / "deep" / "report\n.pdf"
    good.parent.mkdir(parents=True)
    good.write_bytes(b"?" * 7)
    assert run("verify", data_dir, "--repair-from", str(good)).exit_code == 3
    good.write_bytes(DATA)
    result = run("verify", data_dir, "--repair-from", str(tmp_path / "copies"))
    assert result.exit_code == ExitCode.DONE
    lines = result.stdout.splitlines()
    assert lines[1].startswith(f"chunk {chunk.name}: repaired from ")
    assert lines[1].endswith("/copies/deep/report\\n.pdf")
    assert lines[-1].endswith("Damages: 1. Repaired: 1.")
    assert len(lines) == 3
    assert chunk.read_bytes() == DATA[:1024]
    assert run("verify", data_dir).stdout.endswith("Damages: 0.\n")


def test_verify_says_what_was_healed(data_dir: Path) -> None:
    """Once: an upload of the same content put it right since the report."""
    chunk = spoil(data_dir)
    assert run("verify", data_dir).exit_code == ExitCode.DAMAGED
    store = open_store(data_dir, chunk_size=1024)
    store_content(store, DATA, "again")
    store.close()
    healed, summary = objects(run("verify", data_dir, "--json"))
    assert (healed["kind"], healed["name"]) == ("healed", chunk.name)
    assert (summary["healed"], summary["damages"]) == (1, 0)
    assert len(objects(run("verify", data_dir, "--json"))) == 1


def test_source_that_is_not_there_is_an_error(data_dir: Path) -> None:
    """A misspelt path is told before anything is read."""
    result = run("verify", data_dir, "--repair-from", "/nowhere/at/all")
    assert result.exit_code == ExitCode.USAGE
    assert "/nowhere/at/all" in result.stderr


def test_gc_says_what_it_released(data_dir: Path) -> None:
    """Nothing while it is held; all of it afterwards."""
    assert run("gc", data_dir).stdout == "Released: 0 chunks, 0 B.\n"
    store = open_store(data_dir)
    do(store, EndOperation(OperationId("token"), 9e9))
    store.close()
    [released] = objects(run("gc", data_dir, "--json"))
    assert released["chunks"] == 0  # shared with the files
    assert run("verify", data_dir).exit_code == ExitCode.DONE


def test_gc_that_was_cut_is_to_be_run_again(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 75, as for an upload that can be resumed."""

    async def cut(path: Path) -> trioresume.Collected:
        raise trioresume.CollectionCut("gone")

    monkeypatch.setattr(trioresume, "collect", cut)
    result = run("gc", data_dir)
    assert result.exit_code == ExitCode.UNFINISHED
    assert "gone" in result.stderr


@pytest.mark.parametrize("command", ["ls", "show", "verify", "gc"])
def test_no_data_directory_is_an_error(tmp_path: Path, command: str) -> None:
    """A misspelt path is told, and not made."""
    result = run(command, tmp_path / "dta")
    assert result.exit_code == ExitCode.FAILED
    assert "is no data directory" in result.stderr
    assert not (tmp_path / "dta").exists()


def test_sizes_are_read_by_people() -> None:
    """Three digits and a unit."""
    sizes = [None, 0, 1023, 1536, 5 * 2**20, 3 * 2**30, 2 * 2**40]
    assert [units.size(size) for size in sizes] == [
        *("?", "0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.0 GiB", "2.0 TiB")
    ]


def test_ls_and_show_know_names(data_dir: Path) -> None:
    """Patterns of names, ids and the names that clients gave."""
    store = open_store(data_dir, chunk_size=1024, durability="process")
    content = store_content(store, DATA, "stored2")
    titled = file_record("random", content)
    fields = trioresume.Fields([("filename", "holiday.jpg")])
    do(store, PublishFile(dataclasses.replace(titled, fields=fields)))
    store.close()
    for pattern in ("rand*", "*.jpg", "holiday.jpg"):
        (found,) = objects(run("ls", data_dir, "--json", "--no-uploads", pattern))
        assert (found["name"], found["filename"]) == ("random", "holiday.jpg")
    assert "random  (holiday.jpg)" in run("ls", data_dir).stdout
    assert [f["id"] for f in objects(run("ls", data_dir, "--json", "tok*"))] == [
        "token"
    ]
    assert objects(run("ls", data_dir, "--json", "nothing")) == []
    shown = run("show", data_dir, "holiday.jpg").stdout
    assert "length          2.0 KiB (2048 bytes)" in shown


def test_rm_mv_and_chown_say_what_they_did(data_dir: Path) -> None:
    """One line for each; nothing is done by halves or by mistake."""
    assert run("mv", data_dir, "report.pdf", "b.pdf").stdout == (
        "Renamed: file report.pdf\n"
    )
    dry = run("rm", data_dir, "--glob", "--dry-run", "*")
    assert len(dry.stdout.splitlines()) == 3
    assert "Not removed: upload token of bob" in dry.stdout
    given = run("chown", data_dir, "--owner", "-", "--glob", "alice", "*")
    assert given.stdout == "Given: file b.pdf\n"
    (row,) = objects(run("chown", data_dir, "--json", "-", "b.pdf"))
    assert row == {
        "kind": "file",
        "done": "given",
        "name": "b.pdf",
        "id": None,
        "owner": "alice",
    }
    assert run("rm", data_dir, "b.pdf", "token").exit_code == ExitCode.DONE
    (left,) = objects(run("ls", data_dir, "--json"))
    assert left["owner"] == "alice"


def test_rm_does_not_guess(data_dir: Path) -> None:
    """No such name, several of this name, a pattern without the flag: nothing is removed."""
    store = open_store(data_dir, chunk_size=1024, durability="process")
    content = store_content(store, DATA, "stored3")
    do(store, PublishFile(file_record("report.pdf", content, owner="bob")))
    store.close()
    several = run("rm", data_dir, "report.pdf")
    assert several.exit_code == ExitCode.FAILED
    assert "2 files and uploads are called" in several.stderr
    for words in (("nothing",), ("report*",), ("report.pdf", "--owner", "carol")):
        result = run("rm", data_dir, *words)
        assert result.exit_code == ExitCode.FAILED
        assert "no file and no unfinished upload" in result.stderr
    taken = run("chown", data_dir, "--owner", "-", "bob", "report.pdf")
    assert taken.exit_code == ExitCode.FAILED
    assert "this name already" in taken.stderr
    forced = run("chown", data_dir, "--owner", "-", "--force", "bob", "report.pdf")
    assert forced.exit_code == ExitCode.DONE
    assert run("rm", data_dir, "--owner", "bob", "report.pdf").exit_code == 0
