"""The Containerfile and the Kubernetes example, as far as they can be tried without an image.

The steps are read by a library; the files that are copied are built; the command runs with the
variables of the image, and its health check asks it.
"""

from __future__ import annotations

import io
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from dockerfile_parse import DockerfileParser
from kubernetes_validate import validate

from tests.e2e.command import free_port
from tests.processes import environment_of
from trioresume.cli import main

ROOT = Path(__file__).parents[2]
GRACE_SECONDS = 10.0
"""After so much time container runtimes kill."""


def _steps() -> list[tuple[str, str]]:
    """The instructions of the Containerfile and their values."""
    parser = DockerfileParser(fileobj=io.BytesIO())
    parser.content = (ROOT / "Containerfile").read_text()
    steps = [(step["instruction"], step["value"]) for step in parser.structure]
    return [step for step in steps if step[0] != "COMMENT"]


def _final() -> list[tuple[str, str]]:
    """The instructions of the last stage."""
    steps = _steps()
    last = max(n for n, (name, _) in enumerate(steps) if name == "FROM")
    return steps[last:]


def _only(name: str) -> str:
    (value,) = [value for step, value in _final() if step == name]
    return value


def _variables() -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in _only("ENV").split())


def test_image_has_a_user_a_volume_and_no_build_tools() -> None:
    """Everything after USER is done by a number, which a volume keeps."""
    names = [name for name, _ in _final()]
    known = {"FROM", "COPY", "RUN", "ENV", "WORKDIR", "USER", "VOLUME", "EXPOSE"}
    known |= {"STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert set(names) == known
    assert _only("USER") == "10001:10001"
    assert "RUN" not in names[names.index("USER") :]
    assert "apt-get" not in _only("RUN")
    assert "install -d -o 10001 -g 10001 -m 0700 /srv/data" in _only("RUN")
    assert _only("VOLUME") == f"{_only('WORKDIR')}/data"
    assert _only("STOPSIGNAL") == "SIGTERM"
    assert json.loads(_only("ENTRYPOINT")) == ["trioresume"]
    (port,) = re.findall(r":(\d+)$", _variables()["TRIORESUME_SERVE_BIND"])
    assert _only("EXPOSE") == port


def test_shell_of_each_step_is_right() -> None:
    """bash reads it, and an error ends it."""
    for name, value in _steps():
        if name == "RUN":
            subprocess.run(["sh", "-n", "-c", value], check=True, timeout=20)
            assert ";" not in value


def test_files_that_are_copied_are_enough_to_build(tmp_path: Path) -> None:
    """The build stage copies what the wheel needs, and no more."""
    source = tmp_path / "source"
    source.mkdir()
    for name, value in _steps():
        if name != "COPY" or value.startswith("--from"):
            continue
        *files, target = value.split()
        for file in files:
            if (ROOT / file).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "dist", "node_modules")
                shutil.copytree(ROOT / file, source / target, ignore=ignored)
            else:
                shutil.copy(ROOT / file, source / target)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "../out"]
    done = subprocess.run(
        build,
        cwd=source,
        capture_output=True,
        text=True,
        timeout=120,
        env={**environment_of(), "TRIORESUME_BUILD_UI": "0", "PYTHONPATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "out").glob("*.whl")
    assert wheel.stat().st_size > 100_000


def test_command_of_the_image_is_healthy_and_ends_in_time(tmp_path: Path) -> None:
    """With its variables, at other ports; it writes below the volume and nowhere else."""
    port, admin = free_port(), free_port()
    ports = {"8080": str(port), "9090": str(admin)}

    def here(text: str) -> str:
        return re.sub(r"8080|9090", lambda match: ports[match[0]], text)

    commands = tmp_path / "bin"
    commands.mkdir()
    for name, words in (("python", ""), ("trioresume", " -m trioresume")):
        script = commands / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        script.chmod(0o755)
    variables = {name: here(value) for name, value in _variables().items()}
    variables["PATH"] = f"{commands}:{os.environ['PATH']}"
    # The machine's other users must not reach the test.
    bind = variables["TRIORESUME_SERVE_BIND"].replace("0.0.0.0", "127.0.0.1")
    variables["TRIORESUME_SERVE_BIND"] = bind
    environment = {**environment_of(), **variables}
    workdir = tmp_path / "srv"
    workdir.mkdir()
    words = json.loads(_only("ENTRYPOINT")) + json.loads(_only("CMD"))
    check = json.loads(here(_only("HEALTHCHECK").partition("CMD ")[2]))

    def healthy() -> bool:
        done = subprocess.run(
            check, env=environment, capture_output=True, timeout=20, check=False
        )
        return done.returncode == 0

    assert not healthy()
    log = tmp_path / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            words,
            cwd=workdir,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            assert selector.select(60), log.read_text()
        assert process.stdout.readline().startswith("You can now upload files to: ")
        assert healthy(), log.read_text()
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(GRACE_SECONDS) == 0, log.read_text()
        assert time.monotonic() - began < GRACE_SECONDS
    finally:
        process.kill()
        process.communicate()
    assert [path.name for path in workdir.iterdir()] == ["data"]


# Kubernetes.


def _objects() -> list[dict[str, Any]]:
    text = (ROOT / "docs/deploy/kubernetes.yaml").read_text()
    return list(yaml.safe_load_all(text))


@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_kubernetes_accepts_the_example(version: str) -> None:
    """Each object, by the schema of an old and of a new version; nothing unknown."""
    for each in _objects():
        validate(each, version, strict=True)


def test_example_fits_the_image() -> None:
    """User, ports, the place of the data, and options that the command knows."""
    (deployment,) = [each for each in _objects() if each["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    security = pod["securityContext"]
    assert f"{security['runAsUser']}:{security['runAsGroup']}" == _only("USER")
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert _only("VOLUME") in mounts
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert str(ports["http"]) == _only("EXPOSE")
    (admin,) = container["env"]
    assert admin["name"] in _variables()
    assert admin["value"].endswith(f":{ports['admin']}")
    assert pod["terminationGracePeriodSeconds"] >= GRACE_SECONDS
    command, *options = container["args"]
    known = CliRunner().invoke(main, [command, "--help"]).output
    for option in options:
        assert option.partition("=")[0] in known
