"""The directory of a real tusd is imported, and its clients go on here."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import pytest

from tests import processes
from tests.e2e.command import Service
from tests.e2e.test_upload_protocols import Foreign, installed
from tests.e2e.tus_uploads import MARK, check_stored, offset_of, request
from tests.processes import environment_of

SIZE = 6_000_000


def create(root: str, length: int, **metadata: str) -> str:
    """A new upload there: its address."""
    packed = ",".join(
        f"{key} {base64.b64encode(value.encode()).decode()}"
        for key, value in metadata.items()
    )
    fields = {"Upload-Length": str(length), "Upload-Metadata": packed}
    response, _ = request("POST", root, MARK | fields)
    assert response.status == 201
    return str(response.getheader("Location"))


def append(url: str, offset: int, data: bytes) -> None:
    fields = {
        "Upload-Offset": str(offset),
        "Content-Type": "application/offset+octet-stream",
    }
    response, _ = request("PATCH", url, MARK | fields, data)
    assert response.status == 204, response.status


@pytest.mark.parametrize("running", [True, False])
def test_uploads_move_from_tusd(
    service: Service, tmp_path: Path, seed: int, running: bool
) -> None:
    """Finished ones are files of the same last segment; unfinished ones go on."""
    content = random.Random(seed).randbytes(SIZE)
    place = tmp_path / "tusd"
    tusd = Foreign(installed("tusd"), place)
    try:
        root = f"http://{tusd.address[0]}:{tusd.address[1]}{tusd.path}"
        whole = create(root, SIZE, filename="whole.bin", filetype="video/mp4")
        append(whole, 0, content)
        half = create(root, SIZE, filename="half.bin", filetype="image/png")
        append(half, 0, content[: SIZE // 2])
        empty = create(root, SIZE)
    finally:
        tusd.close()
    if not running:
        service.stop()
    done = processes.run(
        [
            *("trioresume", "import", "--json", "--from", "tusd"),
            *("--data-dir", str(service.data_dir), str(place)),
        ],
        environment=environment_of(),
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["state"] for row in rows] == ["stored"] * 3
    if not running:
        service.start()
    name = whole.rpartition("/")[2]
    response, body = request("GET", f"{service.root}/files/{name}")
    assert (response.status, body) == (200, content)
    assert response.getheader("Content-Type") == "video/mp4"
    assert "whole.bin" in str(response.getheader("Content-Disposition"))
    for url, stored in ((half, SIZE // 2), (empty, 0)):
        upload = url.rpartition("/")[2][:22]
        here = f"{service.root}/operations/{upload}/content"
        assert offset_of(here) == stored
        append(here, stored, content[stored:])
        assert check_stored(service, here, content)
