"""The cause and the cure of each problem, for people.

The documentation shows them, and the server itself, on the page to which ``type`` of a problem
document leads. The code of a problem is the anchor of its section on both pages.
"""

from __future__ import annotations

from html import escape
from typing import NamedTuple

from trioresume.errors import ProblemCode

__all__ = ["HELP", "PAGE", "ProblemHelp", "problem_page"]


class ProblemHelp(NamedTuple):
    """Why a problem comes, and what to do about it, in sentences."""

    cause: str
    cure: str


HELP: dict[str, ProblemHelp] = {
    "malformed-request": ProblemHelp(
        "A field, the target or the framing of the request does not have the form that HTTP or "
        "the protocol asks for. The detail names it.",
        "Correct the client. If the client is right, something between it and the server has "
        "changed the request.",
    ),
    "bad-content-range": ProblemHelp(
        "The patch has no Content-Range or Content-Offset, or one that names no range of bytes.",
        "Send 'Content-Range: bytes FIRST-LAST/LENGTH' in the part of a message/byterange.",
    ),
    "bad-patch": ProblemHelp(
        "The patch document ends too early, or its parts do not have the form of its media type.",
        "Ask for the offset with HEAD: what was whole is kept. Then send a new patch from there.",
    ),
    "inconsistent-length": ProblemHelp(
        "Two statements of the length of the content differ: two fields of one request, or a "
        "field and what was said before.",
        "Send the same length each time. If the file has changed, begin a new upload.",
    ),
    "excess-content": ProblemHelp(
        "More content came than the declared length has room for.",
        "Send no more than the length. If the file has grown, begin a new upload.",
    ),
    "digest-mismatch": ProblemHelp(
        "The content does not have the digest that the client announced, for example in "
        "Repr-Digest.",
        "Begin a new upload. The content changed while it was read, or on the way, or the "
        "digest is of something else.",
    ),
    "append-too-small": ProblemHelp(
        "The request appends less than the server's least size of a part.",
        "Send larger parts. Upload-Limit tells the least size; only the last part may be "
        "smaller. The server's option is --min-append-size.",
    ),
    "completed-upload": ProblemHelp(
        "The upload has all of its content, and the request would append more.",
        "Nothing is missing: fetch the response of the upload instead.",
    ),
    "length-over-limit": ProblemHelp(
        "The declared length is over the limit of the server, or of the rule for this sender.",
        "Send a smaller file, or ask the operator. The server's option is --max-upload-size.",
    ),
    "tls-needed": ProblemHelp(
        "The request came without TLS to a port that speaks TLS.",
        "Use an https:// URL.",
    ),
    "bad-file-name": ProblemHelp(
        "No file can be stored under the name: it is empty, too long, or has characters that "
        "names may not have.",
        "Choose another name, or POST to the folder, so that the server chooses one.",
    ),
    "upload-rejected": ProblemHelp(
        "A program of the operator looked at the upload and refuses it.",
        "The detail has its reason, if it gave one. Ask the operator.",
    ),
    "termination-rejected": ProblemHelp(
        "A program of the operator does not let this upload be deleted.",
        "Ask the operator. The upload goes away by itself when it expires.",
    ),
    "unauthorized": ProblemHelp(
        "The request has no credentials, or ones that the server does not know or that have "
        "expired.",
        "Send credentials as WWW-Authenticate asks for them, such as --token-file or --user of "
        "'trioresume upload'.",
    ),
    "forbidden": ProblemHelp(
        "The server knows who asks, but a rule, a signed address or the origin of a web page "
        "does not allow this.",
        "Ask the operator. For a web page the server's option is --cors-origin.",
    ),
    "not-found": ProblemHelp(
        "Nothing is here. Another sender's upload looks the same as one that does not exist.",
        "Check the address and the credentials. An upload that expired long ago has to begin "
        "again.",
    ),
    "method-not-allowed": ProblemHelp(
        "The method is not allowed at this address.",
        "Use one of the methods in Allow. A POST goes to a folder, a PUT to a name.",
    ),
    "request-timeout": ProblemHelp(
        "The head of the request, or its content, made no progress for too long.",
        "What arrived of a resumable upload is kept: ask for the offset, and go on. The server's "
        "options are --header-timeout, --idle-timeout and --min-body-rate.",
    ),
    "offset-mismatch": ProblemHelp(
        "The request appends at another place than where the content ends. An earlier request "
        "got further, or less far, than the client believes.",
        "Go on from Upload-Offset of the answer.",
    ),
    "upload-complete": ProblemHelp(
        "All content has arrived already, perhaps by a request whose answer was lost.",
        "Fetch the response of the upload instead of sending more.",
    ),
    "superseded": ProblemHelp(
        "A newer request took this upload over, as it should after a cut. This request ends.",
        "If the newer one is yours, ignore this answer. If not, two clients send the same upload: "
        "stop one.",
    ),
    "conflict": ProblemHelp(
        "Something else changed what the request is about, or it is not ready for it.",
        "Look at the present state, and send the request again if it still makes sense.",
    ),
    "gone": ProblemHelp(
        "The upload was deleted, its response was released, or it has expired.",
        "Begin again. The server's options are --incomplete-lifetime and --response-lifetime.",
    ),
    "precondition-failed": ProblemHelp(
        "A condition of the request, such as If-Match or If-None-Match, is not met.",
        "Fetch the present version, and decide again.",
    ),
    "tus-version-not-supported": ProblemHelp(
        "The request names a version of tus that the server does not speak.",
        "Send 'Tus-Resumable: 1.0.0'.",
    ),
    "content-too-large": ProblemHelp(
        "The content of the request or of the upload is over a limit of the server.",
        "Send a smaller file, or smaller parts if Upload-Limit names a size. The server's "
        "options are --max-upload-size and --max-append-size.",
    ),
    "uri-too-long": ProblemHelp(
        "The address in the request is too long.",
        "Use a shorter name or query.",
    ),
    "unsupported-media-type": ProblemHelp(
        "The media type of a patch is not one of the protocol, or a rule does not take files of "
        "this type.",
        "Send the type that Accept-Patch names, or another kind of file.",
    ),
    "range-not-satisfiable": ProblemHelp(
        "The asked range begins behind the end of the content.",
        "Content-Range of the answer has the length. Ask for a range within it.",
    ),
    "expectation-failed": ProblemHelp(
        "Expect names something else than 100-continue.",
        "Leave Expect out, or send 'Expect: 100-continue'.",
    ),
    "range-beyond-length": ProblemHelp(
        "The range of the patch goes beyond the length of the content.",
        "Send only what is within the length.",
    ),
    "too-many-requests": ProblemHelp(
        "The sender, or the address that it comes from, has used up what it may use at a time.",
        "Wait as long as Retry-After says. Behind a proxy, check --trusted-proxy: without it all "
        "clients count as one. The option for addresses is --max-connections-per-address.",
    ),
    "too-many-uploads": ProblemHelp(
        "The sender has as many unfinished uploads as it may have.",
        "Finish or delete some. The server's option is --max-open-uploads-per-principal.",
    ),
    "checksum-mismatch": ProblemHelp(
        "The content of a tus request does not have its checksum. Nothing of the request was "
        "stored.",
        "Send the same part again.",
    ),
    "header-too-large": ProblemHelp(
        "The head of the request is longer than the server reads.",
        "Send fewer or shorter fields. Cookies of the same host are a common reason.",
    ),
    "internal-error": ProblemHelp(
        "The server, its handler or its storage failed.",
        "The operator finds the reason in the server's log. A resumable upload can go on "
        "afterwards.",
    ),
    "hook-failed": ProblemHelp(
        "A program of the operator that has to be asked failed or did not answer.",
        "Try again later. The operator finds the reason in the server's log.",
    ),
    "indeterminate": ProblemHelp(
        "The request was being processed when the server, or the backend behind it, was lost. "
        "Whether it took effect is not known, so it was not repeated.",
        "Check whether it took effect. If not, send the request again. Handlers that declare "
        "themselves idempotent are called again instead.",
    ),
    "not-implemented": ProblemHelp(
        "The request uses a method or a transfer coding that the server does not have.",
        "Use another one.",
    ),
    "bad-gateway": ProblemHelp(
        "The backend behind the server refused the connection, or sent no usable answer.",
        "Try again later. The operator checks --upstream and the backend.",
    ),
    "gateway-timeout": ProblemHelp(
        "The backend behind the server did not answer in time.",
        "Try again later. The server's option is --upstream-timeout.",
    ),
    "service-unavailable": ProblemHelp(
        "The server is at a limit, is shutting down, or cannot reach its storage or its backend.",
        "Wait as long as Retry-After says, and send the request again. Nothing that was announced "
        "is lost.",
    ),
    "version-not-supported": ProblemHelp(
        "The request line names another version of HTTP than 1.0 or 1.1.",
        "Speak HTTP/1.1, or HTTP/2 where the server offers it.",
    ),
    "insufficient-storage": ProblemHelp(
        "The disk of the server is full, or has less space than is to stay free.",
        "The operator makes space ('trioresume gc', --min-free-space). Then the upload goes on.",
    ),
    "quota-exceeded": ProblemHelp(
        "The content would be more than may be stored, in all or for this sender.",
        "Delete files, or ask the operator. The server's options are --max-stored-bytes and "
        "--max-stored-bytes-per-principal.",
    ),
}
"""By code. A test compares it with :class:`~trioresume.errors.ProblemCode`."""

PAGE = "problems"
"""The name of the server's page, below ``Config.operation_path``."""

_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem}"
    "h2{font-size:1.1rem;margin:2rem 0 .3rem;overflow-wrap:anywhere}"
    "code{font-size:1em}section:target{outline:3px solid;outline-offset:.5rem}"
    "dt{font-weight:600}dd{margin:0 0 .4rem}"
)


def problem_page() -> bytes:
    """Return the page that ``type`` of the problem documents leads to, as HTML."""
    sections: list[str] = []
    for code, words in sorted(HELP.items()):
        problems = [problem for problem in ProblemCode if problem.code == code]
        statuses = " or ".join(str(problem.status) for problem in problems)
        sections.append(
            f'<section id="{code}"><h2><code>{code}</code> ({statuses})</h2>'
            f"<p>{escape(problems[0].title)}.</p><dl>"
            f"<dt>Cause</dt><dd>{escape(words.cause)}</dd>"
            f"<dt>Cure</dt><dd>{escape(words.cure)}</dd></dl></section>"
        )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Problems of this server</title><style>{_STYLE}</style></head><body><main>"
        "<h1>Problems</h1><p>The answers of this upload server to requests that fail have one "
        "of these codes. A client may decide by the code, which does not change.</p>"
        f"{''.join(sections)}</main></body></html>\n"
    ).encode()
