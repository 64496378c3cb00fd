"""The wire between a keeper and its workers: every value comes through, nothing else does."""

from __future__ import annotations

from dataclasses import is_dataclass, make_dataclass
from typing import Any, get_args, get_type_hints

import msgpack
import pytest
from hypothesis import given, strategies as st

from trioresume import errors
from trioresume.errors import (
    CallerError,
    StaleWriter,
    StorageConflict,
    StorageError,
    StorageFull,
)
from trioresume.protocol.heads import Fields
from trioresume.protocol.operation import OperationState
from trioresume.store.port import (
    Collected,
    Content,
    ContentKey,
    EventRecord,
    FileRecord,
    JoinContents,
    Mutation,
    Notice,
    OperationId,
    OperationRecord,
    SealChunk,
    SetExpiry,
    SetState,
    Usage,
)
from trioresume.store.port.recipes import AnyRecipe, digest_of
from trioresume.store.remote import wire
from trioresume.store.remote.codec import Codec
from trioresume.store.remote.wire import (
    Apply,
    Ask,
    FrameReader,
    Goodbye,
    Greeting,
    Malformed,
    Message,
    error_from,
    error_of,
    frames,
    greeting_frame,
    pack,
    question,
)

# Plain values as msgpack can hold them.
st.register_type_strategy(int, st.integers(-(2**63), 2**64 - 1))
st.register_type_strategy(str, st.text(st.characters(), max_size=20))
st.register_type_strategy(float, st.floats(allow_nan=False))
TEXT = st.text(st.characters(), max_size=20)
FIELDS = st.builds(Fields, st.lists(st.tuples(TEXT, TEXT), max_size=4))
st.register_type_strategy(Fields, FIELDS)
PARTS = st.lists(
    st.builds(Content, st.integers(0, 2**40), st.none(), st.binary(min_size=1)),
    min_size=1,
    max_size=3,
).map(tuple)
st.register_type_strategy(
    JoinContents, st.builds(JoinContents, st.from_type(OperationId), PARTS)
)
PLAIN = st.none() | st.integers(0, 9) | st.text() | st.binary()
LOOSE: dict[type, st.SearchStrategy[Any]] = {
    Ask: st.builds(Ask, st.integers(0, 2**32), st.text(), st.lists(PLAIN)),
    wire.Answer: st.builds(wire.Answer, st.integers(0, 2**32), PLAIN),
}
"""Messages with a part that only the question unpacks."""


def greeted() -> FrameReader:
    """A reader that has got its greeting."""
    reader = FrameReader()
    assert reader.feed(greeting_frame(Greeting(pid=3))) == [Greeting(pid=3)]
    return reader


def sent(*messages: Message) -> bytes:
    return b"".join(frames([pack(message) for message in messages]))


def received(*messages: Message) -> list[Message | Greeting]:
    return greeted().feed(sent(*messages))


@pytest.mark.parametrize("kind", get_args(Mutation), ids=lambda cls: cls.__name__)
def test_every_mutation_comes_through(kind: type[Any]) -> None:
    """A submission is the same on the other side, whatever its values are."""

    @given(st.from_type(kind))
    def holds(mutation: Mutation) -> None:
        assert received(Apply(1, ((mutation,),))) == [Apply(1, ((mutation,),))]

    holds()


MESSAGES = [kind for kind in get_args(Message) if kind is not Apply]


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda cls: cls.__name__)
def test_every_message_comes_through(kind: type[Any]) -> None:
    """Notices, answers and errors too."""

    @given(LOOSE.get(kind, st.from_type(kind)))
    def holds(message: Message) -> None:
        [found] = received(message)
        if isinstance(message, Ask):
            assert isinstance(found, Ask)
            assert list(found.arguments) == list(message.arguments)
        else:
            assert found == message

    holds()


ANSWERS: dict[str, Any] = {
    "operation": OperationRecord,
    "file": FileRecord,
    "recipe": AnyRecipe,
    "usage": Usage,
    "collect": Collected,
    "due_events": tuple[list[EventRecord], float | None],
    "count_operations": dict[OperationState, int],
    "operations_in": list[OperationRecord],
    "expire_file": list[SetExpiry],
    "expiring": list[tuple[float, str]],
    "claim": bool,
    "sweep": type(None),
    "parts_of": tuple[Content, ...],
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_come_through(name: str) -> None:
    """The answer of a question is unpacked by the type that the question has."""

    @given(st.from_type(ANSWERS[name]))
    def holds(answer: object) -> None:
        [message] = received(wire.Answer(1, answer))
        assert isinstance(message, wire.Answer)
        assert question(name).answer(message.value) == answer

    holds()


def test_arguments_come_through() -> None:
    """Arguments are unpacked by the types of the question's parameters."""
    states = [OperationState.DONE, OperationState.GONE]
    [message] = received(Ask(7, "operations_in", (states, 5, OperationId("a"))))
    assert isinstance(message, Ask)
    asked = question(message.question)
    assert asked.unpack(message.arguments) == [states, 5, "a"]
    seal = SealChunk(ContentKey("a"), 1, digest_of(b"d"), 5)
    [message] = received(Ask(7, "sealed_content", (ContentKey("a"), [seal])))
    assert isinstance(message, Ask)
    assert question(message.question).unpack(message.arguments) == ["a", [seal]]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("operation", []),
        ("operation", [1]),
        ("operation", ["a", "b"]),
        ("operations_in", [["nothing"], 5, None]),
        ("operations_in", ["done", 5, None]),
        ("sealed_content", ["a", [[0]]]),
        ("claim", ["a", 1]),
    ],
)
def test_other_arguments_are_refused(name: str, arguments: list[Any]) -> None:
    """A question is not asked with arguments of another type or number."""
    with pytest.raises(Malformed):
        question(name).unpack(arguments)


@pytest.mark.parametrize("name", ["close", "__class__", "apply", ""])
def test_unknown_question_is_refused(name: str) -> None:
    """Only what the port names can be asked, and no other attribute of the store."""
    with pytest.raises(Malformed):
        question(name)


@given(st.data())
def test_any_split_of_the_bytes_gives_the_same_messages(data: st.DataObject) -> None:
    """A socket may hand out the bytes in any pieces."""
    messages: list[Message] = [
        Apply(1, ((SetState(OperationId("a"), OperationState.DONE),),)),
        wire.Follow(OperationId("b")),
        Goodbye(),
    ]
    stream = greeting_frame(Greeting(number=2)) + sent(*messages) + sent(messages[1])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    reader, found, at = FrameReader(), list[object](), 0
    for end in [*cuts, len(stream)]:
        found += reader.feed(stream[at:end])
        at = end
    assert found == [Greeting(number=2), *messages, messages[1]]
    assert reader.is_between_frames


def test_many_messages_share_a_frame() -> None:
    """A frame is begun anew only when it is full."""
    packed = [pack(wire.Tell(OperationId("a"), bytes(4096)))] * 300
    made = list(frames(packed))
    assert len(made) == 2
    reader = greeted()
    assert sum(len(reader.feed(frame)) for frame in made) == 300
    assert list(frames([])) == []


def test_too_long_a_frame_is_refused_by_its_length() -> None:
    """Its bytes are not waited for."""
    with pytest.raises(Malformed, match="a frame of 67108865 bytes"):
        greeted().feed((wire.MOST_FRAME + 1).to_bytes(4))


def test_too_long_a_message_is_not_sent() -> None:
    """The sender gets the error, and the connection goes on."""
    with pytest.raises(CallerError, match="too long"):
        pack(wire.Tell(OperationId("a"), bytes(wire.MOST_FRAME)))


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1])
def test_number_that_msgpack_cannot_hold_is_not_sent(number: int) -> None:
    """The sender gets the error here, too."""
    with pytest.raises(CallerError, match="int is no value"):
        pack(wire.EpochEnded(number))


def test_object_of_another_kind_is_not_sent() -> None:
    """Only values of the port cross."""
    with pytest.raises(CallerError, match="object is no value"):
        pack(wire.Answer(1, object()))


@pytest.mark.parametrize(
    "payload",
    [
        b"\xc1",  # never used by msgpack
        b"\x93\x01",  # cut
        b"\x90\x90",  # something behind
        b"\x01",  # no array of messages
        b"\x91\x01",  # no message
        b"\x91\x90",  # a message without a tag
        b"\x91\x91\xcc\xff",  # an unknown tag
        b"\x91\x91\xa1a",  # a tag of another type
        b"\xa1\xff",  # no UTF-8
    ],
)
def test_malformed_frames_are_refused(payload: bytes) -> None:
    """Whatever the bytes are, the error says that they are not of the protocol."""
    with pytest.raises(Malformed):
        greeted().feed(len(payload).to_bytes(4) + payload)


@given(st.binary(max_size=60))
def test_no_bytes_do_anything_but_be_refused(payload: bytes) -> None:
    """A message comes out, or :class:`Malformed`: never another exception."""
    try:
        greeted().feed((len(payload) + 1).to_bytes(4) + b"\x91" + payload)
    except Malformed:
        pass


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(0, 60) | st.text() | st.binary(),
        lambda inner: (
            st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=2)
        ),
        max_leaves=12,
    )
)
def test_values_of_other_types_are_refused(value: object) -> None:
    """The same for what is msgpack, and almost a message."""
    payload: bytes = msgpack.packb([value])
    try:
        found = greeted().feed(len(payload).to_bytes(4) + payload)
    except Malformed:
        return
    for message in found:
        assert isinstance(message, get_args(Message))
        for field, hint in get_type_hints(type(message)).items():
            if hint in (int, str, bytes, bool):
                assert type(getattr(message, field)) is hint


@pytest.mark.parametrize("change", [{"trioresume": 0}, {"values": "other"}], ids=str)
def test_other_versions_are_refused_in_the_greeting(change: dict[str, object]) -> None:
    """The error says what to do; no later frame is looked at."""
    found = msgpack.unpackb(greeting_frame(Greeting())[4:]) | change
    packed: bytes = msgpack.packb(found)
    with pytest.raises(Malformed, match="another version of trioresume"):
        FrameReader().feed(len(packed).to_bytes(4) + packed)


@pytest.mark.parametrize(
    "found", [[], {}, {"values": 1}, 5, {"trioresume": None}], ids=repr
)
def test_other_greetings_are_refused(found: object) -> None:
    """Whoever speaks something else is told so."""
    packed: bytes = msgpack.packb(found)
    with pytest.raises(Malformed):
        FrameReader().feed(len(packed).to_bytes(4) + packed)


def test_greeting_of_other_types_is_refused() -> None:
    """The figures in a greeting are checked as well."""
    whole = msgpack.unpackb(greeting_frame(Greeting())[4:])
    packed: bytes = msgpack.packb(whole | {"pid": "1"})
    with pytest.raises(Malformed, match="another type"):
        FrameReader().feed(len(packed).to_bytes(4) + packed)


@given(st.builds(Greeting))
def test_greetings_come_through(greeting: Greeting) -> None:
    """With every figure that the other side must know."""
    assert FrameReader().feed(greeting_frame(greeting)) == [greeting]


ERRORS = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, StorageError | CallerError)
]


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
def test_every_error_of_a_store_comes_through(cls: type[Exception]) -> None:
    """The worker raises what the store in the keeper has raised, with its words."""
    found = error_from(error_of(cls("what happened")))
    assert type(found) is cls
    assert found.args == ("what happened",)


def test_other_errors_become_what_they_are_of() -> None:
    """A subclass that the other side cannot know, and a bug in the keeper."""

    class Special(StorageFull):
        pass

    assert type(error_from(error_of(Special("x")))) is StorageFull
    bug = error_from(error_of(ZeroDivisionError("x")))
    assert type(bug) is StorageError
    assert "ZeroDivisionError" in str(bug)
    assert issubclass(StaleWriter, StorageConflict)
    with pytest.raises(Malformed):
        error_from(wire.Error("KeyboardInterrupt", ()))


def test_fingerprint_tells_other_fields() -> None:
    """Programs with the same names and other fields do not understand each other."""

    def of(*annotations: tuple[str, type]) -> str:
        cls: type = make_dataclass("Thing", annotations)
        return Codec([cls]).fingerprint

    one = of(("a", int), ("b", str))
    assert one == of(("a", int), ("b", str))
    assert len({one, of(("a", int)), of(("b", str), ("a", int)), of(("a", str))}) == 4


@pytest.mark.parametrize("hint", [complex, Content | list[int], set[int], SetState])
def test_types_that_cannot_be_sent_are_refused_at_once(hint: Any) -> None:
    """An error of whoever adds such a field, before any value is there."""
    with pytest.raises(CallerError):
        Codec([Content, Usage]).kind(hint)


@pytest.mark.parametrize(
    "cls",
    [*get_args(Mutation), *get_args(Notice), OperationRecord, FileRecord, EventRecord],
    ids=lambda cls: cls.__name__,
)
def test_table_has_every_value(cls: type[Any]) -> None:
    """Each class that a field can have is in the table, so that it has a tag."""
    assert is_dataclass(cls)
    assert cls in wire._CODEC._tags
