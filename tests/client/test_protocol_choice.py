"""Which dialect a request is made in: the table of ``choice``, row by row."""

from __future__ import annotations

import pytest

from trioresume.client.decisions.protocol_choice import (
    ProtocolChoice,
    ProtocolName,
    place_of,
)
from trioresume.client.journal import dialect_named
from trioresume.errors import CallerError
from trioresume.protocol.dialects.client import Answer, ClientDialect
from trioresume.protocol.dialects.discovery import Discovery
from trioresume.protocol.dialects.rufh.client import NEWEST_RUFH, RufhClient
from trioresume.protocol.dialects.rufh.versions import VERSIONS
from trioresume.protocol.dialects.seed.client import PLAIN, SEED
from trioresume.protocol.dialects.tus.client import TUS
from trioresume.protocol.heads import Fields
from trioresume.protocol.urls import Url

TUS_SHOWN = {
    "tus-version": "0.2.2,1.0.0",
    "tus-extension": "Creation,creation-defer-length",
}
RUFH_SHOWN = {"upload-limit": "max-size=1000"}


class Made:
    """A choice, and what it had remembered."""

    def __init__(
        self,
        protocol: ProtocolName = "auto",
        method: str = "POST",
        length: int | None = 100,
        *,
        known: ClientDialect | None = None,
        begun: ClientDialect | None = None,
    ) -> None:
        self.remembered: list[str] = []
        self.choice = ProtocolChoice(
            protocol,
            method,
            length,
            known=known,
            begun=begun,
            remember=lambda dialect: self.remembered.append(dialect.name),
        )

    @property
    def name(self) -> str:
        return self.choice.dialect.name

    def discover(self, fields: dict[str, str]) -> bool:
        return self.choice.discover(Discovery.of(Fields(fields)))

    def refused(self, status: int = 412, fields: dict[str, str] | None = None) -> str:
        return self.choice.refused(Answer(status, Fields(fields or {})))


@pytest.mark.parametrize(
    ("protocol", "name", "asks"),
    [
        ("auto", "seed", True),
        ("seed", "seed", False),
        ("rufh", "rufh-10", True),
        ("tus", "tus", False),
    ],
)
def test_request_begins_in(protocol: ProtocolName, name: str, asks: bool) -> None:
    """`auto` in the seed, which shows itself; RUFH in the newest version."""
    made = Made(protocol)
    assert (made.name, made.choice.asks) == (name, asks)


def test_tus_begins_by_post_only() -> None:
    """Uploads there are made in a collection."""
    with pytest.raises(CallerError):
        Made("tus", "PUT")


def test_request_without_content_is_not_worth_a_question() -> None:
    """There is nothing that could be resumed."""
    assert not Made(length=0).choice.asks


def test_offer_settles_it() -> None:
    """And is remembered for the place."""
    made = Made()
    made.choice.settle()
    assert not made.choice.asks
    assert made.choice.known_to_resume
    assert made.remembered == ["seed"]
    assert made.refused(412, TUS_SHOWN) == "stands"


def test_offer_ends_the_search_for_a_version_of_rufh() -> None:
    made = Made()
    made.discover(RUFH_SHOWN)
    assert made.choice.searching
    made.choice.settle()
    assert not made.choice.searching


@pytest.mark.parametrize(
    ("method", "shown", "name"),
    [
        ("POST", TUS_SHOWN, "tus"),
        ("POST", {**TUS_SHOWN, **RUFH_SHOWN}, "tus"),
        ("PUT", {**TUS_SHOWN, **RUFH_SHOWN}, "rufh-10"),
        ("POST", RUFH_SHOWN, "rufh-10"),
        ("POST", {**TUS_SHOWN, "tus-version": "0.2.2"}, None),
        ("POST", {**TUS_SHOWN, "tus-extension": "termination"}, None),
        ("PUT", TUS_SHOWN, None),
        ("POST", {}, None),
        # C13: it would get no upload of its own.
        ("PUT", {"upload-limit": "min-size=101"}, None),
    ],
)
def test_what_the_server_shows_decides(
    method: str, shown: dict[str, str], name: str | None
) -> None:
    """tus, then RUFH, then a plain request."""
    made = Made(method=method)
    assert made.discover(shown) == (name is not None)
    assert made.name == (name or "seed")
    assert made.remembered == []
    made.choice.note_plain()
    assert made.remembered == ([] if name else ["plain"])
    assert not made.choice.asks


def test_stream_needs_deferred_lengths_in_tus() -> None:
    """D7."""
    made = Made(length=None)
    assert made.discover(TUS_SHOWN)
    made = Made(length=None)
    assert not made.discover({**TUS_SHOWN, "tus-extension": "creation"})


def test_server_that_does_not_say_is_asked_again_another_time() -> None:
    """Nothing is known of the place."""
    made = Made()
    assert not made.choice.discover(None)
    assert not made.choice.asks
    assert made.remembered == []


@pytest.mark.parametrize("status", [400, 405, 411, 412, 415, 422, 428, 501])
def test_refusal_that_does_not_understand_leads_to_a_question(status: int) -> None:
    """A server of another protocol may answer anything of that kind."""
    assert Made().refused(status) == "ask"
    assert Made(length=0).refused(status) == "stands"
    assert Made("seed").refused(status) == "stands"
    assert Made(known=PLAIN).refused(status) == "stands"


@pytest.mark.parametrize("status", [401, 403, 404, 409, 413, 500, 503])
def test_other_refusals_stand(status: int) -> None:
    """They are about the request, not about its protocol."""
    assert Made().refused(status, {"tus-resumable": "1.0.0"}) == "stands"


@pytest.mark.parametrize("mark", ["tus-resumable", "tus-version"])
@pytest.mark.parametrize("length", [0, 100, None])
def test_refusal_with_a_mark_of_tus_says_enough(mark: str, length: int | None) -> None:
    """D1; not for a method that tus does not begin with."""
    made = Made(length=length)
    assert made.refused(412, {mark: "1.0.0"}) == "turned"
    assert made.name == "tus"
    assert not made.choice.asks
    assert made.refused(412, {mark: "1.0.0"}) == "stands"
    assert Made(method="PUT").refused(412, {mark: "1.0.0"}) == "ask"


def test_rufh_is_refused_down_to_the_oldest_version() -> None:
    """Then the refusal is the answer."""
    made = Made("rufh")
    names = [made.name]
    while made.refused() == "turned":
        names.append(made.name)
    assert names == [f"rufh-{number}" for number in range(10, 2, -1)]


@pytest.mark.parametrize(
    "fields",
    [
        {"upload-draft-interop-version": "10"},
        {"upload-complete": "?0"},
        {"upload-offset": "0"},
    ],
)
def test_refusal_in_rufh_s_words_is_about_the_request(fields: dict[str, str]) -> None:
    """The version is known there."""
    assert Made("rufh").refused(400, fields) == "stands"


def test_rufh_without_104s_goes_down_and_then_makes_uploads_first() -> None:
    """C4: nobody refused anything, so the newest is as good as any."""
    made = Made("rufh")
    assert made.discover(RUFH_SHOWN)
    names = [made.name]
    while not made.choice.dialect.careful:
        assert made.choice.turn_unoffered()
        names.append(made.name)
    assert names == [*(f"rufh-{number}" for number in range(9, 2, -1)), "rufh-10"]


def test_version_that_was_not_refused_is_the_one() -> None:
    """Whoever refuses 9 and not 10 knows 10; only its 104 was lost."""
    made = Made()
    made.discover(RUFH_SHOWN)
    assert made.choice.turn_unoffered()
    assert (made.name, made.choice.dialect.careful) == ("rufh-9", False)
    assert made.refused() == "turned"
    assert (made.name, made.choice.dialect.careful) == ("rufh-10", True)
    assert made.refused() == "stands"


def test_rufh_that_shows_nothing_is_a_plain_request() -> None:
    """As it stands, and for the place."""
    made = Made("rufh")
    assert not made.discover({})
    assert not made.choice.turn_unoffered()
    made.choice.note_plain()
    assert (made.name, made.remembered) == ("rufh-10", ["plain"])
    known = Made("rufh", known=PLAIN)
    assert (known.name, known.choice.asks) == ("rufh-10", False)
    assert not known.choice.known_to_resume


def test_empty_request_that_was_taken_for_all_ends_the_search() -> None:
    """The server knows nothing of RUFH, whatever it shows."""
    made = Made("rufh")
    made.discover(RUFH_SHOWN)
    made.choice.give_up()
    made.choice.note_plain()
    assert (made.name, made.remembered) == ("plain", ["plain"])
    assert not made.choice.turn_unoffered()


def test_what_is_known_of_the_place_is_spoken() -> None:
    """Without a question."""
    for known in (TUS, NEWEST_RUFH.carefully(), SEED):
        made = Made(known=known)
        assert made.choice.dialect is known
        assert not made.choice.asks
        assert made.choice.known_to_resume
    assert not Made(known=PLAIN).choice.known_to_resume


def test_upload_goes_on_in_the_dialect_it_was_begun_in() -> None:
    """Whatever else is known; if it is gone, everything is open again."""
    made = Made(known=SEED, begun=TUS)
    assert (made.choice.dialect, made.choice.asks) == (TUS, False)
    made.choice.forget()
    assert (made.choice.dialect, made.choice.asks) == (SEED, True)
    named = Made("tus", begun=TUS)
    named.choice.forget()
    assert (named.choice.dialect, named.choice.asks) == (TUS, False)


def test_place_is_origin_method_and_folder() -> None:
    """Files of one folder are taken by the same part of a server."""

    def place(method: str, url: str) -> object:
        return place_of(method, Url.parse(url))

    assert place("PUT", "http://a/x/1?q=/") == place("PUT", "http://a/x/2")
    assert place("PUT", "http://a/x/1") != place("POST", "http://a/x/1")
    assert place("PUT", "http://a/x/1") != place("PUT", "http://a/y/1")
    assert place("PUT", "http://a/x/1") != place("PUT", "http://a:81/x/1")


def test_names_tell_dialects_apart() -> None:
    """What a journal has leads back to the same version."""
    for name in ("seed", "tus", *(f"rufh-{number}" for number in VERSIONS)):
        found = dialect_named(name)
        assert found is not None
        assert found.name == name
    rufh = dialect_named("rufh-6")
    assert isinstance(rufh, RufhClient)
    assert rufh.version.number == 6
    for unknown in ("plain", "rufh-11", "rufh", "", None, 3):
        assert dialect_named(unknown) is None
