"""An id that is all the credential of its operation does not stand in a log."""

from __future__ import annotations

import pytest

from trioresume.server.uploads.locations import concealed, opened_id
from trioresume.store.port import OperationId, request_key, response_key

OWN = OperationId("abcdefghij0123456789-A")
OPEN = opened_id(OWN)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (OPEN, "abcdefghij..."),
        (request_key(OPEN), "abcdefghij..."),
        (response_key(OPEN), "abcdefghij....r"),
        (f"/operations/{OPEN}/content", "/operations/abcdefghij.../content"),
        (f"/up/operations/{OPEN}", "/up/operations/abcdefghij..."),
        (OWN, OWN),
        (f"/operations/{OWN}/content", f"/operations/{OWN}/content"),
        (f"/files/x{OPEN}", f"/files/x{OPEN}"),
        ("", ""),
    ],
)
def test_half_of_an_open_id_is_left_out(text: str, shown: str) -> None:
    assert concealed(text) == shown
