"""A keeper and its workers: what a connection's end, a slow worker and a refusal do."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.helpers import (
    CHUNK,
    KEY,
    OP,
    begin,
    collect_all,
    do,
    make_durable,
    put,
    read_content,
    record,
    store_content,
)
from tests.store.remote.stands import PATIENCE, KeeperStand, RunningKeeper
from tests.store.shared import Ears, is_refused, sharing_of
from trioresume.errors import (
    CallerError,
    ContentLost,
    StaleWriter,
    StorageConflict,
    StorageError,
    StorageFull,
)
from trioresume.protocol.operation import OperationState
from trioresume.server.workers import keeper as keeping
from trioresume.store.file_system.free_space import PROBE
from trioresume.store.port import (
    Changed,
    Claimed,
    CreateOperation,
    EndOperation,
    Missed,
    OperationId,
    PublishFile,
    SealChunk,
    SetLength,
    Told,
    request_key,
)
from trioresume.store.port.recipes import digest_of
from trioresume.store.remote import wire
from trioresume.store.remote.worker_store import connect_store
from trioresume.store.shared_disk_store import open_shared_store


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[KeeperStand]:
    stand = KeeperStand(tmp_path)
    yield stand
    stand.close()


def until(true: object, what: str) -> None:
    """Wait until *true*, a function, returns something true."""
    assert callable(true)
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


# The greeting.


def test_worker_is_told_what_the_directory_is(shared: KeeperStand) -> None:
    """Chunk size and durability are the keeper's, whatever the worker's settings are."""
    one, two = shared.join(), shared.join()
    assert (one.chunk_size, one.durable_at_once, one.blocking) == (CHUNK, False, True)
    assert (one.number, two.number) == (1, 2)


def test_other_program_is_refused_with_the_reason(shared: KeeperStand) -> None:
    """So that a new version beside an old keeper says why it cannot start."""
    sock = shared.running.connect(50)
    frame = wire.greeting_frame(wire.Greeting(pid=50))
    sock.sendall(frame.replace(b"\xaatrioresume\x01", b"\xaatrioresume\x02"))
    answer = sock.recv(65536)
    sock.close()
    (greeting,) = wire.FrameReader().feed(answer)
    assert isinstance(greeting, wire.Greeting)
    assert "another version of trioresume" in greeting.refusal


def test_refusal_is_raised_in_the_worker(shared: KeeperStand) -> None:
    """And no thread is left behind."""
    ours, theirs = socket.socketpair()
    ours.sendall(wire.greeting_frame(wire.Greeting(refusal="not you")))
    before = threading.active_count()
    with pytest.raises(StorageError, match="not you"):
        connect_store(theirs, shared.data_dir, on_lost=lambda: None)
    assert threading.active_count() == before
    ours.close()


def test_keeper_that_does_not_greet_is_an_error(shared: KeeperStand) -> None:
    """It has ended before, or is something else."""
    ours, theirs = socket.socketpair()
    ours.close()
    with pytest.raises(StorageError):
        connect_store(theirs, shared.data_dir, on_lost=lambda: None)
    ours, theirs = socket.socketpair()
    ours.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(StorageError):
        connect_store(theirs, shared.data_dir, on_lost=lambda: None)
    ours.close()


def test_nonsense_ends_that_connection_only(shared: KeeperStand) -> None:
    """The keeper goes on with the other ones."""
    one = shared.join()
    sock = shared.running.connect(51)
    sock.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
    sock.recv(65536)
    sock.close()
    do(one, CreateOperation(record()))
    assert one.operation(OP) is not None


# The end of a connection.


def test_worker_ends_when_its_keeper_does(shared: KeeperStand) -> None:
    """Every call raises, no byte is added any more, and the process is told."""
    one = shared.join()
    writer = begin(one)
    put(one, writer, b"abc")
    shared.running.stop()
    assert one.was_lost.wait(PATIENCE)
    for call in (
        lambda: one.operation(OP),
        lambda: one.apply([[SetLength(OP, 3)]]),
        lambda: writer.append(b"x"),
        lambda: one.open_writer(KEY),
        one.check,
        lambda: sharing_of(one).claim(OP),
    ):
        with pytest.raises(StorageError):
            call()
    sharing_of(one).release(OP)  # these cannot fail
    sharing_of(one).want(OP)


def test_goodbye_ends_no_process(shared: KeeperStand) -> None:
    """What it owned belongs to nobody, and its unrecorded bytes still count."""
    one, two = shared.join(), shared.join()
    writer = begin(one)
    put(one, writer, b"abc")
    one.close()
    assert not one.was_lost.is_set()
    until(lambda: len(shared.running.keeper.workers) == 1, "it is still connected")
    assert sharing_of(two).claim(OP)
    assert two.open_writer(KEY).offset == 3


def test_bytes_of_a_dead_worker_count_if_they_are_proven(shared: KeeperStand) -> None:
    """A byte that was written without its proof is not believed."""
    one, two = shared.join(), shared.join()
    writer = begin(one)
    put(one, writer, b"abc")
    shared.kill(one)
    with (shared.data_dir / "tails" / f"{KEY}.0").open("ab") as tail:
        tail.write(b"?")  # the write that the kill has cut
    assert sharing_of(two).claim(OP)
    assert two.offset(KEY) == 3
    new = two.open_writer(KEY)
    assert new.offset == 3
    put(two, new, b"defgh")
    assert two.sealed_content(KEY).length == CHUNK


def test_pins_of_a_dead_worker_are_dropped(shared: KeeperStand) -> None:
    """While it lives, what it reads is spared; then it is collected."""
    one, two = shared.join(), shared.join()
    content = store_content(two, b"x" * 20)
    reader = one.open_reader(content)
    do(two, EndOperation(OP, 5000.0))
    assert collect_all(two).chunks == 0
    assert reader.read(0, 8) == b"x" * 8
    shared.kill(one)
    assert collect_all(two).chunks == 2
    with pytest.raises(ContentLost):
        two.open_reader(content)


def test_closed_reader_spares_nothing(shared: KeeperStand) -> None:
    """Its pin is dropped before the next question of the worker is answered."""
    one = shared.join()
    content = store_content(one, b"x" * 20)
    reader = one.open_reader(content)
    again = one.open_reader(content)
    do(one, EndOperation(OP, 5000.0))
    reader.close()
    reader.close()
    assert collect_all(one).chunks == 0
    again.close()
    assert collect_all(one).chunks == 2


def test_stopped_process_is_killed_before_its_upload_passes_on(tmp_path: Path) -> None:
    """A real process, which SIGSTOP stops while it owns an upload."""
    store = open_shared_store(tmp_path / "data", chunk_size=CHUNK)
    running = RunningKeeper(store, end_process=None, takeover_timeout=0.3)
    child, pid = _child(running, tmp_path / "data")
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "owns it\n"
        os.kill(pid, signal.SIGSTOP)
        other = connect_store(running.connect(), store_path(tmp_path), on_lost=_ignore)
        found = other.operation(OP)
        assert found is not None
        assert found.is_elsewhere
        assert sharing_of(other).claim(OP)
        assert child.wait(PATIENCE) == -signal.SIGKILL
        assert other.open_writer(KEY).offset == 3
        other.close()
    running.stop()


def store_path(tmp_path: Path) -> Path:
    return tmp_path / "data"


def _ignore() -> None:
    """Nothing is to be done when the connection is lost."""


_CHILD = """
import socket, sys
from tests.store.helpers import *
from trioresume.store.remote.worker_store import connect_store
sock = socket.socket(fileno=int(sys.argv[1]))
store = connect_store(sock, sys.argv[2], on_lost=lambda: None)
store.sharing.listen(lambda notice: None)
writer = begin(store)
put(store, writer, b"abc")
print("owns it", flush=True)
sys.stdin.read()
"""


def _child(running: RunningKeeper, data_dir: Path) -> tuple[subprocess.Popen[str], int]:
    sock = running.connect()
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(sock.fileno()), str(data_dir)],
        pass_fds=[sock.fileno()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    sock.close()
    return child, child.pid


# The order of things.


def test_seal_of_a_tail_that_was_cut_names_nothing(shared: KeeperStand) -> None:
    """Its bytes are gone, and the new writer's have taken their place."""
    one = shared.join()
    writer = begin(one)
    make_durable(one, writer)
    (old,) = writer.append(b"01234567")
    late = old.run()
    shared.disk.sync_error = OSError(5, "Input/output error")
    put(one, writer, b"8")
    flush = writer.flush()
    assert flush is not None
    with pytest.raises(StorageError):
        flush.run()
    new = one.open_writer(KEY)
    assert new.offset == 0
    (seal,) = new.append(b"abcdefgh")
    (error,) = one.apply([[late]])
    assert isinstance(error, StorageConflict)
    do(one, seal.run())
    assert one.sealed_content(KEY).length == CHUNK


def test_seal_that_no_writer_has_made_is_refused(shared: KeeperStand) -> None:
    """Only a seal of the owner's writer names a chunk."""
    one = shared.join()
    writer = begin(one)
    put(one, writer, b"abc")
    (error,) = one.apply([[SealChunk(KEY, 0, digest_of(b"abc"), 3)]])
    assert isinstance(error, StorageConflict)


def test_failed_sync_of_names_breaks_the_writers_of_all(shared: KeeperStand) -> None:
    """Nobody can tell whose names were lost, so only recorded bytes count from then on."""
    one, two = shared.join(), shared.join()
    other = OperationId("operation-2")
    writers = [begin(one), begin(two, other)]
    put(one, writers[0], b"abc")
    put(two, writers[1], b"0123")
    make_durable(two, writers[1])
    put(two, writers[1], b"45")
    fail = _FailedDirectory(shared)
    flush = writers[0].flush()
    assert flush is not None
    with pytest.raises(StorageError):
        flush.run()
    fail.end()
    assert one.offset(KEY) == 0

    def is_broken() -> bool:
        try:
            writers[1].append(b"")
        except StorageError:
            return True
        return False

    until(is_broken, "the other writer goes on")
    assert two.offset(request_key(other)) == 4
    new = two.open_writer(request_key(other))
    assert new.offset == 4
    put(two, new, b"5678")
    make_durable(two, new)
    assert one.open_writer(KEY).offset == 0


class _FailedDirectory:
    def __init__(self, shared: KeeperStand) -> None:
        self._disk = shared.disk
        self._true = shared.disk.sync_directory
        shared.disk.sync_directory = self._fail  # type: ignore[method-assign]

    def _fail(self, path: str) -> None:
        raise OSError(5, "Input/output error")

    def end(self) -> None:
        self._disk.sync_directory = self._true  # type: ignore[method-assign]


def test_sweep_spares_the_tail_of_an_upload_that_is_not_recorded_yet(
    shared: KeeperStand,
) -> None:
    """The keeper knows its owner before there is a file."""
    one, two = shared.join(), shared.join()
    writer = one.new_writer(KEY)
    assert writer.append(b"abc") == []
    two.sweep()
    collect_all(two)
    do(one, CreateOperation(record()))
    put(one, writer, b"defgh")
    assert one.sealed_content(KEY).length == CHUNK
    two.sweep()
    collect_all(two)
    assert one.sealed_content(KEY).length == CHUNK


def test_new_upload_of_an_id_that_another_process_has_is_refused(
    shared: KeeperStand,
) -> None:
    """Its first byte finds it, before there is a file."""
    one, two = shared.join(), shared.join()
    begin(one)
    writer = two.new_writer(KEY)
    with pytest.raises(StorageError):
        writer.append(b"abc")
    assert isinstance(two.apply([[CreateOperation(record())]])[0], StaleWriter)


def test_ended_content_ends_its_writer_here(shared: KeeperStand) -> None:
    """As in one process: its next append raises."""
    one = shared.join()
    writer = begin(one)
    put(one, writer, b"abc")
    do(one, EndOperation(OP, 5000.0))
    with pytest.raises(StaleWriter):
        writer.append(b"x")


# The keeper's own process.


def test_keeper_shares_its_store_itself(shared: KeeperStand) -> None:
    """It is one of the processes: its claims and changes go the same way."""
    one = shared.join()
    own = shared.running.store
    Ears(one, lambda notice: sharing_of(one).release(OP))
    ears = Ears(own)
    writer = begin(one)
    put(one, writer, b"abc")
    sharing_of(own).follow(OP)
    found = own.operation(OP)
    assert found is not None
    assert found.is_elsewhere
    assert is_refused(own, SetLength(OP, 3))
    assert sharing_of(own).claim(OP)
    assert not is_refused(own, SetLength(OP, 3))
    ears.wait_for(Changed(OP))
    sharing_of(one).follow(OP)
    found = one.operation(OP)
    assert found is not None
    assert found.is_elsewhere
    sharing_of(own).tell(OP, b"hello")
    mine = own.open_writer(KEY)
    assert mine.offset == 3
    sharing_of(own).release(OP)
    with pytest.raises(StaleWriter):
        mine.append(b"x")
    with pytest.raises(CallerError):
        sharing_of(own).tell(OP, bytes(5000))


def test_caller_s_mistake_ends_no_commit_of_others(shared: KeeperStand) -> None:
    """It is raised where it was made, and the keeper goes on."""
    one, two = shared.join(), shared.join()
    bad = record("not/an/id")
    with pytest.raises(CallerError):
        one.apply([[CreateOperation(bad)]])
    do(two, CreateOperation(record()))
    assert one.operation(OP) is not None


def test_bug_in_a_question_ends_no_keeper(
    shared: KeeperStand,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The worker gets an error, and the log a traceback."""
    one = shared.join()

    def fail() -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(shared.running.store, "event_count", fail)
    with pytest.raises(StorageError, match="ZeroDivisionError"):
        one.event_count()
    monkeypatch.undo()
    assert one.event_count() == 0
    assert "a bug in answering" in caplog.text


# Slow workers.


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[KeeperStand]:
    """A keeper that waits long for the answer of an owner."""
    stand = KeeperStand(tmp_path, takeover_timeout=PATIENCE)
    yield stand
    stand.close()


def test_worker_that_does_not_read_stalls_nobody(patient: KeeperStand) -> None:
    """It misses notices, is told so, and gets the claim that it has missed."""
    shared = patient
    one, two = shared.join(), shared.join()
    do(one, CreateOperation(record()))
    sock = shared.running.connect(60)
    sock.sendall(wire.greeting_frame(wire.Greeting(pid=60)))
    own = OperationId("operation-2")
    messages: list[wire.Message] = [
        wire.Listen(),
        wire.Follow(OP),
        wire.Apply(1, ((CreateOperation(record(own)),),)),
    ]
    for frame in wire.frames([wire.pack(message) for message in messages]):
        sock.sendall(frame)
    until(lambda: two.operation(own) is not None, "the slow worker's upload")
    worker = shared.running.keeper._workers[3]
    for number in range(keeping.MOST_WAITING // 4096 + 400):
        sharing_of(one).tell(OP, bytes(4096))
        if number % 100 == 0:
            one.operation(OP)  # or what waits in the worker itself would be dropped
    until(lambda: worker._size >= keeping.MOST_WAITING, "nothing waits")
    do(one, SetLength(OP, 3))  # a notice of it is dropped
    claim = threading.Thread(target=lambda: sharing_of(two).claim(own))
    claim.start()
    until(lambda: shared.running.store.ownership._claims, "there is no claim")
    assert two.operation(OP) is not None  # nobody waits for the slow one
    reader = wire.FrameReader()
    heard: list[object] = []
    sock.settimeout(PATIENCE)
    while Missed() not in heard or Claimed(own) not in heard:
        heard += reader.feed(sock.recv(1 << 20))
    told = [message for message in heard if isinstance(message, Told)]
    assert len(told) * 4096 <= keeping.MOST_WAITING + 8192 + 4096 * 400
    for frame in wire.frames([wire.pack(wire.Release(own))]):
        sock.sendall(frame)
    claim.join(PATIENCE)
    for frame in wire.frames([wire.pack(wire.Goodbye())]):
        sock.sendall(frame)
    sock.close()
    assert not is_refused(two, SetLength(own, 3))


def test_many_questions_and_submissions_at_a_time(shared: KeeperStand) -> None:
    """More than the keeper answers at once for one worker; each gets its own answer."""
    one = shared.join()
    wrong: list[str] = []

    def work(number: int) -> None:
        for turn in range(5):
            own = OperationId(f"operation-{number}-{turn}")
            do(one, CreateOperation(record(own)))
            found = one.operation(own)
            if found is None or found.id != own:
                wrong.append(own)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert one.count_operations()[OperationState.RECEIVING] == 300


def test_usage_is_exact_without_a_question(shared: KeeperStand) -> None:
    """The event loop asks it, so it may not wait for the keeper."""
    one, two = shared.join(), shared.join()
    do(one, CreateOperation(record(principal="alice")))
    do(two, CreateOperation(record("operation-2", principal="bob")))
    assert two.usage("alice") == one.usage("bob") == one.usage("alice")
    assert two.usage("alice").open_uploads == 1
    assert two.total_usage().open_uploads == 2
    assert two.usage("carol").bytes == 0


def test_content_of_one_worker_is_read_by_another(shared: KeeperStand) -> None:
    """Also a file, whose content no operation holds any more."""
    one, two = shared.join(), shared.join()
    content = store_content(one, bytes(range(100)))
    assert read_content(two, content) == bytes(range(100))
    from tests.store.helpers import file_record

    do(two, PublishFile(file_record(content=content)))
    do(one, EndOperation(OP, 5000.0))
    collect_all(one)
    found = one.file(None, "a.txt")
    assert found is not None
    assert read_content(one, found.content) == bytes(range(100))


def test_tail_of_a_dead_worker_without_an_upload_is_swept(shared: KeeperStand) -> None:
    """It died between the first byte and the record of its upload."""
    one, two = shared.join(), shared.join()
    assert one.new_writer(KEY).append(b"abc") == []
    tails = shared.data_dir / "tails"
    assert [path.name for path in tails.glob("*.0")] == [f"{KEY}.0"]
    shared.kill(one)
    collect_all(two)
    assert list(tails.glob("*.0")) == []


def test_worker_keeps_as_much_space_free_as_the_keeper(tmp_path: Path) -> None:
    """And it asks the keeper for the reserve that was spent."""
    data_dir = tmp_path / "data"
    store = open_shared_store(data_dir, chunk_size=CHUNK, reserve=4096)
    running = RunningKeeper(store, end_process=None)
    worker = connect_store(running.connect(), data_dir, on_lost=_ignore)
    assert worker._space.held == 4096
    store._space.spend()
    worker._space.is_spent = True
    assert not (data_dir / "reserve").exists()
    writer = begin(worker)
    put(worker, writer, b"abc")
    assert (data_dir / "reserve").stat().st_size == 4096
    assert not worker._space.is_spent
    worker.close()
    running.stop()


def test_full_disk_is_told_to_all(shared: KeeperStand) -> None:
    """A write that failed in one worker; the next ones look again before they write."""
    one, two = shared.join(), shared.join()
    writer = begin(one)
    shared.disk.space = 3
    with pytest.raises(StorageFull):
        writer.append(b"0123456789")
    assert writer.offset == 3
    shared.disk.space = None
    put(one, writer, b"3456789")
    assert one.sealed_content(KEY).length == CHUNK
    until(lambda: two._space.is_limit_hidden, "the other worker does not know")


def test_disk_that_only_reads_does_not_end_the_keeper(
    shared: KeeperStand,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A worker dies, and nothing of it can be removed: the uploads are others' all the same."""
    one, two = shared.join(), shared.join()
    put(one, begin(one), b"abc")
    probe = shared.data_dir / f"{PROBE}{one.pid}"

    def unlink(path: str) -> None:
        if path == str(probe):
            raise OSError(errno.EROFS, "Read-only file system")
        os.unlink(path)

    monkeypatch.setattr(shared.disk, "unlink", unlink)
    shared.kill(one)
    assert "a file of a dead worker stays: " in caplog.text
    assert two.sharing is not None
    assert two.sharing.claim(OP)
    assert two.offset(KEY) == 3
