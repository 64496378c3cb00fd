"""Decide which answers come from the server, and not from a network in between.

A network between client and server may answer in the server's place: the captive portal
of a hotel or a train, or a company's filter. It answers any method on any URL with a
page and 200, with an empty 204, or with a redirect to its own page. None of these
answers may count as "stored".

The client believes an answer for one of these reasons:

* It has a field that only a server of one of the protocols sends:
  :func:`~trioresume.protocol.dialects.marks.is_marked`.
* An interim response with such a field came before it, in the same exchange.
* It answers a plain request after all content was sent, in a way that RFC 9110 reserves
  for a server that stored it: see :func:`plain_verdict`. If only a validator or a length
  of 0 shows that, a ``HEAD`` on an unused name has to show that nothing is there: see
  :func:`contradicts`.

All other answers of success, all redirects and 511 count as the network's. So do HTML
pages in answer to a request to an upload's own resources: see :func:`is_foreign`. The
client then keeps the upload and tries again later.
"""

from __future__ import annotations

from enum import Enum, auto

from trioresume.client.decisions.actions import Sent
from trioresume.protocol.dialects.client import Answer
from trioresume.protocol.dialects.marks import is_marked, is_page
from trioresume.protocol.fields import maybe_integer, parse_entity_tag

__all__ = [
    "Verdict",
    "confirms",
    "contradicts",
    "has_validator",
    "is_diverted",
    "is_foreign",
    "may_be_foreign",
    "plain_verdict",
    "shows_length",
    "stores_content",
]

_NETWORK_AUTHENTICATION_REQUIRED = 511
"""RFC 6585, section 6: the status for captive portals."""

_TELLS_METHODS_APART = frozenset({401, 403, 405, 501})
"""Answers to HEAD from a server that may still have stored the content."""


def is_diverted(answer: Answer) -> bool:
    """Whether *answer* redirects the client, as portals do."""
    if is_marked(answer):
        return False
    redirected = 300 <= answer.status <= 399 and answer.status != 304
    return redirected or answer.status == _NETWORK_AUTHENTICATION_REQUIRED


def is_foreign(answer: Answer, *, vouched: bool = False) -> bool:
    """Whether *answer*, to a request for an upload's resource, is not the server's.

    *vouched* says that a marked interim response came before it. A refusal without a
    page counts as the server's, because servers also refuse without a mark.
    """
    if vouched or is_marked(answer):
        return False
    return answer.ok or is_diverted(answer) or (is_page(answer) and answer.status < 500)


def may_be_foreign(answer: Answer) -> bool:
    """Whether *answer* ends a request but says nothing about the upload.

    It may come from the network or refuse the credentials. The upload is kept.
    """
    if is_marked(answer) or answer.ok:
        return False
    unauthorised = answer.status in (401, 403, 407)
    return unauthorised or is_diverted(answer) or is_page(answer)


# ------------------------------------------------------------------- plain requests


class Verdict(Enum):
    """What an unmarked answer of success to a plain request shows."""

    STORED = auto()
    """The server has the content."""
    ASK = auto()
    """The server may have the content. A HEAD on the URL will show it."""
    CONTRAST = auto()
    """The server says that it has the content. A HEAD on an unused name will show whether
    it says so of anything.
    """
    DOUBTFUL = auto()
    """Nothing shows that the server has the content."""


def stores_content(method: str, length: int | None) -> bool:
    """Whether the success of such a request means that content is stored."""
    return method in ("PATCH", "POST", "PUT") or length != 0


def plain_verdict(
    method: str, answer: Answer, sent: Sent, length: int | None
) -> Verdict:
    """Return what an unmarked *answer* of success says about a plain request's content.

    A server that answers before it has all content cannot have stored it. Otherwise:

    * a 201 with ``Location`` says what was created (RFC 9110, section 15.3.2);
    * a validator in the answer to a PUT says that the content was stored as it came
      ("MUST NOT send a validator … unless", RFC 9110, section 9.3.4),
      but a portal that serves one file for every request sends that file's validator;
    * any other success of a PUT can be checked, because the content is at the URL now.
    """
    if sent is not Sent.ALL and length != 0:
        return Verdict.DOUBTFUL
    if answer.status == 201 and "location" in answer.fields:
        return Verdict.STORED
    if is_page(answer) or method != "PUT":
        return Verdict.DOUBTFUL
    if not has_validator(answer):
        return Verdict.ASK
    return Verdict.STORED if answer.status == 201 else Verdict.CONTRAST


def confirms(answer: Answer, length: int | None) -> bool:
    """Whether the *answer* to a HEAD shows content of *length* bytes, just stored."""
    if is_marked(answer) and answer.ok:
        return True
    if answer.status in _TELLS_METHODS_APART:
        return not is_page(answer)
    if answer.status != 200 or is_page(answer):
        return False
    stated = maybe_integer(answer.fields.get("content-length"))
    if stated is None or length is None:
        return has_validator(answer)
    return stated == length


def shows_length(answer: Answer, length: int | None) -> bool:
    """Whether *answer* to a HEAD has a length that hardly any other content has."""
    return bool(length) and maybe_integer(answer.fields.get("content-length")) == length


def contradicts(answer: Answer) -> bool:
    """Whether *answer*, to a HEAD on an unused name, claims that content is there.

    If so, the answers do not depend on the name, and prove nothing. A page does not
    count, because some servers answer 200 with a page for any unknown name.
    """
    return answer.ok and not is_page(answer)


def has_validator(answer: Answer) -> bool:
    """Whether *answer* has a validator: an ETag or a date."""
    tag = parse_entity_tag(answer.fields.get("etag") or "")
    return tag is not None or "last-modified" in answer.fields
