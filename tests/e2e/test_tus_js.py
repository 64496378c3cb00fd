"""tus-js-client, the library in Uppy and in most browsers, against the real command.

Without node or npm the tests are skipped, see ``npm``.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import authority
from tests.e2e.carriers import HTTP1_TLS
from tests.e2e.command import Service
from tests.e2e.npm import installed
from tests.e2e.tus_uploads import MARK, check_stored, request

PACKAGE = "tus-js-client@4.3.1"
SCRIPT = Path(__file__).with_name("tus_js.mjs")
CONTENT = os.urandom(3_000_000)
RUN_SECONDS = 30


@pytest.fixture(scope="module")
def package() -> str:
    """The folder that the package is installed in."""
    return str(installed(PACKAGE))


class TusJs:
    """Runs uploads of one file in processes of their own."""

    def __init__(self, package: str, service: Service, folder: Path) -> None:
        self._package = package
        self._service = service
        self.path = folder / "content.bin"
        self.path.write_bytes(CONTENT)
        self._storage = folder / "urls.json"
        self._authorities = folder / "ca.pem"
        authority().cert_pem.write_to_path(str(self._authorities))

    def run(self, *, code: int = 0, **task: Any) -> list[dict[str, Any]]:
        """What the client said on its way; it has to end with exit code *code*."""
        said = {
            "endpoint": f"{self._service.root}/files/",
            "path": str(self.path),
            "storage": str(self._storage),
            **task,
        }
        done = subprocess.run(
            ["node", str(SCRIPT), self._package, json.dumps(said)],
            env={**os.environ, "NODE_EXTRA_CA_CERTS": str(self._authorities)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def client(package: str, shared_service: Service, tmp_path: Path) -> TusJs:
    """A client with a file and a memory of its own."""
    return TusJs(package, shared_service, tmp_path)


def check(service: Service, events: list[dict[str, Any]]) -> None:
    """The upload succeeded, and what it made is what was sent."""
    assert events[-1]["event"] == "success"
    check_stored(service, events[-1]["url"], CONTENT)


@pytest.mark.parametrize("kind", ["bytes", "file"])
def test_whole(client: TusJs, shared_service: Service, kind: str) -> None:
    """D5, D6: POST, then one PATCH."""
    check(shared_service, client.run(kind=kind))


def test_chunked(client: TusJs, shared_service: Service) -> None:
    """D5: a PATCH for each piece, each answered with its offset."""
    events = client.run(options={"chunkSize": 700_000})
    accepted = [e["accepted"] for e in events if e["event"] == "chunk"]
    assert accepted == [700_000, 1_400_000, 2_100_000, 2_800_000, 3_000_000]
    check(shared_service, events)


def test_data_during_creation(client: TusJs, shared_service: Service) -> None:
    """D7: creation-with-upload, whole and in pieces."""
    check(shared_service, client.run(options={"uploadDataDuringCreation": True}))
    pieces = {"uploadDataDuringCreation": True, "chunkSize": 1_000_000}
    check(shared_service, client.run(options=pieces))


@pytest.mark.parametrize("during", [False, True])
def test_deferred_length(client: TusJs, shared_service: Service, during: bool) -> None:
    """D7: a stream whose length shows at its end."""
    options = {
        "uploadLengthDeferred": True,
        "chunkSize": 700_000,
        "uploadDataDuringCreation": during,
    }
    check(shared_service, client.run(kind="stream", options=options))


def test_method_override(client: TusJs, shared_service: Service) -> None:
    """D3: for browsers and proxies that know no PATCH."""
    options = {"overridePatchMethod": True, "chunkSize": 1_000_000}
    check(shared_service, client.run(options=options))


def test_parallel(client: TusJs, shared_service: Service) -> None:
    """D7: four partial uploads at once, then one made of them."""
    options = {"parallelUploads": 4, "metadata": {"filename": "whole.bin"}}
    check(shared_service, client.run(options=options))


def test_terminate(client: TusJs, shared_service: Service) -> None:
    """D7: what was begun is gone."""
    events = client.run(options={"chunkSize": 500_000}, stop=1_000_000, terminate=True)
    assert events[-1]["event"] == "stopped"
    response, _ = request("HEAD", events[-1]["url"], MARK)
    assert response.status == 410


@pytest.mark.parametrize("options", [{"chunkSize": 500_000}, {}])
def test_resume_after_abort(
    client: TusJs, shared_service: Service, options: dict[str, int]
) -> None:
    """D4, D5: between pieces and within one; another process goes on."""
    stop = {"stop": 1_000_000} if options else {"cut": 500_000}
    first = client.run(kind="file", options=options, **stop)
    assert first[-1]["event"] == "stopped"
    second = client.run(kind="file", options=options, resume=True)
    assert second[0] == {"event": "found", "count": 1}
    assert second[-1]["url"] == first[-1]["url"]
    if options:
        assert second[1]["accepted"] == 1_500_000
    check(shared_service, second)


# Its two modes for drafts of Resumable Uploads for HTTP. With data during creation, and
# with node's files, version 4.3 never says that the upload is complete, which those
# drafts demand (C9): there it sends every byte and the upload stays open.

DRAFTS = pytest.mark.parametrize("protocol", ["ietf-draft-03", "ietf-draft-05"])


@DRAFTS
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bytes", {}),
        ("bytes", {"chunkSize": 700_000}),
        ("stream", {"uploadLengthDeferred": True, "chunkSize": 700_000}),
    ],
    ids=["whole", "chunked", "deferred length"],
)
def test_drafts(
    client: TusJs,
    shared_service: Service,
    protocol: str,
    kind: str,
    options: dict[str, Any],
) -> None:
    """C2, C4, C8, C11: interop versions 5 and 6, as this client says them."""
    events = client.run(kind=kind, options={"protocol": protocol, **options})
    check(shared_service, events)


@DRAFTS
@pytest.mark.parametrize("pieces", [{"chunkSize": 700_000}, {}])
def test_drafts_method_override(
    client: TusJs, shared_service: Service, protocol: str, pieces: dict[str, int]
) -> None:
    """D3: the field is taken in these modes as well; also to go on after a cut."""
    options = {"protocol": protocol, "overridePatchMethod": True, **pieces}
    stop = {"stop": 700_000} if pieces else {"cut": 500_000}
    first = client.run(options=options, **stop)
    assert first[-1]["event"] == "stopped"
    second = client.run(options=options, resume=True)
    assert second[-1]["url"] == first[-1]["url"]
    check(shared_service, second)


@DRAFTS
@pytest.mark.parametrize("pieces", [{"chunkSize": 500_000}, {}])
def test_drafts_resume_after_abort(
    client: TusJs, shared_service: Service, protocol: str, pieces: dict[str, int]
) -> None:
    """C6, C8, C11: between pieces and within one; another process asks for the offset."""
    options = {"protocol": protocol, **pieces}
    stop = {"stop": 1_000_000} if pieces else {"cut": 500_000}
    first = client.run(options=options, **stop)
    assert first[-1]["event"] == "stopped"
    second = client.run(options=options, resume=True)
    assert second[0] == {"event": "found", "count": 1}
    assert second[-1]["url"] == first[-1]["url"]
    if pieces:
        assert second[1]["accepted"] == 1_500_000
    check(shared_service, second)


@DRAFTS
def test_drafts_terminate(client: TusJs, protocol: str) -> None:
    """C14: what is terminated is gone."""
    options = {"protocol": protocol, "chunkSize": 500_000}
    events = client.run(options=options, stop=1_000_000, terminate=True)
    assert events[-1]["event"] == "stopped"
    response, _ = request("HEAD", events[-1]["url"], MARK)
    assert response.status == 410


def test_too_large_is_said_and_not_retried(
    package: str, make_service: Any, tmp_path: Path
) -> None:
    """D6: 413."""
    service = make_service("--max-upload-size", "1MiB")
    service.start()
    events = TusJs(package, service, tmp_path).run(code=1)
    assert "413" in events[-1]["message"]


def test_resumes_over_https_after_a_kill(
    package: str, make_service: Any, tmp_path: Path
) -> None:
    """D4, D5: cut within a piece, then the service dies, and another process goes on."""
    service = make_service(*HTTP1_TLS.options(tmp_path))
    service.start()
    client = TusJs(package, service, tmp_path)
    first = client.run(kind="file", cut=500_000)
    assert first[-1]["event"] == "stopped"
    service.kill()
    service.start()
    second = client.run(kind="file", resume=True)
    assert second[-1]["url"] == first[-1]["url"]
    assert second[-1]["url"].startswith("https://")
    check(service, second)
