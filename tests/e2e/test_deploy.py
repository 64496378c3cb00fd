"""docs/howto/deploy.md, each command of it, as root in a root file system of its own.

A mount namespace has layers over ``/etc``, ``/opt``, ``/usr/local`` and ``/var``, so that all paths are
those of the page and nothing of the machine changes. Users, rights, files, the service as its
own user, TLS, tokens and backups are real. Three things are played: certbot, systemctl (which
starts what the unit says, as systemd would), and the download of the package.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import authority
from tests.e2e.command import free_port
from tests.processes import SOURCE, environment_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/howto/deploy.md").read_text("utf-8")

SYSTEMCTL = '''\
#!{python}
"""systemctl, as far as the page uses it; it starts services as systemd does."""
import os, pwd, re, shlex, signal, socket, subprocess, sys, time
from pathlib import Path

STATE, PORT = Path("{state}"), {port}
UNITS = Path("/etc/systemd/system")


def settings(unit):
    found = re.findall(r"^(\\w+)=(.*)$", (UNITS / unit).read_text(), re.MULTILINE)
    return dict(found)


def drop(name):
    user = pwd.getpwnam(name)
    os.initgroups(name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)


def serve(unit):
    unit = settings(unit)
    assert settings("trioresume.socket")["ListenStream"] == "443"
    listener = socket.create_server(("127.0.0.1", PORT))
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind("\\0{state}/notify")
    manager.settimeout(30)
    if os.fork() == 0:
        os.setsid()
        log = os.open(STATE / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.dup2(listener.fileno(), 3)
        os.set_inheritable(3, True)  # also if it was 3 before
        (STATE / "pid").write_text(str(os.getpid()))
        drop(unit["User"])
        os.chdir(unit["WorkingDirectory"])
        os.umask(int(unit["UMask"], 8))
        environment = dict(os.environ, LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
        environment["NOTIFY_SOCKET"] = "@{state}/notify"
        words = shlex.split(unit["ExecStart"])
        os.execve(words[0], words, environment)
    while b"READY=1" not in manager.recv(65536):
        pass


def hang_up():
    before = (STATE / "log").read_text().count("SIGHUP: the certificates were")
    os.kill(int((STATE / "pid").read_text()), signal.SIGHUP)
    for _ in range(600):
        if (STATE / "log").read_text().count("SIGHUP: the certificates were") > before:
            return
        time.sleep(0.1)
    sys.exit("nothing was read again")


match sys.argv[1:]:
    case ["daemon-reload"]:
        pass
    case ["enable", "--now", "trioresume.socket", "trioresume.service"]:
        serve("trioresume.service")
    case ["enable", "--now", "trioresume-backup.timer"]:
        assert "OnCalendar" in settings("trioresume-backup.timer")
    case ["start", "trioresume-backup.service"]:
        unit = settings("trioresume-backup.service")
        words = shlex.split(unit["ExecStart"])
        subprocess.run(words, preexec_fn=lambda: drop(unit["User"]), check=True, cwd="/")
    case ["reload", "trioresume.service"]:
        hang_up()
    case ["try-reload-or-restart", "trioresume.service"]:
        if (STATE / "pid").exists():
            hang_up()
    case words:
        sys.exit(f"systemctl does not know {{words}}")
'''

NAMESPACE = """\
set -euo pipefail
mount --make-rprivate /
for folder in etc opt usr/local var; do
    mkdir -p "$STATE/layers/$folder/upper" "$STATE/layers/$folder/work"
    mount -t overlay overlay "/$folder" -o \
"lowerdir=/$folder,upperdir=$STATE/layers/$folder/upper,workdir=$STATE/layers/$folder/work"
done
# Let the service's user come to the interpreter, wherever it is.
home=$(eval echo ~)
if [ "${PYTHON_HOME#"$home"/}" != "$PYTHON_HOME" ]; then
    mkdir "$STATE/python"
    mount --bind "$PYTHON_HOME" "$STATE/python"
    mount -t tmpfs -o mode=755 tmpfs "$home"
    mkdir -p "$PYTHON_HOME"
    mount --move "$STATE/python" "$PYTHON_HOME"
fi
# And to the environment and the package, which may be in somebody's own folder.
mkdir "$STATE/environment" "$STATE/source"
mount --bind "$ENVIRONMENT" "$STATE/environment"
mount --bind "$SOURCE" "$STATE/source"
touch "$STATE/is-there"
finish() { if [ -e "$STATE/pid" ]; then kill "$(cat "$STATE/pid")"; fi }
trap finish EXIT
set -x
"""


def _commands() -> Iterator[str]:
    """Each command of the page, in its order."""
    for block in re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            prompt, command = line[:2], line[2:]
            assert prompt in ("# ", "$ "), line
            yield command


def _write_script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root has namespaces"
)
def test_every_command_of_the_page_does_its_work() -> None:
    """From the install to a backup of what was uploaded."""
    for program in ("unshare", "useradd", "curl"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    with tempfile.TemporaryDirectory(prefix="trioresume-") as folder:
        state = Path(folder)
        state.chmod(0o711)
        _run_page(state)


def _run_page(state: Path) -> None:
    tools = state / "tools"
    tools.mkdir(mode=0o755)
    certificate, key = state / "fullchain.pem", state / "privkey.pem"
    leaf = authority().issue_cert("up.example", "127.0.0.1")
    certificate.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(str(key))
    authority().cert_pem.write_to_path(state / "ca.pem")
    port = free_port()
    python = str(state / "environment" / Path(sys.executable).relative_to(sys.prefix))
    _write_script(
        tools / "systemctl", SYSTEMCTL.format(python=python, state=state, port=port)
    )
    live = "/etc/letsencrypt/live/up.example"
    _write_script(
        tools / "certbot",
        '#!/bin/sh\nset -e\ntest "$*" = "certonly --standalone -d up.example"\n'
        f"install -d -m 0700 /etc/letsencrypt/live && mkdir {live}\n"
        f"cp {certificate} {live}/fullchain.pem && cp {key} {live}/privkey.pem\n",
    )
    (state / ".curlrc").write_text(
        f'connect-to = "up.example:443:127.0.0.1:{port}"\ncacert = "{state}/ca.pem"\n'
    )
    work = state / "work"
    work.mkdir()
    (work / "docs").symlink_to(ROOT / "docs")
    (work / "film.mov").write_bytes(os.urandom(5_000_000))
    lines = [NAMESPACE, f"cd {work}"]
    for command in _commands():
        if command.startswith("python3 -m venv "):
            command = "mkdir -p /opt/trioresume/bin"
        elif "/pip install " in command:  # the package under test takes its place
            script = f'#!/bin/sh\\nexec "{python}" -m trioresume "$@"\\n'
            target = "/opt/trioresume/bin/trioresume"
            command = f"printf '{script}' > {target}; chmod 755 {target}"
        elif command.startswith("trioresume upload "):
            # The name has no address here; curl is told of one, and the command is not.
            command = command.replace("up.example", f"127.0.0.1:{port}")
            command += f" --cacert {state}/ca.pem"
        lines.append(command)
    environment = {
        **environment_of(state / "home"),
        "PATH": f"{tools}:/usr/local/bin:{os.environ['PATH']}:/usr/sbin:/sbin",
        "STATE": str(state),
        "CURL_HOME": str(state),
        "ENVIRONMENT": sys.prefix,
        "SOURCE": str(SOURCE),
        "PYTHONPATH": str(state / "source"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHON_HOME": str(Path(sys.base_prefix).resolve()),
    }
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", "\n".join(lines)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if not (state / "is-there").exists():
        pytest.skip(f"this machine has no layers of file systems: {done.stderr}")
    log = (state / "log").read_text() if (state / "log").exists() else ""
    assert done.returncode == 0, f"{done.stderr}\n{done.stdout}\n{log}"
    assert "who may use it: 1 name with a token" in log
    assert " [warning" not in log
    # Listed from the backup, and from the data directory.
    assert len(re.findall(r"^file .* anna +film\.mov$", done.stdout, re.MULTILINE)) == 2
    assert "Damages: 0." in done.stdout
    owners = {
        path.lstat().st_uid
        for path in (state / "layers/var/upper/lib/trioresume").rglob("*")
    }
    assert len(owners) == 1
    assert owners != {0}


def test_logrotate_reads_its_configuration(tmp_path: Path) -> None:
    """Its own check has nothing to say, except that there is no such user here."""
    logrotate = shutil.which("logrotate", path=f"{os.environ['PATH']}:/usr/sbin")
    if logrotate is None:
        pytest.skip("logrotate is not installed (on Debian: apt-get install logrotate)")
    configuration = (ROOT / "docs/deploy/logrotate").read_text()
    file = tmp_path / "logrotate"
    file.write_text(configuration.replace("trioresume trioresume", "root root"))
    file.chmod(0o644)
    done = subprocess.run(
        [logrotate, "--debug", str(file)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr
