"""The client's decisions in the seed, row by row, without any I/O."""

from __future__ import annotations

import pytest

from tests.client.transfers import (
    CONTENT,
    CUT,
    MESSAGE,
    OFFER,
    RECORDED,
    RESULT,
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
    Confirm,
    Contrast,
    FetchMessage,
    FetchResult,
    Finish,
    Send,
    Sent,
)
from trioresume.errors import TransferFailed, UploadForgotten
from trioresume.protocol.dialects.client import Answer, Locations
from trioresume.protocol.heads import Fields
from trioresume.protocol.ranges import ContentRange

# Before the offer.


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_cut_before_content_was_sent_begins_again(method: str) -> None:
    """R3: the target is unchanged, whatever the method."""
    made = transfer(method)
    assert made.begin() == Send()
    assert made.after(cut()).action == Send()


@pytest.mark.parametrize("sent", [Sent.SOME, Sent.ALL])
def test_content_without_an_offer_is_repeated_only_if_idempotent(sent: Sent) -> None:
    """RFC 9110, section 9.2.2: a plain server may have acted on what it got."""
    put = transfer("PUT")
    put.begin()
    assert put.after(cut(sent)).action == Send()
    post = transfer("POST")
    post.begin()
    with pytest.raises(TransferFailed) as caught:
        post.after(cut(sent))
    assert not caught.value.resumable
    assert caught.value.__cause__ is CUT
    allowed = transfer("POST", retry_unsafe=True)
    allowed.begin()
    assert allowed.after(cut(sent)).action == Send()


def test_incomplete_content_is_harmless_where_resuming_is_known() -> None:
    """R3: there, an incomplete request reaches no target; a complete one might."""
    made = transfer(known_to_resume=True)
    made.begin()
    assert made.after(cut(Sent.SOME)).action == Send()
    with pytest.raises(TransferFailed):
        made.after(cut(Sent.ALL))


def test_content_that_is_gone_cannot_begin_again() -> None:
    """An iterable whose first bytes have left the buffer."""
    made = transfer("PUT", Facts(None, base=10))
    made.begin()
    with pytest.raises(TransferFailed):
        made.after(cut(Sent.SOME))


@pytest.mark.parametrize("status", [408, 425, 429, 503])
def test_refusal_for_now_is_tried_again_after_the_delay_asked_for(status: int) -> None:
    """RFC 9110, section 10.2.3: Retry-After is a lower bound."""
    made = transfer()
    made.begin()
    following = made.after(answered(status, {"retry-after": "7"}))
    assert following.action == Send()
    assert 7 <= following.delay <= 8


def test_refusal_for_now_is_the_answer_when_patience_ends() -> None:
    """A 503 is more useful to the caller than an exception."""
    made = transfer(attempts=2)
    made.begin()
    for _ in range(2):
        assert made.after(answered(503)).action == Send()
    last = answered(503)
    assert last.answer is not None
    assert made.after(last).action == Finish(last.answer)


@pytest.mark.parametrize("wish", ["86400", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_too_long_a_wish_is_the_answer_at_once(wish: str) -> None:
    """Trying earlier than the server asked would be refused again."""
    made = transfer()
    made.begin()
    assert isinstance(made.after(answered(429, {"retry-after": wish})).action, Finish)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 500])
def test_final_response_to_the_request_is_the_answer(status: int) -> None:
    """Early or not (R10), and also from a server that knows nothing of resuming."""
    made = transfer()
    made.begin()
    outcome = answered(status)
    assert outcome.answer is not None
    assert made.after(outcome).action == Finish(outcome.answer)


def test_refused_expectation_is_given_up_once() -> None:
    """RFC 9110, section 10.1.1: some servers answer any Expect with a 417."""
    made = transfer()
    made.begin()
    assert made.after(answered(417)).action == Send(expect=False)
    assert made.after(cut()).action == Send(expect=False)
    outcome = answered(417)
    assert outcome.answer is not None
    assert made.after(outcome).action == Finish(outcome.answer)


# After the offer.


def test_cut_after_the_offer_asks_how_much_arrived() -> None:
    """R12: what was handed to a kernel has not arrived."""
    for sent in Sent:
        made = transfer()
        made.begin()
        made.note_offer(OFFER)
        assert made.after(cut(sent)).action == AskOffset(CONTENT)


def test_cut_request_without_content_asks_for_its_response() -> None:
    """R5: there is no content to locate."""
    made = transfer(content=Facts(0))
    made.begin()
    made.note_offer(Locations(None, MESSAGE, RESULT))
    assert made.after(cut(Sent.ALL)).action == FetchMessage(MESSAGE)


def test_offer_without_a_place_for_content_cannot_be_resumed() -> None:
    """Half an offer is told as what it is."""
    made = transfer()
    made.begin()
    made.note_offer(Locations(None, MESSAGE, None))
    with pytest.raises(TransferFailed):
        made.after(cut(Sent.SOME))


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 507])
def test_trouble_after_the_offer_is_not_the_answer(status: int) -> None:
    """A server in passing trouble keeps the operation."""
    made = transfer()
    made.begin()
    made.note_offer(OFFER)
    assert made.after(answered(status)).action == AskOffset(CONTENT)


def test_recorded_error_is_the_answer() -> None:
    """R5, R11: the target's own 503 carries the operation's fields."""
    made = transfer()
    made.begin()
    made.note_offer(OFFER)
    outcome = answered(503, RECORDED, sent=Sent.ALL)
    assert outcome.answer is not None
    assert made.after(outcome).action == Finish(outcome.answer)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"content-length": "0"}, append(0)),
        ({"content-length": "40"}, append(40)),
        ({"upload-offset": "40", "content-length": "0"}, append(40)),
        ({"content-length": "100"}, FetchMessage(MESSAGE)),
        ({"upload-offset": "100", "upload-complete": "?1"}, FetchMessage(MESSAGE)),
        (
            {"upload-offset": "100", "upload-complete": "?0"},
            Append(CONTENT, ContentRange(None, None, 100)),
        ),
    ],
)
def test_offset_decides_what_is_sent_on(
    fields: dict[str, str], expected: Action
) -> None:
    """R12, R15, R18: the rest, the response, or only the end."""
    made = begun(AskOffset(CONTENT))
    assert made.after(answered(200, fields)).action == expected


def test_unknown_length_is_sent_open_ended_and_then_told() -> None:
    """R18: `a-/*` while it is not known, `*/total` when the end is all that is missing."""
    facts = Facts(None)
    made = begun(AskOffset(CONTENT), content=facts)
    made.declared_length = False
    following = made.after(answered(200, {"content-length": "40"}))
    assert following.action == append(40, None)
    facts.length = 90
    incomplete = {"upload-offset": "90", "upload-complete": "?0"}
    following = made.after(answered(204, incomplete, sent=Sent.ALL))
    assert following.action == Append(
        CONTENT, ContentRange(None, None, 90), declares=True
    )
    # The same for a server that says nothing of completeness.
    made = begun(AskOffset(CONTENT), content=facts)
    made.declared_length = False
    following = made.after(answered(200, {"content-length": "90"}))
    assert following.action == Append(
        CONTENT, ContentRange(None, None, 90), declares=True
    )


def test_offset_beyond_the_content_is_an_error() -> None:
    """It is somebody else's upload, or a changed file."""
    made = begun(AskOffset(CONTENT))
    with pytest.raises(TransferFailed, match="101 bytes"):
        made.after(answered(200, {"upload-offset": "101"}))


def test_offset_that_is_no_longer_buffered_is_forgotten() -> None:
    """The window of an iterable has moved on."""
    made = begun(AskOffset(CONTENT), content=Facts(None, base=50))
    with pytest.raises(UploadForgotten):
        made.after(answered(200, {"content-length": "49"}))


@pytest.mark.parametrize("value", ["-1", "1e3", "9999999999999999", "x", ""])
def test_malformed_offset_is_no_offset(value: str) -> None:
    """G6."""
    made = begun(AskOffset(CONTENT))
    with pytest.raises(TransferFailed):
        made.after(answered(200, {"upload-offset": value}))


@pytest.mark.parametrize("status", [401, 403, 405])
def test_unexpected_answer_to_a_question_fails(status: int) -> None:
    """Repeating it would not help."""
    made = begun(AskOffset(CONTENT))
    with pytest.raises(TransferFailed, match=str(status)) as caught:
        made.after(answered(status))
    assert not caught.value.resumable


@pytest.mark.parametrize("action", [AskOffset(CONTENT), append(40)])
@pytest.mark.parametrize("status", [404, 410])
def test_forgotten_upload_starts_over_while_incomplete(
    action: Action, status: int
) -> None:
    """Nothing was processed, so nothing is repeated; the old locations are dropped."""
    made = begun(action)
    sent = Sent.ALL if isinstance(action, Append) else Sent.NOTHING
    assert made.after(answered(status, sent=sent)).action == Send()
    assert made.locations is None


def test_forgotten_upload_that_was_all_sent_is_not_repeated() -> None:
    """R31: it may have been processed, then released or expired."""
    made = begun(AskOffset(CONTENT), all_sent=True)
    with pytest.raises(UploadForgotten):
        made.after(answered(410))
    again = begun(AskOffset(CONTENT), all_sent=True, method="PUT")
    assert again.after(answered(410)).action == Send()


def test_offset_below_the_end_proves_that_not_all_was_sent() -> None:
    """What a kernel took and lost does not count."""
    made = transfer()
    made.begin()
    made.note_offer(OFFER)
    made.after(cut(Sent.ALL))
    made.after(answered(200, {"content-length": "10"}))
    assert made.after(answered(404)).action == Send()


def test_starting_over_is_bounded() -> None:
    """A server that forgets every time is not asked for ever."""
    made = begun(AskOffset(CONTENT))
    for _ in range(3):
        assert made.after(answered(404)).action == Send()
        made.note_offer(OFFER)
        assert made.after(cut(Sent.SOME)).action == AskOffset(CONTENT)
    with pytest.raises(UploadForgotten, match="4 times"):
        made.after(answered(404))


def test_conflict_tells_the_offset() -> None:
    """R16."""
    made = begun(append(40))
    outcome = answered(409, {"upload-offset": "60"}, sent=Sent.SOME)
    assert made.after(outcome).action == append(60)
    made = begun(append(40))
    assert made.after(answered(409)).action == AskOffset(CONTENT)


def test_conflict_after_the_end_fetches_the_response() -> None:
    """R24: the patch came twice."""
    made = begun(append(40))
    fields = {"upload-offset": "100", "upload-complete": "?1"}
    assert made.after(answered(409, fields)).action == FetchMessage(MESSAGE)


def test_conflicts_without_end_use_up_the_budget() -> None:
    """Two clients that fight over one upload do not fight for ever."""
    made = begun(append(40), attempts=5)
    made.acknowledged = 40
    with pytest.raises(TransferFailed):
        for _ in range(6):
            made.after(answered(409, {"upload-offset": "40"}))


def test_completing_patch_brings_the_answer() -> None:
    """R17."""
    made = begun(append(40))
    outcome = answered(201, {"location": "/x", **RECORDED}, sent=Sent.ALL)
    assert outcome.answer is not None
    assert made.after(outcome).action == Finish(outcome.answer)


def test_target_may_answer_409_or_404_itself() -> None:
    """R5: what carries the operation's fields is recorded, and final."""
    for status in (404, 409, 410, 500):
        made = begun(append(40))
        outcome = answered(status, RECORDED, sent=Sent.ALL)
        assert outcome.answer is not None
        assert made.after(outcome).action == Finish(outcome.answer)


def test_cut_patch_asks_again() -> None:
    """Every cut leads to the same question."""
    assert begun(append(40)).after(cut(Sent.ALL)).action == AskOffset(CONTENT)


@pytest.mark.parametrize(
    ("offset", "action"),
    [(0, append(0)), (59, append(59)), (60, append(60)), (61, Send())],
)
def test_only_compared_bytes_of_a_changed_file_are_kept(
    offset: int, action: Action
) -> None:
    """The server may have more of another version than the bytes that were compared."""
    made = begun(AskOffset(CONTENT), proven=60)
    following = made.after(answered(200, {"content-length": str(offset)}))
    assert following.action == action


# The response.


def test_cut_response_that_has_no_address_cannot_be_had_again() -> None:
    """A POST is not sent twice for the rest of its response."""
    made = begun(append(0), locations=Locations(CONTENT), all_sent=True)
    answer = Answer(201, Fields({"content-length": "50", "upload-complete": "?1"}))
    with pytest.raises(TransferFailed, match="cut after 10 bytes"):
        made.after(cut(Sent.ALL, answer=answer, received=10))


def test_recorded_response_ends_the_transfer() -> None:
    """R26."""
    made = begun(FetchMessage(MESSAGE))
    outcome = answered(503, state="message")
    assert outcome.answer is not None
    assert made.after(outcome).action == Finish(outcome.answer)


def test_processing_is_waited_for_without_using_up_the_budget() -> None:
    """R27: a server that says 202 is alive, for as long as it takes."""
    made = begun(FetchMessage(MESSAGE), attempts=1)
    for _ in range(50):
        following = made.after(answered(202, {"retry-after": "3"}, state="processing"))
        assert following.action == FetchMessage(MESSAGE)
        assert following.delay == 3


@pytest.mark.parametrize(
    ("wish", "delay"),
    [
        ("0", 0.2),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.2),
        ("1", 1.0),
        ("600", 600.0),
        ("601", 600.0),
        ("999999999999999", 600.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 600.0),
        ("soon", 1.0),
        ("9" * 400, 1.0),
    ],
)
def test_processing_is_asked_about_neither_at_once_nor_never(
    wish: str, delay: float
) -> None:
    """The question costs no budget, so its delay has bounds of its own."""
    made = begun(FetchMessage(MESSAGE))
    following = made.after(answered(202, {"retry-after": wish}, state="processing"))
    assert following.delay == delay


def test_message_of_an_incomplete_upload_leads_back_to_the_content() -> None:
    """R27: the state says `receiving`."""
    made = begun(FetchMessage(MESSAGE))
    assert made.after(answered(202, state="receiving")).action == AskOffset(CONTENT)


def test_response_that_is_not_a_message_fails() -> None:
    """Something else answers at that address."""
    with pytest.raises(TransferFailed):
        begun(FetchMessage(MESSAGE)).after(answered(200, {"upload-offset": "0"}))


def test_cut_response_is_completed_by_range() -> None:
    """R28: with the validator that the response itself carried."""
    made = begun(append(40))
    said = {"etag": '"v1"', "content-length": "50", **RECORDED}
    answer = Answer(200, Fields(said))
    following = made.after(cut(Sent.ALL, answer=answer, received=20))
    assert following.action == FetchResult(RESULT, 20, '"v1"')
    assert made.after(cut(received=30)).action == FetchResult(RESULT, 30, '"v1"')
    assert made.after(answered(206, received=50)).action == Finish(answer)


@pytest.mark.parametrize(
    ("status", "etag"), [(201, '"v1"'), (200, 'W/"v1"'), (200, "v1")]
)
def test_range_goes_without_a_validator_that_is_not_the_contents(
    status: int, etag: str
) -> None:
    """R28; RFC 9110, section 15.3.2: a 201's ETag is that of what was created."""
    made = begun(append(40))
    answer = Answer(status, Fields({"etag": etag, **RECORDED}))
    following = made.after(cut(Sent.ALL, answer=answer, received=20))
    assert following.action == FetchResult(RESULT, 20, None)


def test_response_cut_at_its_very_end_is_complete() -> None:
    """The Range is unsatisfiable because nothing is missing."""
    made = begun(FetchResult(RESULT, 50, None))
    assert isinstance(made.after(answered(416, received=50)).action, Finish)
    made = begun(FetchResult(RESULT, 40, None))
    assert made.after(answered(416, received=40)).action == FetchMessage(MESSAGE)


def test_result_that_is_gone_is_asked_for_as_a_message() -> None:
    """The message may still be there."""
    made = begun(FetchResult(RESULT, 40, None))
    assert made.after(answered(404, received=40)).action == FetchMessage(MESSAGE)


def test_cut_response_of_a_plain_server() -> None:
    """Asked for again if the method allows it."""
    answer = Answer(200, Fields())
    get = transfer("GET", Facts(0))
    get.begin()
    assert get.after(cut(Sent.ALL, answer=answer, received=5)).action == Send()
    post = transfer("POST", Facts(0))
    post.begin()
    with pytest.raises(TransferFailed):
        post.after(cut(Sent.ALL, answer=answer, received=5))


# Patience.


def test_failures_without_progress_end() -> None:
    """And say that the upload can be resumed."""
    made = begun(AskOffset(CONTENT), attempts=3)
    for _ in range(3):
        made.after(cut())
    with pytest.raises(TransferFailed, match="retries are used up") as caught:
        made.after(cut())
    assert caught.value.resumable
    assert caught.value.__cause__ is CUT


def test_progress_refills_the_budget() -> None:
    """A thousand cuts are survived if each connection brings a byte."""
    made = begun(append(0), attempts=2)
    for offset in range(1, 100):
        assert made.after(cut(Sent.SOME)).action == AskOffset(CONTENT)
        arrived = {"content-length": str(offset)}
        assert made.after(answered(200, arrived)).action == append(offset)


def test_offset_that_does_not_rise_is_no_progress() -> None:
    """Nor is one that falls."""
    made = begun(append(0), attempts=3)
    with pytest.raises(TransferFailed):
        for offset in (10, 10, 9, 10, 10):
            made.after(cut(Sent.SOME))
            made.after(answered(200, {"content-length": str(offset)}))


def test_earlier_run_is_gone_on_with() -> None:
    """The journal's locations are where it begins."""
    assert transfer(locations=OFFER).begin() == AskOffset(CONTENT)


@pytest.mark.parametrize("status", [401, 403, 405, 501])
def test_server_that_knows_no_head_may_have_stored_a_put(status: int) -> None:
    """A refusal of the question is the server's; 501 is one too, and no trouble."""
    made = transfer("PUT")
    made.begin()
    asked = made.after(answered(200, {}, sent=Sent.ALL))
    assert isinstance(asked.action, Confirm)
    assert isinstance(made.after(answered(status)).action, Finish)


@pytest.mark.parametrize(
    ("status", "fields", "stored"),
    [
        (404, {}, True),
        (403, {}, True),
        (501, {}, True),
        (200, {"content-type": "text/html"}, True),
        (200, {}, False),
        (200, {"etag": '"1"'}, False),
        (204, {}, False),
    ],
)
@pytest.mark.parametrize("length", [0, 100])
def test_validator_counts_if_another_name_has_none(
    length: int, status: int, fields: dict[str, str], stored: bool
) -> None:
    """A portal answers a name that nothing is stored under as it answers all."""
    made = transfer("PUT", Facts(length))
    made.begin()
    asked = made.after(answered(200, {"etag": '"1"'}, sent=Sent.ALL))
    assert asked.action == Contrast()
    following = made.after(answered(status, fields)).action
    assert isinstance(following, Finish if stored else Send)


def test_empty_put_is_checked_with_another_name() -> None:
    """A length of 0 is what an empty answer of a portal has, too."""
    made = transfer("PUT", Facts(0))
    made.begin()
    assert made.after(answered(200, {}, sent=Sent.ALL)).action == Confirm()
    there = answered(200, {"content-length": "0"})
    assert made.after(there).action == Contrast()
    assert isinstance(made.after(there).action, Send)


def test_unanswered_contrast_counts_for_a_validator() -> None:
    """A server that speaks of versions, and closes then, is believed."""
    made = transfer("PUT")
    made.begin()
    made.after(answered(200, {"etag": '"1"'}, sent=Sent.ALL))
    assert isinstance(made.after(cut()).action, Finish)


@pytest.mark.parametrize(
    "value",
    [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
    ],
)
@pytest.mark.parametrize("clock", [0.0, 784111770.0, 4e9])
def test_retry_after_as_a_date_is_counted_from_the_answers_date(
    value: str, clock: float
) -> None:
    """RFC 9110, section 10.2.3: a wrong clock on this side changes nothing."""
    fields = {"retry-after": value, "date": "Sun, 06 Nov 1994 08:49:30 GMT"}
    assert Answer(503, Fields(fields)).retry_after(clock) == 7.0
    alone = Answer(503, Fields({"retry-after": value}))
    assert alone.retry_after(784111770.0) == 7.0
    assert alone.retry_after(4e9) == 0.0
