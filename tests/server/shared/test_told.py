"""What the owner of an operation tells other processes, as bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from trioresume import Fields
from trioresume.protocol.operation import OperationState
from trioresume.protocol.progress import MOST_REMARK
from trioresume.server.api.handler import Progress
from trioresume.server.shared.told import Interim, Message, Position, decode, encode
from trioresume.store.port import MOST_TOLD

counts = st.integers(min_value=0, max_value=2**63)
progresses = st.builds(
    Progress, counts, st.none() | counts, st.text(max_size=MOST_REMARK)
)
names = st.from_regex(r"[a-z][a-z-]{0,10}", fullmatch=True)
values = st.text(st.characters(max_codepoint=255), max_size=20)
messages: st.SearchStrategy[Message] = st.one_of(
    progresses,
    st.builds(
        Position,
        st.sampled_from(OperationState),
        counts,
        st.none() | counts,
        st.none() | progresses,
        st.booleans(),
    ),
    st.builds(
        Interim,
        st.integers(min_value=100, max_value=199),
        st.builds(Fields, st.lists(st.tuples(names, values), max_size=4)),
    ),
)


@given(messages)
def test_message_comes_as_it_was_told(message: Message) -> None:
    """Every one of them fits, but for long interim responses."""
    data = encode(message)
    assert data is not None
    assert decode(data) == message


def test_long_remark_is_cut_as_for_any_client() -> None:
    """A client is shown no more of it either."""
    data = encode(Progress(1, 2, "ü" * 10_000))
    assert data is not None
    assert decode(data) == Progress(1, 2, "ü" * MOST_REMARK)


def test_long_interim_response_is_not_told() -> None:
    """What waits for a slow process has a bound."""
    fields = Fields({"link": "x" * MOST_TOLD})
    assert encode(Interim(103, fields)) is None


@pytest.mark.parametrize(
    "told",
    [
        b"",
        b"\xff",
        b"{",
        b"[]",
        b"null",
        b"{}",
        *(
            json.dumps(each).encode()
            for each in (
                {"state": "unheard", "offset": 1, "length": 2},
                {"state": "receiving", "offset": -1, "length": 2},
                {"state": "receiving", "offset": 1.5, "length": 2},
                {"state": "receiving", "offset": True, "length": 2},
                {"state": "receiving", "offset": 1},
                {"state": "receiving", "offset": 1, "length": 2, "progress": [1]},
                {"status": 103, "fields": [["name"]]},
                {"status": "103", "fields": []},
                {"progress": [1, 2]},
                {"progress": "all"},
            )
        ),
    ],
)
def test_what_is_not_understood_is_ignored(told: bytes) -> None:
    """A process of another version may say more, or something else."""
    assert decode(told) is None
