"""Draw the pictures of the documentation: ``python -m docs.pictures``.

They are SVG, in docs/pictures, and a test compares them with what is drawn here. Each has a
light ground of its own, so that it can be read in a light and in a dark theme, and its text is
text. A picture's title and description tell the same to those who do not see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

DIRECTORY = Path(__file__).parent / "pictures"

INK = "#1b2733"
SOFT = "#5b6875"
LINE = "#8b98a5"
GROUND = "#ffffff"
FILLS = {"own": "#dcebff", "other": "#eef1f4", "store": "#e3f4e1", "bad": "#ffe3dd"}
STROKES = {"own": "#2f6fb8", "other": "#8b98a5", "store": "#4b8f45", "bad": "#b8442f"}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"


class Drawing:
    """An SVG of *width* times *height*, with pieces that are added to it."""

    def __init__(self, width: int, height: int, title: str, description: str) -> None:
        self._width, self._height = width, height
        self._title, self._description = title, description
        self._pieces: list[str] = []

    def box(
        self, x: int, y: int, width: int, height: int, kind: str, *lines: str
    ) -> None:
        """Add a box with lines of text in its middle; the first is bold."""
        self._pieces.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" '
            f'fill="{FILLS[kind]}" stroke="{STROKES[kind]}" stroke-width="1.5"/>'
        )
        top = y + height / 2 - 9 * (len(lines) - 1) + 5
        for number, line in enumerate(lines):
            self.text(
                x + width / 2,
                top + 18 * number,
                line,
                weight=600 if number == 0 else 400,
                size=14 if number == 0 else 12,
            )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        anchor: str = "middle",
        size: int = 13,
        weight: int = 400,
        colour: str = INK,
        mono: bool = False,
    ) -> None:
        """Add a line of text."""
        font = f' font-family="{MONO}"' if mono else ""
        self._pieces.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" '
            f'font-weight="{weight}" fill="{colour}"{font}>{escape(text)}</text>'
        )

    def line(
        self,
        x1: float,
        y1: float,
        x2: float,
        y2: float,
        *,
        colour: str = SOFT,
        dashed: bool = False,
        arrow: bool = True,
        width: float = 1.6,
    ) -> None:
        """Add a line, with an arrow at its end."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        head = ' marker-end="url(#arrow)"' if arrow else ""
        self._pieces.append(
            f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" fill="none" stroke="{colour}" '
            f'stroke-width="{width:g}"{dash}{head}/>'
        )

    def cross(self, x: float, y: float) -> None:
        """Add a cross: here the connection breaks."""
        for dx in (-7, 7):
            self.line(
                x - dx,
                y - 7,
                x + dx,
                y + 7,
                colour=STROKES["bad"],
                arrow=False,
                width=3,
            )

    def svg(self) -> str:
        """The whole drawing."""
        width, height = self._width, self._height
        size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" '
            f'aria-labelledby="title description" font-family="{FONT}">'
        )
        marker = (
            '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" '
            'markerWidth="7" markerHeight="7" orient="auto-start-reverse">'
            f'<path d="M0 0L10 5L0 10z" fill="{SOFT}"/></marker></defs>'
        )
        lines = [
            head,
            f'<title id="title">{escape(self._title)}</title>',
            f'<desc id="description">{escape(self._description)}</desc>',
            marker,
            f'<rect width="{width}" height="{height}" rx="10" fill="{GROUND}"/>',
            *self._pieces,
            "</svg>",
            "",
        ]
        return "\n".join(lines)


def overview() -> str:
    """What trioresume is, in one picture."""
    draw = Drawing(
        780,
        430,
        "trioresume in one picture",
        "Clients send requests over connections that break. trioresume keeps the content and the "
        "answer of each request under an address, and hands the complete request once to a "
        "folder, to your code, or to your backend.",
    )
    draw.text(110, 34, "clients", size=14, weight=600, colour=SOFT)
    clients = (
        ("trioresume upload", "and the Python client"),
        ("browsers", "the upload page, Uppy"),
        ("phones", "URLSession, tus libraries"),
        ("curl, any HTTP client", ""),
    )
    for number, (name, note) in enumerate(clients):
        y = 50 + 88 * number
        draw.box(15, y, 190, 64, "other", *filter(None, (name, note)))
        draw.line(207, y + 32, 296, y + 32, dashed=number in (1, 2))
        if number in (1, 2):
            draw.cross(250, y + 32)
    draw.text(382, 34, "trioresume", size=14, weight=600, colour=STROKES["own"])
    draw.box(
        300,
        50,
        165,
        130,
        "own",
        "each request",
        "has an address",
        "from its first byte",
    )
    draw.box(
        300, 206, 165, 84, "store", "content", "as far as it arrived,", "on the disk"
    )
    draw.box(300, 304, 165, 74, "store", "answer", "kept until read")
    draw.text(662, 34, "gets it once, complete", size=14, weight=600, colour=SOFT)
    targets = (
        ("files in a folder", "trioresume serve"),
        ("your own backend", "--upstream URL"),
        ("your WSGI or ASGI app", "--app module:name"),
        ("your handler, in Python", "trioresume.serve(handler)"),
    )
    for number, (name, note) in enumerate(targets):
        y = 50 + 88 * number
        draw.box(560, y, 205, 64, "other", name, note)
        draw.line(467, y + 32, 557, y + 32)
    draw.text(
        380, 415, "A connection that breaks costs only the bytes that were on their way.",
        size=14, colour=INK,
    )  # fmt: skip
    return draw.svg()


# Sequence diagrams.


@dataclass(frozen=True)
class Message:
    """An arrow from one side to the other: *text*, and smaller *notes* below it."""

    to_server: bool
    text: str
    notes: Sequence[str] = ()
    dashed: bool = False
    cut: bool = False
    """Whether the connection breaks while it is sent."""


@dataclass(frozen=True)
class Remark:
    """What one side does between messages."""

    at_server: bool
    text: str


def ask(text: str, *notes: str, cut: bool = False) -> Message:
    """A request."""
    return Message(True, text, notes, cut=cut)


def answer(text: str, *notes: str, interim: bool = False, cut: bool = False) -> Message:
    """A response."""
    return Message(False, text, notes, dashed=interim, cut=cut)


def sequence(
    title: str,
    description: str,
    steps: Sequence[Message | Remark],
    right: str = "server",
) -> str:
    """A diagram of *steps* between a client and a server."""
    height = 90 + sum(
        58 + 16 * len(s.notes) if isinstance(s, Message) else 44 for s in steps
    )
    width, left_x, right_x = 640, 70, 570
    draw = Drawing(width, height, title, description)
    for x, name in ((left_x, "client"), (right_x, right)):
        draw.box(x - 55, 14, 110, 34, "own" if x == right_x else "other", name)
        draw.line(x, 48, x, height - 16, colour=LINE, arrow=False, dashed=True)
    y = 84
    for step in steps:
        if isinstance(step, Remark):
            x, anchor = (
                (right_x - 12, "end") if step.at_server else (left_x + 12, "start")
            )
            draw.text(
                x, y, step.text, anchor=anchor, colour=STROKES["store"], weight=600
            )
            y += 44
            continue
        start, end = (left_x, right_x) if step.to_server else (right_x, left_x)
        middle = (left_x + right_x) / 2
        draw.text(middle, y, step.text, mono=True)
        if step.cut:
            broken = start + (end - start) * 0.62
            draw.line(start, y + 12, broken, y + 12, arrow=False, dashed=step.dashed)
            draw.cross(broken, y + 12)
        else:
            draw.line(start, y + 12, end, y + 12, dashed=step.dashed)
        for number, note in enumerate(step.notes):
            draw.text(
                middle, y + 30 + 16 * number, note, colour=SOFT, size=12, mono=True
            )
        y += 58 + 16 * len(step.notes)
    return draw.svg()


def seed() -> str:
    """A request with ``Prefer: resume`` that is cut twice."""
    return sequence(
        "A request that is cut twice, in the seed",
        "The client sends PUT with Prefer: resume. A 100 tells three addresses. After a cut HEAD "
        "tells the offset and PATCH sends the rest. After a second cut GET fetches the answer.",
        [
            ask("PUT /files/film.mkv", "Prefer: resume", "Expect: 100-continue"),
            answer(
                "100 Continue",
                "Request-Content-Location: …/content",
                "Response-Message-Location: …/message",
                interim=True,
            ),
            ask("content", cut=True),
            Remark(True, "keeps what arrived"),
            ask("HEAD …/content"),
            answer("200 OK", "Upload-Offset: 7340032"),
            ask("PATCH …/content", "Content-Range: bytes 7340032-19999999/20000000"),
            Remark(True, "processes the request once, records the answer"),
            answer("201 Created", cut=True),
            ask("GET …/message"),
            answer("the same 201 Created, from the record"),
        ],
    )


def rufh() -> str:
    """A request of *Resumable Uploads for HTTP* that is cut."""
    return sequence(
        "A request that is cut, in Resumable Uploads for HTTP",
        "The client sends POST with Upload-Complete. A 104 tells the address of the upload. After "
        "a cut HEAD tells the offset, and PATCH sends the rest and gets the answer.",
        [
            ask(
                "POST /files/", "Upload-Complete: ?1", "Upload-Draft-Interop-Version: 8"
            ),
            answer(
                "104 Upload Resumption Supported", "Location: …/content", interim=True
            ),
            ask("content", cut=True),
            Remark(True, "keeps what arrived"),
            ask("HEAD …/content"),
            answer("204 No Content", "Upload-Offset: 7340032", "Upload-Complete: ?0"),
            ask(
                "PATCH …/content",
                "Upload-Offset: 7340032",
                "Upload-Complete: ?1",
                "Content-Type: application/partial-upload",
            ),
            Remark(True, "processes the request once, records the answer"),
            answer("201 Created", "the answer to the first request"),
        ],
    )


def tus() -> str:
    """An upload with tus that is cut."""
    return sequence(
        "An upload that is cut, in tus",
        "The client makes an upload with POST and sends its content with PATCH. After a cut HEAD "
        "tells the offset, and another PATCH sends the rest.",
        [
            ask("POST /files/", "Tus-Resumable: 1.0.0", "Upload-Length: 20000000"),
            answer("201 Created", "Location: …/content"),
            ask("PATCH …/content", "Upload-Offset: 0", cut=True),
            Remark(True, "keeps what arrived"),
            ask("HEAD …/content"),
            answer("200 OK", "Upload-Offset: 7340032"),
            ask("PATCH …/content", "Upload-Offset: 7340032"),
            answer("204 No Content", "Upload-Offset: 20000000"),
            Remark(True, "stores the file"),
        ],
    )


def takeover() -> str:
    """A new connection takes over from one that is dead and does not know it."""
    return sequence(
        "A new connection takes an upload over",
        "The first connection is dead, but the server cannot know. The second asks for the "
        "offset. The server ends the first at once and answers. A late byte of the first is "
        "refused.",
        [
            ask("PATCH …/content, first connection", "the network goes away without a word", cut=True),
            Remark(True, "still waits for the first connection"),
            ask("HEAD …/content, second connection"),
            Remark(True, "ends the first, makes durable what it sent"),
            answer("200 OK", "Upload-Offset: 7340032"),
            ask("PATCH …/content, second connection", "from 7340032 on"),
            ask("late bytes of the first connection", "409 superseded: they change nothing", cut=True),
            answer("201 Created, second connection"),
        ],
    )  # fmt: skip


def architecture() -> str:
    """The layers, and what crosses them."""
    draw = Drawing(
        760,
        470,
        "The layers of trioresume",
        "Carriers turn connections into exchanges. Routes and uploads decide and act. The store "
        "keeps tails, chunks and the catalog. Targets get complete requests. Hooks are told.",
    )
    draw.box(
        20,
        20,
        720,
        60,
        "other",
        "connections",
        "HTTP/1.1 · HTTP/2 · TLS · Unix sockets · ASGI servers",
    )
    draw.box(
        20,
        110,
        340,
        64,
        "own",
        "carriers",
        "server/http: one exchange for each request",
    )
    draw.box(
        400,
        110,
        340,
        64,
        "own",
        "protocol",
        "without I/O: seed, RUFH, tus, the table of states",
    )
    draw.box(20, 204, 340, 64, "own", "routes", "which code answers a request")
    draw.box(
        400, 204, 340, 64, "own", "uploads", "writer, takeover, completion, expiry"
    )
    draw.box(20, 298, 222, 64, "own", "targets", "files, handler, app, backend")
    draw.box(269, 298, 222, 64, "own", "hooks", "events, told at least once")
    draw.box(518, 298, 222, 64, "own", "async_store", "threads, group commit")
    draw.box(20, 388, 471, 64, "other", "your code, your backend, other programs", "")
    draw.box(518, 388, 222, 64, "store", "store", "tails, chunks, catalog")
    for x1, y1, x2, y2 in (
        (190, 80, 190, 108),
        (190, 174, 190, 202),
        (362, 142, 398, 142),
        (362, 236, 398, 236),
        (570, 204, 570, 176),
        (629, 268, 629, 296),
        (440, 268, 200, 296),
        (520, 268, 400, 296),
        (131, 362, 131, 386),
        (380, 362, 380, 386),
        (629, 362, 629, 386),
    ):
        draw.line(x1, y1, x2, y2)
    return draw.svg()


PICTURES = {
    "overview": overview,
    "sequence-seed": seed,
    "sequence-rufh": rufh,
    "sequence-tus": tus,
    "sequence-takeover": takeover,
    "architecture": architecture,
}


def main() -> None:
    """Draw all pictures."""
    DIRECTORY.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        DIRECTORY.joinpath(f"{name}.svg").write_text(draw(), "utf-8")


if __name__ == "__main__":
    main()
