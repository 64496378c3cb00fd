"""The client's decisions in tus and RUFH, and between protocols, without any I/O."""

from __future__ import annotations

import pytest

from tests.client.transfers import (
    CONTENT,
    MESSAGE,
    OFFER,
    Facts,
    answered,
    append,
    begun,
    cut,
    transfer,
)
from trioresume.client.decisions.actions import (
    Action,
    Append,
    AskOffset,
    Create,
    Discover,
    FetchMessage,
    Finish,
    Gather,
    Outcome,
    Send,
    Sent,
)
from trioresume.client.decisions.protocol_choice import ProtocolName
from trioresume.client.decisions.transfer import Transfer
from trioresume.errors import TransferFailed, UploadForgotten
from trioresume.protocol.dialects.client import Answer, Locations
from trioresume.protocol.heads import Fields
from trioresume.protocol.ranges import ContentRange

TUS_SHOWN = {"tus-version": "1.0.0", "tus-extension": "creation"}
UPLOAD = Locations(CONTENT)
LOCATED = {"location": str(CONTENT)}


def upload(action: Action, protocol: ProtocolName, **settings: object) -> Transfer:
    """A transfer of *protocol* that is performing *action* on its upload."""
    return begun(action, **{"protocol": protocol, "locations": UPLOAD, **settings})


def test_creation_is_repeated_as_long_as_it_has_no_content() -> None:
    """An upload that nobody fills is nothing; an empty one is all there is of it."""
    made = transfer(protocol="tus")
    assert made.begin() == Create()
    assert made.after(cut()).action == Create()
    assert made.after(answered(500)).action == Create()
    empty = transfer(content=Facts(0), protocol="tus")
    empty.begin()
    assert empty.after(cut(Sent.NOTHING)).action == Create()
    with pytest.raises(TransferFailed, match="may or may not"):
        empty.after(cut(Sent.ALL))


def test_refused_creation_is_the_answer() -> None:
    """Also when patience with a refusal for now is at its end."""
    for outcome, attempts in [(answered(413), 20), (answered(503), 0)]:
        made = transfer(protocol="tus", attempts=attempts)
        made.begin()
        assert outcome.answer is not None
        assert made.after(outcome).action == Finish(outcome.answer)


def test_creation_leads_to_the_content() -> None:
    """Or at once to the end."""
    made = transfer(protocol="tus")
    made.begin()
    made.note_offer(UPLOAD)
    assert made.after(answered(201, LOCATED)).action == append(0)
    empty = transfer(content=Facts(0), protocol="tus")
    empty.begin()
    empty.note_offer(UPLOAD)
    created = answered(201, LOCATED)
    assert created.answer is not None
    assert empty.after(created).action == Finish(created.answer, bare=True)


@pytest.mark.parametrize("status", [403, 404, 410])
def test_tus_upload_that_is_gone_begins_again(status: int) -> None:
    """D7; the old location is dropped."""
    made = upload(AskOffset(CONTENT), "tus")
    assert made.after(answered(status)).action == Create()
    assert made.locations is None


def test_refused_append_of_tus_is_the_answer() -> None:
    """403: it takes no content; asking for the offset is another matter."""
    outcome = answered(403)
    assert outcome.answer is not None
    made = upload(append(0), "tus")
    assert made.after(outcome).action == Finish(outcome.answer)


@pytest.mark.parametrize("status", [423, 460, 500])
def test_trouble_of_tus_asks_for_the_offset(status: int) -> None:
    """Nothing of the append counts, or not all; and it costs budget."""
    made = upload(append(0), "tus", attempts=1)
    assert made.after(answered(status)).action == AskOffset(CONTENT)
    with pytest.raises(TransferFailed, match="used up"):
        made.after(answered(423))


def test_tus_is_over_when_all_is_there() -> None:
    """D5: 204, whose answer gets the location that it lacks."""
    made = upload(append(40), "tus")
    following = made.after(answered(204, {"upload-offset": "100"}, sent=Sent.ALL))
    assert isinstance(following.action, Finish)
    assert following.action.bare
    assert following.action.answer.status == 204
    assert following.action.answer.fields.get("location") == str(CONTENT)


def test_tus_answer_without_an_offset_is_asked_about() -> None:
    """Some proxies drop fields."""
    made = upload(append(40), "tus")
    assert made.after(answered(204)).action == AskOffset(CONTENT)


def test_tus_knows_the_targets_response_if_it_has_an_address() -> None:
    """D8; if that is gone, the upload is still complete."""
    located = Locations(CONTENT, MESSAGE)
    made = upload(append(40), "tus", locations=located)
    done = answered(204, {"upload-offset": "100"}, sent=Sent.ALL)
    assert made.after(done).action == FetchMessage(MESSAGE)
    following = made.after(answered(404))
    assert isinstance(following.action, Finish)
    assert following.action.answer.status == 204


def test_other_length_is_an_error() -> None:
    """It is somebody else's upload."""
    made = upload(AskOffset(CONTENT), "tus")
    with pytest.raises(TransferFailed, match="99 bytes"):
        made.after(answered(200, {"upload-offset": "0", "upload-length": "99"}))


def test_stream_is_gathered_and_its_length_told_in_the_end() -> None:
    """D7: half a window at a time, so that the other half can be filled meanwhile."""
    facts = Facts(None, window=60)
    made = upload(AskOffset(CONTENT), "tus", content=facts)
    deferred = {"upload-offset": "0", "upload-defer-length": "1"}
    following = made.after(answered(200, deferred))
    assert following.action == Gather(CONTENT, 0, 30)
    facts.produced = 30
    piece = Append(CONTENT, ContentRange(0, 29, None), completes=False, declares=True)
    assert made.after(Outcome()).action == piece
    done = answered(204, {"upload-offset": "30"}, sent=Sent.ALL)
    assert made.after(done).action == Gather(CONTENT, 30, 30)
    assert not made.all_sent
    facts.length = 40
    last = Append(CONTENT, ContentRange(30, 39, 40), declares=True)
    assert made.after(Outcome()).action == last
    # Cut: the length may have been told or not.
    assert made.after(cut(Sent.SOME)).action == AskOffset(CONTENT)
    told = {"upload-offset": "35", "upload-length": "40"}
    rest = Append(CONTENT, ContentRange(35, 39, 40))
    assert made.after(answered(200, told)).action == rest


def test_stream_that_ends_where_a_piece_did_only_has_its_end_told() -> None:
    """Without content."""
    facts = Facts(None, window=60)
    made = upload(Gather(CONTENT, 30, 30), "tus", content=facts)
    made.declared_length = False
    facts.length = 30
    end = Append(CONTENT, ContentRange(None, None, 30), declares=True)
    assert made.after(Outcome()).action == end
    done = answered(204, {"upload-offset": "30"}, sent=Sent.ALL)
    assert isinstance(made.after(done).action, Finish)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"upload-offset": "40", "upload-complete": "?0"}, append(40)),
        # C9: reaching the length is not the end.
        (
            {"upload-offset": "100", "upload-complete": "?0"},
            Append(CONTENT, ContentRange(None, None, 100)),
        ),
        (
            {"upload-offset": "100"},
            Append(CONTENT, ContentRange(None, None, 100)),
        ),
        # C11: complete, so the same gets the response again.
        (
            {"upload-offset": "100", "upload-complete": "?1"},
            Append(CONTENT, ContentRange(None, None, 100)),
        ),
    ],
)
def test_offset_of_rufh_decides_what_is_sent_on(
    fields: dict[str, str], expected: Action
) -> None:
    """C6, C8."""
    made = upload(AskOffset(CONTENT), "rufh")
    assert made.after(answered(204, fields)).action == expected


def test_targets_answer_ends_it_in_rufh() -> None:
    """C11: errors included; a bare one is trouble."""
    for status in (200, 403, 503):
        outcome = answered(status, {"upload-complete": "?1"}, sent=Sent.ALL)
        assert outcome.answer is not None
        made = upload(append(40), "rufh")
        assert made.after(outcome).action == Finish(outcome.answer)
    made = upload(append(40), "rufh")
    assert made.after(answered(503)).action == AskOffset(CONTENT)


def test_response_of_rufh_that_is_not_repeated() -> None:
    """What HEAD said has to do, with the upload's location."""
    made = upload(AskOffset(CONTENT), "rufh")
    made.after(answered(204, {"upload-offset": "100", "upload-complete": "?1"}))
    following = made.after(answered(400, {"upload-complete": "?0"}))
    assert isinstance(following.action, Finish)
    assert following.action.bare
    assert following.action.answer.status == 204
    assert following.action.answer.fields.get("location") == str(CONTENT)


def test_cut_response_of_rufh_is_asked_for_again() -> None:
    """C11: by way of the offset."""
    made = upload(append(40), "rufh")
    answer = Answer(200, Fields({"upload-complete": "?1"}))
    following = made.after(cut(Sent.ALL, answer=answer, received=20))
    assert following.action == AskOffset(CONTENT)


def test_creation_that_is_said_to_go_on_goes_on() -> None:
    """C4: a 2xx with ?0 is not the target's."""
    made = transfer(protocol="rufh")
    made.begin()
    made.note_offer(UPLOAD)
    part = answered(201, {"upload-offset": "40", "upload-complete": "?0"})
    assert made.after(part).action == append(40)


def test_what_is_too_large_for_a_request_goes_in_parts() -> None:
    """C13: the limit comes with the refusal; without one it is the answer."""
    made = transfer(protocol="rufh")
    made.begin()
    limited = answered(413, {"upload-limit": "max-append-size=60"})
    assert made.after(limited).action == Create()
    made.note_offer(UPLOAD)
    created = answered(201, {"upload-offset": "0", "upload-complete": "?0"})
    first = Append(CONTENT, ContentRange(0, 59, 100), completes=False)
    assert made.after(created).action == first
    step = answered(204, {"upload-offset": "60", "upload-complete": "?0"})
    assert made.after(step).action == append(60)
    for fields in ({}, {"upload-limit": "max-append-size=100"}):
        made = transfer(protocol="rufh")
        made.begin()
        assert isinstance(made.after(answered(413, fields)).action, Finish)


def test_part_that_is_sent_may_not_have_been_processed() -> None:
    """Only what completes can have been: so it may begin again."""
    part = Append(CONTENT, ContentRange(0, 59, 100), completes=False)
    made = upload(part, "rufh")
    assert made.after(cut(Sent.ALL)).action == AskOffset(CONTENT)
    assert not made.all_sent
    made = upload(append(40), "rufh")
    made.after(cut(Sent.ALL))
    with pytest.raises(UploadForgotten):
        made.after(answered(404))


def test_stream_stops_at_the_104_and_goes_in_parts() -> None:
    """What has left the window could not be sent again."""
    made = transfer(content=Facts(None, window=60), protocol="rufh")
    assert made.begin() == Send()
    made.note_offer(UPLOAD)
    assert not made.note_ready()
    assert made.after(cut()).action == AskOffset(CONTENT)
    seed = transfer(content=Facts(None, window=60))
    seed.begin()
    seed.note_offer(OFFER)
    assert seed.note_ready()


# Which protocol.


def test_server_is_asked_before_content_goes() -> None:
    """Unless it made its offer, or is known."""
    made = transfer(protocol="auto")
    made.begin()
    before = made.wants_discovery
    made.note_offer(OFFER)
    assert (before, made.wants_discovery) == (True, False)
    assert made.note_ready()
    assert not transfer(protocol="auto", known_to_resume=True).wants_discovery


def test_answer_to_the_question_turns_the_request() -> None:
    """It is stopped, and begins again."""
    made = transfer(protocol="auto")
    made.begin()
    made.note_discovery(Answer(200, Fields(TUS_SHOWN)))
    assert not made.note_ready()
    assert made.after(cut()).action == Create()
    assert made.dialect.name == "tus"


def test_answer_that_says_nothing_lets_the_content_go() -> None:
    """Whatever its status; also if the offer came meanwhile."""
    for answer in (None, Answer(404, Fields(TUS_SHOWN)), Answer(200, Fields())):
        made = transfer(protocol="auto")
        made.begin()
        made.note_discovery(answer)
        assert made.note_ready()
    made = transfer(protocol="auto")
    made.begin()
    made.note_offer(OFFER)
    made.note_discovery(Answer(200, Fields(TUS_SHOWN)))
    assert made.note_ready()
    assert made.protocol == "seed"


def test_refusal_leads_to_the_question_and_stands_without_an_answer() -> None:
    """The caller gets what was said first."""
    for last in (cut(), answered(404), answered(200)):
        made = transfer(protocol="auto")
        made.begin()
        refusal = answered(400)
        assert refusal.answer is not None
        assert made.after(refusal).action == Discover()
        assert made.after(last).action == Finish(refusal.answer)
    made = transfer(protocol="auto")
    made.begin()
    made.after(answered(400))
    assert made.after(answered(200, TUS_SHOWN)).action == Create()


def test_refusal_after_content_was_sent_stands() -> None:
    """The server understood well enough to read it."""
    made = transfer(protocol="auto")
    made.begin()
    outcome = answered(400, sent=Sent.ALL)
    assert outcome.answer is not None
    assert made.after(outcome).action == Finish(outcome.answer)


def test_empty_request_that_was_taken_for_all_is_followed_by_a_plain_one() -> None:
    """The server knows nothing of RUFH, whatever it shows."""
    made = transfer("PUT", protocol="rufh")
    made.choice.be_careful()
    assert made.begin() == Create()
    assert made.after(answered(201, {"location": "/other"})).action == Send()
    assert made.protocol == "plain"
    tus = transfer(protocol="tus")
    tus.begin()
    with pytest.raises(TransferFailed, match="where it is"):
        tus.after(answered(201, {"tus-resumable": "1.0.0"}))
