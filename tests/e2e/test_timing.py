"""Whether the time of a 404 tells a stranger that somebody else has an upload (R35).

The times are compared as rank statistics: how often an answer of one kind takes longer than
one of the other kind. 0.5 means that the time tells nothing, 0 or 1 that it tells
everything. They are compared twice: all with all, and each with the other kind's of the same
round. The second comparison does not see how the machine's speed changes from round to round,
so it finds a smaller difference. Both kinds of requests alternate at random on one connection, so that whatever
else slows the machine slows both. An attacker repeats a request and takes the shortest time,
because noise only adds to it. So does this test.
"""

from __future__ import annotations

import hashlib
import http.client
import random
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.e2e.command import Service

ROUNDS = 150
REPEATED = 6
"""How often a request is repeated for one of the compared times."""
OWNER, STRANGER = {"Authorization": "Bearer 1"}, {"Authorization": "Bearer 2"}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    tokens = tmp_path / "tokens"
    lines = [f"user{n} {hashlib.sha256(b'%d' % n).hexdigest()}\n" for n in (1, 2)]
    tokens.write_text("".join(lines))
    tokens.chmod(0o600)
    running = Service(tmp_path / "data", ("serve", "--tokens-file", str(tokens)))
    running.start()
    yield running
    running.close()


class Peer:
    """One connection of a client that measures."""

    def __init__(self, service: Service) -> None:
        self._connection = http.client.HTTPConnection(*service.address)

    def close(self) -> None:
        self._connection.close()

    def ask(
        self, method: str, path: str, fields: dict[str, str], body: bytes | None = None
    ) -> http.client.HTTPResponse:
        self._connection.request(method, path, body, fields)
        response = self._connection.getresponse()
        response.read()
        return response

    def seconds(self, method: str, path: str) -> float:
        """How long a stranger waits for a 404."""
        begun = time.perf_counter()
        response = self.ask(method, path, STRANGER)
        taken = time.perf_counter() - begun
        assert response.status == 404
        return taken


@pytest.fixture
def peer(service: Service) -> Iterator[Peer]:
    made = Peer(service)
    yield made
    made.close()


def greater(some: Sequence[float], others: Sequence[float]) -> float:
    """The probability that one of *some* is greater than one of *others*."""
    ranked = sorted([(x, 1) for x in some] + [(x, 0) for x in others])
    ranks = sum(rank for rank, (_, kind) in enumerate(ranked, 1) if kind)
    return (ranks - len(some) * (len(some) + 1) / 2) / (len(some) * len(others))


def greater_in_pairs(some: Sequence[float], others: Sequence[float]) -> float:
    """The share of the rounds in which the one of *some* is greater."""
    pairs = list(zip(some, others, strict=True))
    return sum((x > y) + (x == y) / 2 for x, y in pairs) / len(pairs)


def path_for_none() -> str:
    """An address that was never given out, and is not asked for twice."""
    return f"/operations/{secrets.token_urlsafe(16)}/content"


def begin(peer: Peer, *, length: int) -> str:
    """Begin an upload of *length* bytes, with 1000 of them; return its path."""
    fields = {"Tus-Resumable": "1.0.0", **OWNER}
    created = peer.ask("POST", "/files/", fields | {"Upload-Length": str(length)})
    assert created.status == 201
    location = created.headers["Location"]
    path = "/operations/" + location.partition("/operations/")[2]
    fields |= {
        "Upload-Offset": "0",
        "Content-Type": "application/offset+octet-stream",
    }
    assert peer.ask("PATCH", path, fields, bytes(1000)).status == 204
    return path


def test_ranks_tell_what_is_greater() -> None:
    """The statistic itself: 1 and 0 for separate samples, near 0.5 for the same one."""
    assert greater([2, 3], [0, 1]) == 1
    assert greater([0, 1], [2, 3]) == 0
    drawn = random.Random(1)
    same = [[drawn.random() for _ in range(ROUNDS)] for _ in range(2)]
    assert 0.4 < greater(*same) < 0.6
    assert 0.4 < greater_in_pairs(*same) < 0.6
    drifting = [[n + times[n] for n in range(ROUNDS)] for times in same]
    later = [time + 0.5 for time in drifting[0]]
    assert greater(later, drifting[1]) < 0.6  # all with all, it is not seen
    assert greater_in_pairs(later, drifting[1]) > 0.8


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "length"), [("resting", 1_000_000), ("complete", 1000)]
)
def test_time_does_not_tell_an_upload_of_somebody_else_from_none(
    peer: Peer, state: str, length: int
) -> None:
    """R35: with 150 times of each kind, chance alone stays within 0.4 and 0.6."""
    path = begin(peer, length=length)
    order = random.Random(state)
    for _ in range(100):
        peer.seconds("HEAD", path_for_none())
    shortest: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        found = [float("inf"), float("inf")]
        for kind in order.sample([0, 1] * REPEATED, 2 * REPEATED):
            taken = peer.seconds("HEAD", path if kind else path_for_none())
            found[kind] = min(found[kind], taken)
        for times, least in zip(shortest, found, strict=True):
            times.append(least)
    assert 0.35 < greater(shortest[1], shortest[0]) < 0.65
    assert 0.33 < greater_in_pairs(shortest[1], shortest[0]) < 0.67
