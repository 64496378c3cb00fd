"""The settings of a run. Sizes are in bytes, times in seconds, rates in bytes a second.

Statement numbers such as G6 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from trioresume.bench.records import Bytes, Seconds, WholeBytesPerSecond
from trioresume.errors import CallerError

__all__ = [
    "FaultKind",
    "FaultPlace",
    "Faults",
    "Protocol",
    "Settings",
    "SizeKind",
    "Sizes",
    "Verify",
]

MAX_SIZE = 10**15 - 1
"""The largest upload: 15 digits, as everywhere on the wire (G6)."""


class Protocol(Enum):
    """How an upload is made and resumed."""

    AUTO = "auto"
    """Ask the server which of the other protocols it speaks, in this order."""
    SEED = "seed"
    """``Prefer: resume`` (Partial and Resumable Requests in HTTP)."""
    RUFH = "rufh"
    """Resumable Uploads for HTTP."""
    TUS = "tus"
    """tus 1.0.0."""
    PLAIN = "plain"
    """One PUT or POST. A cut upload begins again."""


class FaultKind(Enum):
    """How the generator ends a connection that it cuts."""

    FIN = "fin"
    """Closed in order: written bytes still arrive."""
    RST = "rst"
    """Reset: bytes on their way are lost."""
    SILENCE = "silence"
    """Left open, and never written to or read from again."""


class FaultPlace(Enum):
    """Where in a request the generator cuts."""

    HEAD = "head"
    """In the middle of the request's head."""
    BODY = "body"
    """Between two bytes of the content."""
    RESPONSE = "response"
    """After the whole request, before reading any of its final response."""


class SizeKind(Enum):
    """How the sizes of uploads are distributed."""

    FIXED = "fixed"
    UNIFORM = "uniform"
    LOGNORMAL = "lognormal"


class Verify(Enum):
    """How the content of finished uploads is checked."""

    AUTO = "auto"
    """By digest if the server lets the content be read back, else by length."""
    DIGEST = "digest"
    """Read back and compared by digest. It is a failure if the server refuses this."""
    LENGTH = "length"
    """Only the length that the server states."""
    NONE = "none"
    """Not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes of uploads, in bytes, between *minimum* and *maximum* inclusive.

    FIXED: always *minimum*. UNIFORM: all sizes are equally likely. LOGNORMAL: with
    *median* and the logarithm's *sigma*, clamped to the bounds.
    """

    kind: SizeKind = SizeKind.FIXED
    minimum: Bytes = 16 << 20
    maximum: Bytes = 16 << 20
    median: Bytes = 0
    sigma: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.maximum <= MAX_SIZE:
            raise CallerError("sizes must be from 0 to 10**15 - 1, the smaller first")
        if self.kind is SizeKind.FIXED and self.minimum != self.maximum:
            raise CallerError("a fixed size has no range")
        if self.kind is SizeKind.LOGNORMAL and not (
            self.median > 0 and 0 <= self.sigma <= 10
        ):
            raise CallerError("lognormal sizes need a median, and a sigma up to 10")


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """The faults that the generator makes on purpose.

    *mean_bytes* is the mean distance between cuts, in bytes sent for one upload; None
    means no cuts. Each cut's kind and place are drawn from *kinds* and *places*. The
    shell runs *kill_command* and *restart_command*. The first ends the server
    *kill_every* seconds after its last start. The second starts it again *down_seconds*
    later.
    """

    mean_bytes: Bytes | None = None
    kinds: tuple[FaultKind, ...] = tuple(FaultKind)
    places: tuple[FaultPlace, ...] = (FaultPlace.BODY,)
    kill_command: str | None = None
    restart_command: str | None = None
    kill_every: Seconds = 10.0
    down_seconds: Seconds = 0.5

    def __post_init__(self) -> None:
        if self.mean_bytes is not None and self.mean_bytes < 1024:
            raise CallerError("cuts must be 1024 bytes apart in the mean, or more")
        if not self.kinds or not self.places:
            raise CallerError("faults need a kind and a place")
        if (self.kill_command is None) != (self.restart_command is None):
            raise CallerError("a server that is killed must be started again")
        if self.kill_every <= 0 or self.down_seconds < 0:
            raise CallerError("the times of kills must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A run: what is uploaded, to which server, how, and with which faults.

    The same *seed* with the same settings draws the same sizes, contents and cuts.
    In *url*, and for PUT behind a final slash, ``{id}`` stands for the upload's
    name. *method* None is POST where the URL ends with a slash and names no
    ``{id}``, else PUT; tus always creates with POST.

    *rate* is the rate of one upload; None means as fast as possible. *think* is how
    long an upload waits after a cut before it continues. After *duration* no upload
    begins, and unfinished uploads are stopped. *idle_timeout* bounds every wait for the
    server. *retries* bounds the consecutive attempts without progress. *chunk* bounds
    the content of one request (tus and rufh). *interop_version* is for rufh; None means
    the protocol without a version. For ``https://``, *cacert* is a PEM file with the
    authorities to trust instead of the system's, and *insecure* trusts any server; *cert*
    and *key* are PEM files with the client's own certificate.

    With *http2* the uploads go over HTTP/2, as streams of shared connections, each with up to
    *streams* uploads at once. To an ``http://`` URL it is spoken without asking ("prior
    knowledge").
    """

    url: str
    protocol: Protocol = Protocol.AUTO
    seed: int = 1
    at_once: int = 16
    total: int = 64
    sizes: Sizes = field(default_factory=Sizes)
    rate: WholeBytesPerSecond | None = None
    faults: Faults = field(default_factory=Faults)
    think: Seconds = 0.0
    duration: Seconds | None = None
    processes: int = 1
    server_pid: int | None = None
    server_pid_file: str | None = None
    idle_timeout: Seconds = 30.0
    retries: int = 10
    method: str | None = None
    headers: tuple[tuple[str, str], ...] = field(default=(), metadata={"secret": True})
    chunk: Bytes | None = None
    interop_version: int | None = 8
    verify: Verify = Verify.AUTO
    cacert: str | None = None
    insecure: bool = False
    cert: str | None = None
    key: str | None = None
    http2: bool = False
    streams: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.total <= 1_000_000 or not 1 <= self.at_once <= 100_000:
            raise CallerError("uploads: 1 to 1,000,000 in all and 1 to 100,000 at once")
        if not 1 <= self.processes <= 256:
            raise CallerError("processes: 1 to 256")
        if not 1 <= self.streams <= 1000:
            raise CallerError("streams: 1 to 1000 on a connection")
        if self.key is not None and self.cert is None:
            raise CallerError("a private key needs the certificate that it belongs to")
        if not 0 <= self.retries <= 1_000_000:
            raise CallerError("retries: 0 to 1,000,000")
        if self.idle_timeout <= 0 or self.think < 0:
            raise CallerError("times must be positive")
        if self.duration is not None and self.duration <= 0:
            raise CallerError("the duration must be positive")
        if self.rate is not None and self.rate < 1:
            raise CallerError("the rate must be a byte a second or more")
        if self.chunk is not None and self.chunk < 1:
            raise CallerError("a chunk has a byte or more")
        if self.interop_version is not None and not 3 <= self.interop_version <= 10:
            raise CallerError("interop versions 3 to 10 are known")
