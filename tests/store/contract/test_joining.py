"""The port's contract for contents joined from others, over every implementation (D7)."""

from __future__ import annotations

import pytest

from tests.store.helpers import (
    CHUNK,
    KEY,
    OP,
    Stand,
    begin,
    collect_all,
    conflicts,
    do,
    file_record,
    put,
    read_content,
    read_from,
    record,
    response,
    store_content,
)
from trioresume.errors import CallerError, ContentLost, StaleWriter
from trioresume.store.port import (
    Content,
    CreateOperation,
    EndOperation,
    JoinContents,
    OperationId,
    PublishFile,
    RecordResponse,
    RemoveFile,
    Store,
)

JOINED = OperationId("joined")
LATER = 9e9
# Of all lengths around a chunk's: in the middle of a join no chunk is full.
PARTS = [b"", b"a", b"bcdefgh", b"ijklmnop", b"qrstuvwxy" + b"z" * 20]


def store_parts(store: Store, parts: list[bytes]) -> tuple[Content, ...]:
    return tuple(
        store_content(store, data, f"part{index}") for index, data in enumerate(parts)
    )


def join(store: Store, *parts: Content, id: OperationId = JOINED) -> Content:
    mutation = JoinContents(id, parts)
    do(store, CreateOperation(record(id)), mutation)
    return mutation.content


def end_parts(store: Store, count: int) -> None:
    do(store, *[EndOperation(OperationId(f"part{i}"), LATER) for i in range(count)])


def test_joined_content_is_its_parts_in_their_order(stand: Stand) -> None:
    """D7: order kept, unequal boundaries, and not a byte more on disk."""
    parts = store_parts(stand.store, PARTS)
    stored = stand.stored_bytes()
    content = join(stand.store, *reversed(parts))
    assert read_content(stand.store, content) == b"".join(reversed(PARTS))
    assert stand.stored_bytes() == stored
    found = stand.store.operation(JOINED)
    assert found is not None
    assert found.content == content
    assert found.durable_offset == content.length == len(b"".join(PARTS))


def test_a_part_may_repeat(stand: Stand) -> None:
    """D7: it is held as often as it is listed, and let go as often."""
    one, two = store_parts(stand.store, [b"once", b"twice, and over a chunk"])
    content = join(stand.store, two, one, two)
    again = join(stand.store, two, two, id=OperationId("again"))
    end_parts(stand.store, 2)
    collect_all(stand.store)
    twice = b"twice, and over a chunk"
    assert read_content(stand.store, content) == twice + b"once" + twice
    do(stand.store, EndOperation(JOINED, LATER))
    collect_all(stand.store)
    assert read_content(stand.store, again) == twice * 2
    do(stand.store, EndOperation(OperationId("again"), LATER))
    collect_all(stand.store)
    assert stand.stored_bytes() == 0


def test_parts_live_on_in_what_was_joined(stand: Stand) -> None:
    """Terminating the parts takes nothing from the whole, through restarts."""
    parts = store_parts(stand.store, PARTS)
    content = join(stand.store, *parts)
    end_parts(stand.store, len(PARTS))
    collect_all(stand.store, limit=1)
    stand.restart(power_loss=True)
    collect_all(stand.store)
    assert read_content(stand.store, content) == b"".join(PARTS)
    do(stand.store, EndOperation(JOINED, LATER))
    collect_all(stand.store)
    assert stand.stored_bytes() == 0


def test_a_file_holds_what_was_joined(stand: Stand) -> None:
    """It is content like any other: published, recorded, released."""
    parts = store_parts(stand.store, PARTS[2:])
    content = join(stand.store, *parts)
    do(
        stand.store,
        PublishFile(file_record(content=content)),
        RecordResponse(JOINED, response(), LATER, keep_content=False),
    )
    end_parts(stand.store, len(parts))
    collect_all(stand.store)
    assert read_content(stand.store, content) == b"".join(PARTS)[1:]
    do(stand.store, RemoveFile(None, "a.txt"))
    collect_all(stand.store)
    assert stand.stored_bytes() == 0


def test_reads_of_joined_content_start_anywhere(stand: Stand) -> None:
    """A Range may begin and end in any part; a read is short only at a chunk's end."""
    content = join(stand.store, *store_parts(stand.store, PARTS))
    whole = b"".join(PARTS)
    reader = stand.store.open_reader(content)
    for offset in range(len(whole) + 2):
        for size in (0, 1, CHUNK, 100):
            data = reader.read(offset, size)
            assert data == whole[offset : offset + len(data)]
            assert bool(data) == (size > 0 and offset < len(whole))
            assert len(data) <= size
    reader.close()
    assert read_from(stand.store.open_reader(content), 3) == whole[3:]


@pytest.mark.parametrize("parts", [[b""], [b"", b""], [b"x"], [b"", b"x", b""]])
def test_what_needs_no_joining_is_the_part_itself(
    stand: Stand, parts: list[bytes]
) -> None:
    """Empty parts add nothing, and a single one keeps its name."""
    stored = store_parts(stand.store, parts)
    content = join(stand.store, *stored)
    assert content in stored
    assert read_content(stand.store, content) == b"".join(parts)


def test_the_same_join_is_one_content(stand: Stand) -> None:
    """Equal parts in equal order have one name, which is held twice."""
    parts = store_parts(stand.store, PARTS)
    one = join(stand.store, *parts)
    two = join(stand.store, *parts, id=OperationId("again"))
    assert one == two
    assert one != join(stand.store, *parts[::-1], id=OperationId("other-way"))
    do(stand.store, EndOperation(JOINED, LATER))
    end_parts(stand.store, len(PARTS))
    collect_all(stand.store)
    assert read_content(stand.store, two) == b"".join(PARTS)


@pytest.mark.parametrize("steps", range(1, 12))
def test_joined_again_while_it_is_collected(stand: Stand, steps: int) -> None:
    """A joined recipe that comes back half dismantled holds all its parts again."""
    parts = store_parts(stand.store, PARTS)
    join(stand.store, *parts)
    do(stand.store, EndOperation(JOINED, LATER))
    for _ in range(steps):
        stand.store.collect(1)
    content = join(stand.store, *parts, id=OperationId("again"))
    end_parts(stand.store, len(PARTS))
    collect_all(stand.store, limit=1)
    assert read_content(stand.store, content) == b"".join(PARTS)
    do(stand.store, EndOperation(OperationId("again"), LATER))
    collect_all(stand.store, limit=1)
    assert stand.stored_bytes() == 0


def test_a_reader_spares_the_parts(stand: Stand) -> None:
    """Collection takes neither the join nor its parts while they are being read."""
    content = join(stand.store, *store_parts(stand.store, PARTS))
    reader = stand.store.open_reader(content)
    do(stand.store, EndOperation(JOINED, LATER))
    end_parts(stand.store, len(PARTS))
    collect_all(stand.store)
    assert read_from(reader) == b"".join(PARTS)
    collect_all(stand.store)
    assert stand.stored_bytes() == 0
    with pytest.raises(ContentLost):
        stand.store.open_reader(content)


def test_a_part_that_was_released_is_a_conflict(stand: Stand) -> None:
    """Then nothing of the submission is done."""
    one, two = store_parts(stand.store, [b"one", b"two"])
    end_parts(stand.store, 1)
    collect_all(stand.store)
    join_both = JoinContents(JOINED, (two, one))
    assert conflicts(stand.store, CreateOperation(record(JOINED)), join_both)
    assert stand.store.operation(JOINED) is None
    assert read_content(stand.store, two) == b"two"
    end_parts(stand.store, 2)
    collect_all(stand.store)
    assert stand.stored_bytes() == 0


def test_joined_content_cannot_be_joined_further(stand: Stand) -> None:
    """Recipes are two levels deep and no deeper; alone it is merely shared."""
    one, two = store_parts(stand.store, [b"one", b"two"])
    content = join(stand.store, one, two)
    do(stand.store, CreateOperation(record(OP)))
    assert conflicts(stand.store, JoinContents(OP, (content, one)))
    do(stand.store, JoinContents(OP, (content,)))
    assert read_content(stand.store, content) == b"onetwo"


def test_joining_drops_what_was_under_construction(stand: Stand) -> None:
    """The operation's writer becomes stale, its bytes go."""
    parts = store_parts(stand.store, [b"one", b"two"])
    writer = begin(stand.store)
    put(stand.store, writer, b"x" * (2 * CHUNK + 1))
    do(stand.store, JoinContents(OP, parts))
    with pytest.raises(StaleWriter):
        writer.append(b"late")
    collect_all(stand.store)
    assert stand.stored_bytes() == 6
    assert stand.store.offset(KEY) == 6


def test_joining_for_an_operation_that_ended_does_nothing(stand: Stand) -> None:
    """As every mutation of one; and its content, once there, does not change."""
    one, two = store_parts(stand.store, [b"one", b"two"])
    content = join(stand.store, one, two)
    do(stand.store, JoinContents(JOINED, (one,)))
    found = stand.store.operation(JOINED)
    assert found is not None
    assert found.content == content
    do(stand.store, EndOperation(JOINED, LATER), JoinContents(JOINED, (one, two)))
    do(stand.store, JoinContents(OperationId("unknown"), (one, two)))
    end_parts(stand.store, 2)
    collect_all(stand.store)
    assert stand.stored_bytes() == 0


def test_only_frozen_contents_are_joined() -> None:
    """Inline bytes have no recipe to refer to."""
    for parts in [(), (Content(1, inline=b"x"),)]:
        with pytest.raises(CallerError):
            JoinContents(JOINED, parts)


def test_what_was_joined_is_released_part_by_part(stand: Stand) -> None:
    """D7: the cost is the number of parts: no chunk of a part is let go with it."""
    big = bytes(range(256)) * 30
    part = store_content(stand.store, big, "part0")
    collect_all(stand.store)
    content = join(stand.store, part, part)
    do(stand.store, EndOperation(JOINED, LATER))
    done = collect_all(stand.store)
    assert (done.recipes, done.chunks) == (1, 0)
    assert content.length == 2 * len(big)
    assert read_content(stand.store, part) == big
