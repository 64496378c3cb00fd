"""HTTP Basic with an htpasswd file: bcrypt alone, bounded, and quiet about what is wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import bcrypt
import pytest
import trio
import trio.testing

from tests.identity.heads import basic, bearer, head
from trioresume import CallerError, PasswordFile, Principal, Rejection
from trioresume.identity import htpasswd


def line(name: str, password: str, *, cost: int = 4, kind: str = "2y") -> str:
    """A line as ``htpasswd -B`` writes it."""
    hashed = bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(cost)).decode()
    return f"{name}:${kind}{hashed[3:]}\n"


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    other = line("b\u00f6b", "p:\u00e4\u00df", kind="2b")
    write(path, f"# people\n\n{line('ann', 'secret')}{other}")
    return path


def write(path: Path, text: str) -> None:
    path.write_text(text)


def hashes_in(path: Path) -> set[str]:
    return {text.partition(":")[2] for text in path.read_text().split()[2:]}


class Held:
    """In place of bcrypt: counts its checks, and holds them until they may end."""

    def __init__(self) -> None:
        self.checks: list[tuple[bytes, bytes]] = []
        self.at_once = self.most_at_once = 0
        self.go = threading.Event()
        self._lock = threading.Lock()

    def checkpw(self, password: bytes, hashed_password: bytes) -> bool:
        with self._lock:
            self.checks.append((password, hashed_password))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        assert self.go.wait(10)
        with self._lock:
            self.at_once -= 1
        return password == b"secret"


def holding(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[PasswordFile, Held]:
    held = Held()
    monkeypatch.setattr(htpasswd, "_load_bcrypt", lambda: held)
    return PasswordFile(path), held


async def test_name_and_password_let_in(users: Path) -> None:
    """A colon and letters beyond ASCII are part of a password; any case of Basic."""
    known = PasswordFile(users)
    assert await known(head(fields=basic("ann", "secret"))) == Principal("ann")
    assert await known(head(fields=basic("b\u00f6b", "p:\u00e4\u00df"))) == Principal(
        "b\u00f6b"
    )
    field = basic("ann", "secret")["Authorization"].replace("Basic", "bASIC")
    assert await known(head(fields={"Authorization": field})) == Principal("ann")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        bearer("secret"),
        basic("ann", "wrong"),
        basic("ann", ""),
        basic("ann", "secret\0"),
        basic("ann", b"\xff"),
        basic("nobody", "secret"),
        basic("", "secret"),
        {"Authorization": "Basic"},
        {"Authorization": "Basic "},
        {"Authorization": "Basic !!!"},
        {"Authorization": "Basic YW5u"},
        {"Authorization": "Basic /zo="},
        {"Authorization": "Basic " + "a" * 9000},
    ],
    ids=str,
)
async def test_anything_else_is_refused_with_a_challenge(
    fields: dict[str, str], users: Path
) -> None:
    """RFC 7617, section 2.1: with the charset of names and passwords."""
    verdict = await PasswordFile(users)(head(fields=fields))
    assert isinstance(verdict, Rejection)
    assert verdict.status == 401
    expected = 'Basic realm="trioresume", charset="UTF-8"'
    assert verdict.headers.get("www-authenticate") == expected


async def test_wrong_name_and_wrong_password_are_one_answer(users: Path) -> None:
    """And an unknown name costs a check of a user's cost, for a hash that fits nothing."""
    known = PasswordFile(users)
    assert await known(head(fields=basic("ann", "x"))) == await known(
        head(fields=basic("nobody", "x"))
    )


async def test_unknown_name_costs_one_check(
    users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the time of the answer would tell who has an account."""
    known, held = holding(users, monkeypatch)
    held.go.set()
    hashes = hashes_in(users)
    for name in ("nobody", "nobody", "somebody"):
        verdict = await known(head(fields=basic(name, "x")))
        assert isinstance(verdict, Rejection)
    decoys = [hashed.decode() for _, hashed in held.checks]
    assert len(decoys) == 3
    assert decoys[0] == decoys[1]
    assert not hashes & {*decoys}
    assert {decoy[4:6] for decoy in decoys} == {"04"}


async def test_right_password_is_remembered_for_a_while(
    users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that each PATCH of an upload does not cost a check. A wrong one is not remembered."""
    known, held = holding(users, monkeypatch)
    held.go.set()
    for _ in range(5):
        assert await known(head(fields=basic("ann", "secret"))) == Principal("ann")
    assert len(held.checks) == 1
    for _ in range(2):
        assert isinstance(await known(head(fields=basic("ann", "x"))), Rejection)
    assert len(held.checks) == 3
    short = PasswordFile(users, remember=0)
    for _ in range(2):
        assert await short(head(fields=basic("ann", "secret"))) == Principal("ann")
    assert len(held.checks) == 5


async def test_passwords_are_not_kept_in_memory(users: Path) -> None:
    """What is remembered are keyed hashes, and their number is limited."""
    known = PasswordFile(users)
    assert await known(head(fields=basic("ann", "secret"))) == Principal("ann")
    assert [len(key) for key in known._right] == [32]


async def test_changed_password_counts_at_once(users: Path) -> None:
    """After ``reload()``: the old password was remembered, and is wrong all the same."""
    known = PasswordFile(users)
    assert await known(head(fields=basic("ann", "secret"))) == Principal("ann")
    write(users, line("ann", "other") + line("cyd", "secret"))
    assert await known(head(fields=basic("ann", "secret"))) == Principal("ann")
    known.reload()
    assert isinstance(await known(head(fields=basic("ann", "secret"))), Rejection)
    assert await known(head(fields=basic("ann", "other"))) == Principal("ann")
    assert await known(head(fields=basic("cyd", "secret"))) == Principal("cyd")


async def test_fault_in_the_new_file_keeps_the_old_users(users: Path) -> None:
    """Raises, and nobody is locked out."""
    known = PasswordFile(users)
    write(users, "ann:$apr1$x$y\n")
    with pytest.raises(CallerError, match="MD5"):
        known.reload()
    assert await known(head(fields=basic("ann", "secret"))) == Principal("ann")


async def test_same_password_is_checked_once_for_many(
    users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that begins many uploads at once waits for one check."""
    known, held = holding(users, monkeypatch)
    verdicts: list[object] = []

    async def ask() -> None:
        verdicts.append(await known(head(fields=basic("ann", "secret"))))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
        await until(lambda: len(held.checks) == 1)
        held.go.set()
    assert verdicts == [Principal("ann")] * 20
    assert len(held.checks) == 1


async def test_flood_of_checks_is_bounded(
    users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at once; a few wait for each address (429), and a few more for all (503)."""
    known, held = holding(users, monkeypatch)
    statuses: list[int] = []

    async def ask(number: int, peer: str) -> None:
        peer = f"{peer}:{40_000 + number}"  # as a socket names it
        verdict = await known(head(fields=basic("ann", str(number)), peer=peer))
        assert isinstance(verdict, Rejection)
        statuses.append(verdict.status)

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(ask, number, "10.0.0.1")
        await until(lambda: len(statuses) == 12 - htpasswd.MOST_WAITING_OF_ADDRESS)
        assert set(statuses) == {429}
        for number in range(100, 200):
            nursery.start_soon(ask, number, f"10.0.1.{number}")
        await until(lambda: len(statuses) == 112 - htpasswd.MOST_WAITING)
        assert set(statuses) == {429, 503}
        held.go.set()
    assert held.most_at_once == 2
    assert statuses.count(401) == htpasswd.MOST_WAITING
    assert not known._waiting
    assert not known._running


async def test_cancelled_check_leaves_nobody_waiting(
    users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client of the first request is gone: the next one checks again."""
    known, held = holding(users, monkeypatch)
    verdicts: list[object] = []

    async def ask() -> None:
        verdicts.append(await known(head(fields=basic("ann", "secret"))))

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as first:
            first.start_soon(ask)
            await until(lambda: len(held.checks) == 1)
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            first.cancel_scope.cancel()
            held.go.set()
    assert verdicts[-1] == Principal("ann")


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until *is_so*."""
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        await trio.sleep(0.001)


async def test_password_in_clear_text_is_warned_of(
    users: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once in an hour, and not for this machine's own address or behind a proxy with TLS."""
    known = PasswordFile(users)
    fields = basic("ann", "secret")
    for own in ("127.0.0.1", "127.0.0.1:40000", "::1", "::1:40000", "unix:"):
        await known(head(fields=fields, peer=own))
    await known(head(fields=fields, peer="::ffff:127.0.0.1:40000"))
    await known(head(fields=fields, peer="192.0.2.1", origin="https://a"))
    await known(head(fields=bearer("x"), peer="192.0.2.1"))
    assert caplog.text == ""
    await known(head(fields=fields, peer="192.0.2.1:40000", origin="http://a"))
    await known(head(fields=fields, peer="192.0.2.2", origin="http://a"))
    assert caplog.text.count("without TLS") == 1
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("192.0.2.1:40000", "192.0.2.1:40001", True),
        ("192.0.2.1", "192.0.2.1:40001", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1:40000", "192.0.2.1", True),
        ("2001:db8::1:40000", "2001:db8::ffff:2", True),
        ("2001:db8:0:1::1:40000", "2001:db8::1:40000", False),
        ("unix:", "", True),
    ],
)
def test_checks_are_counted_for_networks(one: str, other: str, is_same: bool) -> None:
    """Whoever has an IPv6 address has a network of them; a new port is no new client."""
    assert (htpasswd._network_of(one) == htpasswd._network_of(other)) is is_same


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no user"),
        ("ann\n", "line 1: not 'NAME:HASH'"),
        ("\nann:$apr1$abc$def\n", "line 2: the hash is MD5"),
        ("ann:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n", "SHA-1"),
        ("ann:$5$x$y\n", "SHA-256"),
        ("ann:$6$x$y\n", "SHA-512"),
        ("ann:$argon2id$v=19$m=1\n", "Argon2"),
        ("ann:rl.3StKT.4T8M\n", "neither bcrypt"),
        ("ann:secret\n", "neither bcrypt"),
        ("ann:$2y$10$tooshort\n", "neither bcrypt"),
        ("ann:$2y$15$" + "." * 53 + "\n", "cost of the hash is 15"),
        ("ann:$2y$03$" + "." * 53 + "\n", "cost of the hash is 3"),
        ("ann:$2y$04$" + "." * 53 + "\nann:$2y$04$" + "." * 53, "line 2: the user"),
        ("ann:\xff", "not UTF-8"),
    ],
)
def test_file_that_cannot_be_used_is_refused_with_the_reason(
    text: str, message: str, tmp_path: Path
) -> None:
    """It names the line, and repeats nothing of it."""
    path = tmp_path / "users"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CallerError, match=message) as caught:
        PasswordFile(path)
    assert "secret" not in str(caught.value)


def test_missing_file_is_an_oserror(tmp_path: Path) -> None:
    """So that the caller can tell it from a malformed one."""
    with pytest.raises(FileNotFoundError):
        PasswordFile(tmp_path / "none")


async def test_long_password_is_cut_as_its_hash_was(tmp_path: Path) -> None:
    """Apache's tools take 72 bytes, and so does bcrypt itself."""
    (path := tmp_path / "users").write_text(line("ann", "x" * 80))
    known = PasswordFile(path)
    assert await known(head(fields=basic("ann", "x" * 100))) == Principal("ann")
    assert isinstance(await known(head(fields=basic("ann", "x" * 71))), Rejection)
