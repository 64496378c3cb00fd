"""tusd, the reference implementation of tus in Go. It speaks drafts of RUFH as well."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from bench.peers.cache import run_logged
from bench.peers.peer import Carrier, Certificate, Launch, Peer
from bench.peers.versions import VERSIONS

__all__ = ["TUSD"]


@dataclass(frozen=True, kw_only=True)
class Tusd(Peer):
    """A static program, built by the Go tool from the module proxy."""

    @property
    def version(self) -> str:
        return VERSIONS["tusd"]

    def install(self, at: Path, log: Path) -> None:
        run_logged(
            ["go", "install", f"github.com/tus/tusd/v2/cmd/tusd@v{self.version}"],
            log,
            environment={"GOBIN": str(at)},
        )

    def launch(self, at: Path, data_dir: Path, port: int) -> Launch:
        return Launch(
            command=(
                *(str(at / "tusd"), "-host", "127.0.0.1", "-port", str(port)),
                *("-base-path", "/files/", "-upload-dir", str(data_dir)),
                "-enable-experimental-protocol",
                *("-verbose=false", "-expose-metrics=false", "-disable-cors"),
            )
        )

    def secure(self, launch: Launch, certificate: Certificate) -> Launch:
        options = (
            *("-tls-certificate", str(certificate.certfile)),
            *("-tls-key", str(certificate.keyfile)),
        )
        return replace(launch, command=(*launch.command, *options))


TUSD = Tusd(
    name="tusd",
    protocols=("tus", "rufh"),
    interop_version=6,
    hashes="none",
    syncs="none",
    settings="file store, file locks, all cores; no metrics or CORS; not verbose, which still logs each request",
    needs=("go",),
    # It refuses HTTP/2 over TLS.
    carriers=(Carrier.PLAIN, Carrier.TLS, Carrier.H2C),
    h2c_options=("-enable-h2c",),
)
