"""Commits to a database that is cut off, restarts, and is used by others at the same time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence

import psycopg
import pytest

from tests import postgres
from tests.store.helpers import OP, file_record, record, response
from tests.store.postgres.conftest import BOUNDS, Join
from tests.store.postgres.cutting_proxy import CuttingProxy
from tests.store.postgres.stands import new_schema
from tests.store.shared import Ears
from trioresume.errors import (
    OutcomeUnknown,
    StaleWriter,
    StorageConflict,
    StorageError,
    StorageUnavailable,
)
from trioresume.protocol.operation import OperationState
from trioresume.store.port import (
    SERVICE_CLOCK,
    Content,
    CreateOperation,
    EndOperation,
    EventRecord,
    ForgetOperation,
    FreezeContent,
    Missed,
    Mutation,
    OperationId,
    PublishFile,
    RecordEvent,
    RecordResponse,
    RemoveFile,
    SealChunk,
    SetLength,
    SetMeta,
    SetState,
    Usage,
    content_of,
    request_key,
)
from trioresume.store.port.recipes import digest_of
from trioresume.store.postgres.catalog import PostgresCatalog
from trioresume.store.postgres.connections import Bounds


def do(catalog: PostgresCatalog, *mutations: Mutation) -> None:
    """Apply *mutations* as one submission, which must not conflict."""
    assert catalog.apply([mutations]) == [None]


def event_record(operation: OperationId = OP) -> EventRecord:
    return EventRecord(
        id="msg",
        operation=operation,
        kind="post-create",
        recorded_at=1.0,
        dated=1.0,
        payload=b"{}",
    )


def cut_once(proxy: CuttingProxy, *, is_answer: bool) -> None:
    """Cut the connection that commits, once: with its question, or with its answer."""
    state = {"asked": False, "cut": False}

    def decide(data: bytes, answers: bool) -> bool:
        if not answers and b'"submissions"' in data:
            state["asked"] = True
        if state["cut"] or not state["asked"] or answers is not is_answer:
            return False
        state["cut"] = True
        return True

    proxy.cut_when = decide


@pytest.mark.parametrize("is_answer", [False, True], ids=["question", "answer"])
def test_connection_lost_during_a_commit_does_not_change_its_answer(
    join: Join, proxy: CuttingProxy, is_answer: bool
) -> None:
    """Whether the server had committed or not: it happens once, and is said so."""
    catalog = join(proxy.url)
    do_it: list[Mutation] = [CreateOperation(record()), RecordEvent(event_record())]
    cut_once(proxy, is_answer=is_answer)
    assert catalog.apply([do_it]) == [None]
    assert catalog.operation(OP) is not None
    assert catalog.event_count() == 1
    assert catalog.owns(OP)


@pytest.mark.parametrize("is_answer", [False, True], ids=["question", "answer"])
def test_conflicts_are_remembered_when_their_answer_is_lost(
    join: Join, proxy: CuttingProxy, is_answer: bool
) -> None:
    """One submission of the batch conflicts, and the others were done."""
    catalog = join(proxy.url)
    do(catalog, CreateOperation(record()))
    other = OperationId("operation-2")
    number = 0

    def decide(data: bytes, answers: bool) -> bool:
        # The first try ends with the conflict; the second one has savepoints.
        nonlocal number
        if not answers and b'"submissions"' in data:
            number += 1
        if number == 2 and answers is is_answer:
            number += 1
            return True
        return False

    proxy.cut_when = decide
    first, second = catalog.apply(
        [[CreateOperation(record())], [CreateOperation(record(other))]]
    )
    assert type(first) is StorageConflict
    assert second is None
    assert catalog.operation(other) is not None


def test_outcome_that_cannot_be_found_out_is_not_guessed(
    join: Join, proxy: CuttingProxy
) -> None:
    """Afterwards the operation counts as lost, and the next commit finds out."""
    lost: list[OperationId | None] = []
    bounds = Bounds(answer=0.5, patience=1.0)
    catalog = join(proxy.url, bounds=bounds, on_lost=lost.append)
    do(catalog, CreateOperation(record()))

    def decide(data: bytes, answers: bool) -> bool:
        if not answers and b'"submissions"' in data:
            proxy.is_silent = True
        return False

    proxy.cut_when = decide
    with pytest.raises(OutcomeUnknown):
        catalog.apply([[SetLength(OP, 5)]])
    assert OP in lost
    proxy.cut_when = lambda data, answers: False
    proxy.is_silent = False
    assert catalog.apply([[SetState(OP, OperationState.PROCESSING)]]) == [None]


def test_terminated_connections_lose_nothing(join: Join, postgres_url: str) -> None:
    """An administrator ends them, or a failover does, while commits run."""
    catalog = join()
    stop = threading.Event()

    def terminate() -> None:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            while not stop.wait(0.15):
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'trioresume'"
                )

    thread = threading.Thread(target=terminate)
    thread.start()
    try:
        for number in range(60):
            created = CreateOperation(record(f"op-{number}"))
            assert catalog.apply([[created, RecordEvent(event_record())]]) == [None]
    finally:
        stop.set()
        thread.join()
    assert catalog.count_operations() == {OperationState.RECEIVING: 60}
    assert catalog.event_count() == 60


def test_restarts_of_the_server_lose_nothing(
    own_server: postgres.PostgresServer,
) -> None:
    """Also without an orderly end. What a commit has confirmed is there, and only once."""
    catalog = PostgresCatalog(own_server.url, bounds=BOUNDS, lease=20.0)
    ears = Ears(catalog)  # type: ignore[arg-type]  # it has the sharing of a store
    confirmed: list[str] = []
    stop = threading.Event()

    def commit() -> None:
        number = 0
        while not stop.is_set():
            name = f"op-{number}"
            number += 1
            assert catalog.apply([[CreateOperation(record(name))]]) == [None]
            confirmed.append(name)

    thread = threading.Thread(target=commit)
    thread.start()
    try:
        for crash in (True, False):
            before = len(confirmed)
            own_server.restart(crash=crash)
            deadline = time.monotonic() + 20
            while len(confirmed) < before + 5:
                assert time.monotonic() < deadline
                assert thread.is_alive()
                time.sleep(0.01)
    finally:
        stop.set()
        thread.join()
    found = catalog.count_operations()[OperationState.RECEIVING]
    assert found == len(confirmed)
    ears.wait_for(Missed())
    catalog.close()


def test_database_that_is_gone_is_said_in_time(
    own_server: postgres.PostgresServer,
) -> None:
    """Questions and commits wait as long as they may, and no longer."""
    bounds = Bounds(answer=0.5, patience=0.6)
    catalog = PostgresCatalog(own_server.url, bounds=bounds, lease=20.0)
    own_server.stop()
    began = time.monotonic()
    with pytest.raises(StorageUnavailable):
        catalog.operation(OP)
    with pytest.raises(StorageUnavailable):
        catalog.apply([[CreateOperation(record())]])
    assert time.monotonic() - began < 5
    own_server.start()
    do(catalog, CreateOperation(record()))
    catalog.close()


def test_slow_database_is_only_slow(join: Join, proxy: CuttingProxy) -> None:
    """Delays shorter than the bounds change nothing but the time."""
    catalog = join(proxy.url)
    proxy.delay = 0.05
    do(catalog, CreateOperation(record()))
    assert catalog.operation(OP) is not None


def test_silent_network_ends_a_question_in_time(
    join: Join, proxy: CuttingProxy
) -> None:
    """Nobody refuses, and nobody answers."""
    catalog = join(proxy.url, bounds=Bounds(answer=0.3, patience=0.5))
    proxy.is_silent = True
    began = time.monotonic()
    with pytest.raises(StorageUnavailable):
        catalog.operation(OP)
    assert time.monotonic() - began < 4
    proxy.is_silent = False
    assert catalog.operation(OP) is None


def test_node_that_was_taken_for_dead_begins_anew(join: Join) -> None:
    """It owns nothing, changes nothing, and is told to look again."""
    lost: list[OperationId | None] = []
    one, two = join(on_lost=lost.append), join()
    ears = Ears(one)  # type: ignore[arg-type]  # it has the sharing of a store
    do(one, CreateOperation(record()))
    two._ask("SELECT end_node(%s)", one.node)
    old = one.node
    with pytest.raises(StorageUnavailable):
        one.apply([[SetLength(OP, 5)]])
    assert one.node != old
    assert lost == [None]
    (refused,) = one.apply([[SetLength(OP, 5)]])
    assert isinstance(refused, StaleWriter)
    ears.wait_for(Missed())
    assert one.sharing.claim(OP)
    do(one, SetLength(OP, 6))


def test_claim_comes_after_the_release_before_it(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that the database was not told yet does not undo the claim that follows it."""
    one = join()
    do(one, CreateOperation(record()))
    goes_on, send = threading.Event(), one.sharing._send

    def send_later(kind: str, values: tuple[object, ...]) -> None:
        if kind == "release":
            goes_on.wait(5)
        send(kind, values)

    monkeypatch.setattr(one.sharing, "_send", send_later)
    one.sharing.release(OP)
    timer = threading.Timer(0.2, goes_on.set)
    timer.start()
    assert one.sharing.claim(OP)
    timer.join()
    assert one.apply([[SetLength(OP, 5)]]) == [None]


def test_node_that_begins_anew_has_reached_the_database(join: Join) -> None:
    """It serves at once, although it had said nothing for long."""
    one, two = join(), join()
    two._ask("SELECT end_node(%s)", one.node)
    old = one.node
    one.sharing.last_beat = time.monotonic() - 1000
    with pytest.raises(StorageUnavailable):
        one.check()
    one.sharing._beat()
    assert one.node != old
    one.check()


def test_node_that_says_nothing_is_ended_by_another(join: Join) -> None:
    """Within its lease, whoever looks first."""
    one, two = join(lease=0.4), join(lease=0.4)
    do(one, CreateOperation(record()))
    one.abandon()
    deadline = time.monotonic() + 10
    while True:
        found = two.operation(OP)
        assert found is not None
        if not found.is_elsewhere:
            break
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("states", [1, 2, 7])
def test_operations_are_listed_by_state(join: Join, states: int) -> None:
    """In the order of their ids, whatever the number of states."""
    catalog = join()
    asked = list(OperationState)[:states]
    for number, state in enumerate(OperationState):
        do(catalog, CreateOperation(record(f"op-{9 - number}", state=state)))
    found = catalog.operations_in(asked, 5, OperationId("op-3"))
    assert [each.id for each in found] == sorted(
        f"op-{9 - number}" for number in range(states) if 9 - number > 3
    )[:5]
    assert catalog.operations_in([], 5, None) == []


# Several nodes.


def _life(node: int, number: int, draw: random.Random) -> list[list[Mutation]]:
    """The submissions of one upload whose chunk, file and principal others share."""
    name = OperationId(f"op-{node}-{number}")
    key = request_key(name)
    data = b"%d" % draw.randrange(4)
    seal = SealChunk(key, 0, digest_of(data), len(data))
    content = content_of(8, [seal])
    file = file_record(f"file-{draw.randrange(3)}", content, owner="somebody")
    created = record(name, principal=draw.choice(["a", "b", None]))
    return [
        [CreateOperation(created)],
        [seal, FreezeContent(key, content), SetState(name, OperationState.PROCESSING)],
        [PublishFile(file), RecordResponse(name, response(), 5.0)],
        [EndOperation(name, 9.0) if draw.random() < 0.5 else ForgetOperation(name)],
        [RemoveFile("somebody", file.name)],
    ]


def test_nodes_that_change_the_same_rows_count_right(join: Join) -> None:
    """Chunks, recipes, files and accounts of all are those that the rows add up to."""
    nodes = [join(), join(), join()]
    failures: list[BaseException] = []

    def work(at: int) -> None:
        draw = random.Random(at)
        catalog = nodes[at]
        try:
            for first in range(0, 24, 8):
                lives = [_life(at, number, draw) for number in range(first, first + 8)]
                digests = sorted(
                    {
                        m.digest
                        for life in lives
                        for m in life[1]
                        if isinstance(m, SealChunk)
                    }
                )
                for step in range(5):
                    if step == 1:
                        catalog.hold(digests)
                    batch: Sequence[Sequence[Mutation]] = [life[step] for life in lives]
                    for result in catalog.apply(batch):
                        # A file's content may be released by another node's removal.
                        assert result is None or type(result) is StorageConflict
                catalog.release_rows(20)
                catalog.forget([chunk for chunk, _ in catalog.condemn(10)])
        except BaseException as exc:  # noqa: BLE001 - raised below
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    catalog = nodes[0]
    check_counts(catalog)
    while catalog.release_rows(100).steps:
        pass
    for each in nodes:
        each._change("DELETE FROM holds WHERE node = %s")
    check_counts(catalog)


def check_counts(catalog: PostgresCatalog) -> None:
    """Compare what is counted with what the rows say."""
    ask = catalog._ask
    assert (
        ask(
            "SELECT r.digest FROM recipes r WHERE refs <> ("
            " SELECT count(*) FROM operations o WHERE o.content_digest = r.digest) + ("
            " SELECT count(*) FROM operations o WHERE o.response_digest = r.digest) + ("
            " SELECT count(*) FROM files f WHERE f.content_digest = r.digest)"
        )
        == []
    )
    assert (
        ask(
            "SELECT c.digest FROM chunks c WHERE refs <> ("
            " SELECT count(*) FROM recipes r WHERE dismantled = 0"
            " AND position(c.digest IN r.body) > 0) + ("
            " SELECT count(*) FROM pieces p WHERE p.digest = c.digest)"
        )
        == []
    )
    assert (
        ask(
            "SELECT * FROM (SELECT coalesce(sum(h.bytes), 0) + (SELECT coalesce(sum(length), 0)"
            " FROM kept) AS held FROM holdings(ARRAY(SELECT id FROM operations),"
            " ARRAY(SELECT namespace FROM files ORDER BY id),"
            " ARRAY(SELECT name FROM files ORDER BY id)) h) x"
            " WHERE held <> (SELECT coalesce(sum(bytes), 0) FROM accounts WHERE namespace = '*')"
            " OR held <> (SELECT coalesce(sum(bytes), 0) FROM accounts WHERE namespace <> '*')"
        )
        == []
    )


def test_usage_counts_over_all_nodes(join: Join) -> None:
    """What one node knows of it is at most a sign of life old."""
    one, two = join(lease=0.4), join(lease=0.4)
    do(one, CreateOperation(record(principal="a")))
    do(two, CreateOperation(record("operation-2", principal="a")))
    assert two.usage("a") == Usage(8192, 2)
    deadline = time.monotonic() + 10
    while one.usage("a") != Usage(8192, 2):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_unknown_usage_is_not_waited_for_while_the_database_is_away(
    join: Join, proxy: CuttingProxy
) -> None:
    """The server asks on its event loop."""
    catalog = join(proxy.url, bounds=Bounds(answer=0.4, patience=0.6), lease=0.8)
    do(catalog, CreateOperation(record(principal="a")))
    proxy.is_silent = True
    deadline = time.monotonic() + 10
    while time.monotonic() - catalog.sharing.last_beat < 0.5:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    began = time.monotonic()
    assert catalog.usage("a") == Usage(4096, 1)
    with pytest.raises(StorageUnavailable):
        catalog.usage("nobody has asked for")
    assert time.monotonic() - began < 0.2
    proxy.is_silent = False


def test_each_event_is_sent_by_one_node(join: Join) -> None:
    """Those of an operation all by the same one, and by another once it is dead."""
    one, two = join(), join()
    first, second = OperationId("operation-1"), OperationId("operation-2")
    for operation in (first, second, first):
        do(one, RecordEvent(event_record(operation)))
    events, _ = one.due_events(5.0, 1)
    assert [event.seq for event in events] == [1]
    others, again = two.due_events(5.0, 10)
    assert [event.operation for event in others] == [second]
    assert again is not None  # to look again, should the first node die
    mine, _ = one.due_events(5.0, 10)
    assert [event.operation for event in mine] == [first, first]
    one.close()
    taken, _ = two.due_events(5.0, 10)
    assert [event.seq for event in taken] == [1, 2, 3]


def test_nodes_expire_one_after_the_other(join: Join) -> None:
    """Each knows every deadline, and only the first one has the work."""
    one, two = join(), join()
    do(one, CreateOperation(record(expires_at=100.0)))
    one.sharing.release(OP)
    assert one.operation(OP) is not None  # after the release
    soonest = sorted([one.expiring(10)[0][0], two.expiring(10)[0][0]])
    assert soonest == [100.0, 102.0]
    two.close()
    assert one.expiring(10) == [(100.0, f"o:{OP}")]


# What keeps chunks.


def test_held_chunk_is_not_condemned(join: Join) -> None:
    """Nor one that is named; when it comes back it is another object."""
    one, two = join(), join()
    digest = digest_of(b"12345678")
    (chunk,) = one.hold([digest])
    assert two.condemn(10) == []
    assert two.hold([digest]) == [chunk]
    one.unhold([digest])
    assert one.condemn(10) == []
    two.unhold([digest])
    assert [found for found, _ in one.condemn(10)] == [chunk]
    (again,) = two.hold([digest])
    assert again.digest == digest
    assert again.number != chunk.number
    assert one.known_objects([chunk, again]) == {chunk, again}
    one.forget([chunk])
    assert one.known_objects([chunk, again]) == {again}


def test_chunk_that_is_not_held_cannot_be_named(join: Join) -> None:
    """The hold of a node ends with the node."""
    one, two = join(), join()
    digest = digest_of(b"12345678")
    do(one, CreateOperation(record()))
    one.hold([digest])
    two._ask("SELECT end_node(%s)", one.node)
    with pytest.raises(StorageError):
        one.apply([[SealChunk(request_key(OP), 0, digest, 8)]])
    assert one.sharing.claim(OP)
    (conflict,) = one.apply([[SealChunk(request_key(OP), 0, digest, 8)]])
    assert type(conflict) is StorageConflict
    one.hold([digest])
    do(one, SealChunk(request_key(OP), 0, digest, 8))
    assert two._ask("SELECT * FROM holds") == []


def test_condemned_chunks_of_a_dead_node_are_for_another(join: Join) -> None:
    """It deletes them once more, and then forgets them."""
    one, two = join(), join()
    digest = digest_of(b"12345678")
    one.hold([digest])
    one.unhold([digest])
    condemned = one.condemn(10)
    assert len(condemned) == 1
    assert two.condemn(10) == []
    one.close()
    assert two.condemn(10) == condemned


def test_pinned_recipe_is_spared(join: Join) -> None:
    """Whichever node reads it, as often as it does."""
    one, two = join(), join()
    seal = SealChunk(request_key(OP), 0, digest_of(b"1234"), 4)
    content = content_of(8, [seal])
    assert content.digest is not None
    one.hold([seal.digest])
    do(one, CreateOperation(record()), seal, FreezeContent(seal.key, content))
    assert two.pin(content.digest)
    assert two.pin(content.digest)
    do(one, ForgetOperation(OP))
    two.unpin(content.digest)
    assert one.release_rows(10).recipes == 0
    two.unpin(content.digest)
    assert one.release_rows(10).recipes == 1
    assert not two.pin(content.digest)


def test_service_time_goes_on_on_every_node(join: Join) -> None:
    """A node that joins takes up the time that the others have now (G11)."""
    one = join()
    do(one, SetMeta(SERVICE_CLOCK, "1000.0 5000.0"))
    one._ask("UPDATE meta SET noted = noted - interval '1 hour'")
    two = join()
    reading = two.meta(SERVICE_CLOCK)
    assert reading is not None
    now, date = map(float, reading.split(" "))
    assert now == pytest.approx(4600, abs=30)
    assert date == pytest.approx(8600, abs=30)
    do(two, SetMeta(SERVICE_CLOCK, "900.0 4900.0"))  # from a clock that is behind
    assert float((one.meta(SERVICE_CLOCK) or "").split(" ")[0]) > 4500


def test_content_of_the_wrong_name_conflicts(join: Join) -> None:
    """The chunks that the catalog has are compared with those of the recipe."""
    catalog = join()
    seal = SealChunk(request_key(OP), 0, digest_of(b"1234"), 4)
    wrong = Content(4, None, digest_of(b"something else"))
    catalog.hold([seal.digest])
    submission: list[Mutation] = [
        CreateOperation(record()),
        seal,
        FreezeContent(seal.key, wrong),
    ]
    (conflict,) = catalog.apply([submission])
    assert type(conflict) is StorageConflict
    assert catalog.operation(OP) is None


def test_schemas_of_one_database_are_apart(postgres_url: str) -> None:
    """Two services may share a database: neither sees the other's rows or notices."""
    names = [new_schema(), new_schema()]
    one, two = (PostgresCatalog(postgres_url, schema=name) for name in names)
    do(one, CreateOperation(record()))
    assert two.operation(OP) is None
    for catalog in (one, two):
        catalog.close()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        for name in names:
            connection.execute(f"DROP SCHEMA {name} CASCADE".encode())
