"""Certificates: chosen by host, read again, and refused with words that say which file is wrong."""

from __future__ import annotations

import datetime as dt
import logging
import ssl
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import authority, client_context, write_server_files
from tests.server.http.tls.pairs import tls_pair
from trioresume import CallerError, Certificate, TLSSettings
from trioresume.server.http.tls.contexts import ServerContexts


def contexts(*certificates: Certificate, **settings: object) -> ServerContexts:
    """The contexts of a server with *certificates*."""
    given = TLSSettings(certificates=certificates, **settings)  # type: ignore[arg-type]
    return ServerContexts(given, ("http/1.1",))


async def names_shown(server: ssl.SSLContext, host: str) -> set[str]:
    """The DNS names of the certificate that a client gets that asks for *host*."""
    client = client_context()
    client.check_hostname = False
    async with tls_pair(server, client, host=host) as (_, theirs):
        decoded: Any = theirs._ssl.getpeercert()
        return {name for kind, name in decoded["subjectAltName"] if kind == "DNS"}


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("one.example", "one.example"),
        ("ONE.Example", "one.example"),
        ("two.example", "two.example"),
        ("a.many.example", "*.many.example"),
        ("a.b.many.example", "one.example"),
        ("many.example", "one.example"),
        ("unknown.example", "one.example"),
    ],
)
async def test_host_gets_its_own_certificate(
    host: str, shown: str, tmp_path: Path
) -> None:
    """A wildcard stands for one label; a host that no certificate names gets the first one."""
    server = contexts(
        *(
            Certificate(*write_server_files(tmp_path, name))
            for name in ("one.example", "two.example", "*.many.example")
        )
    )
    assert await names_shown(server.first, host) == {shown}


async def test_new_certificate_is_shown_after_a_reload(tmp_path: Path) -> None:
    """The files are read again, and a connection that is open keeps on."""
    certfile, keyfile = write_server_files(tmp_path, "old.example")
    server = contexts(Certificate(certfile, keyfile))
    client = client_context()
    client.check_hostname = False
    async with tls_pair(server.first, client) as (ours, theirs):
        new_certfile, new_keyfile = write_server_files(tmp_path, "new.example")
        new_certfile.replace(certfile)
        new_keyfile.replace(keyfile)
        server.reload()
        assert await names_shown(server.first, "x.example") == {"new.example"}
        await theirs.send_all(b"still here")
        await ours.wait_readable()
        assert ours.receive_nowait(memoryview(bytearray(99))) == 10


@pytest.mark.parametrize("broken", ["certificate", "key", "pair", "missing"])
async def test_broken_new_certificate_changes_nothing(
    broken: str, tmp_path: Path
) -> None:
    """The error names the file, and handshakes go on with the certificate that works."""
    certfile, keyfile = write_server_files(tmp_path, "old.example")
    server = contexts(Certificate(certfile, keyfile))
    if broken == "pair":
        write_server_files(tmp_path, "other.example")[1].replace(keyfile)
    elif broken == "missing":
        certfile.unlink()
    else:
        (certfile if broken == "certificate" else keyfile).write_text("no PEM\n")
    with pytest.raises(CallerError, match=r"old\.(pem|key)"):
        server.reload()
    assert await names_shown(server.first, "x.example") == {"old.example"}


@pytest.mark.parametrize("file", ["certfile", "ca_certs"])
def test_file_that_changes_while_it_is_read_changes_nothing(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is read more than once: at SIGHUP this ended the whole service."""
    certfile, keyfile = write_server_files(tmp_path, "old.example")
    ca = tmp_path / "ca.pem"
    authority().cert_pem.write_to_path(ca)
    server = ServerContexts(
        TLSSettings(
            certificates=[Certificate(certfile, keyfile)],
            ca_certs=ca,
            client_auth="optional",
        ),
        ("http/1.1",),
    )
    before = server.first
    changing = certfile if file == "certfile" else ca

    load = ssl.SSLContext.load_verify_locations

    def load_late(context: ssl.SSLContext, cafile: str) -> None:
        """The file is gone when the authorities are read from it."""
        if cafile == str(changing):
            changing.unlink()
        load(context, cafile)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", load_late)
    with pytest.raises(CallerError, match=changing.name):
        server.reload()
    assert server.first is before


async def test_host_name_that_is_not_ascii_fails_quietly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Python would print a traceback for each client that wants it."""
    reported: list[object] = []
    hook, sys.unraisablehook = sys.unraisablehook, reported.append
    try:
        server = contexts(
            *(
                Certificate(*write_server_files(tmp_path, name))
                for name in ("one.example", "two.example")
            )
        )
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = client_context().wrap_bio(back, there, server_hostname="one.example")
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        hello = there.read()
        assert hello.count(b"one.example") == 1
        there.write(hello.replace(b"one.example", b"on\xe9.example"))
        ours = server.first.wrap_bio(there, back, server_side=True)
        with caplog.at_level(logging.DEBUG), pytest.raises(ssl.SSLError):
            ours.do_handshake()
        # Every other error is reported as before.
        another: Any = types.SimpleNamespace(exc_value=ValueError(), object=None)
        sys.unraisablehook(another)
    finally:
        sys.unraisablehook = hook
    assert reported == [another]
    assert "not ASCII" in caplog.text


def test_context_of_the_program_is_left_alone() -> None:
    """It is used as it is, and a reload does not replace it."""
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server = ServerContexts(own, ("http/1.1",))
    server.reload()
    assert server.first is own


def _encrypted(folder: Path, password: str) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import serialization

    certfile, keyfile = write_server_files(folder)
    key = serialization.load_pem_private_key(keyfile.read_bytes(), None)
    keyfile.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password.encode()),
        )
    )
    return certfile, keyfile


def test_encrypted_key_needs_its_password(tmp_path: Path) -> None:
    """Without it nobody is asked at a terminal; a wrong one is told from a missing one."""
    certfile, keyfile = _encrypted(tmp_path, "open sesame")
    contexts(Certificate(certfile, keyfile, "open sesame"))
    with pytest.raises(CallerError, match="is encrypted, and no password"):
        contexts(Certificate(certfile, keyfile))
    with pytest.raises(CallerError, match="does not decrypt"):
        contexts(Certificate(certfile, keyfile, "guess"))


def test_password_is_not_shown() -> None:
    """Neither in a log nor in a traceback."""
    assert "sesame" not in repr(Certificate("a", "b", "sesame"))


def test_expired_certificate_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The service starts: some clients may accept it, and a reload brings a new one."""
    leaf = authority().issue_cert(
        "old.example", not_after=dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    )
    file = tmp_path / "old.pem"
    leaf.private_key_and_cert_chain_pem.write_to_path(file)
    with caplog.at_level(logging.WARNING):
        contexts(Certificate(file))
    assert f"the certificate in {file} has expired" in caplog.text


def test_certificate_that_is_not_for_servers_is_refused(tmp_path: Path) -> None:
    """No client would accept it, so the service does not start with it."""
    file = tmp_path / "authority.pem"
    file.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(CallerError, match=r"authority.pem"):
        contexts(Certificate(file))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"certificates": ()}, "needs a certificate"),
        ({"client_auth": "required"}, "ca_certs"),
        ({"ca_certs": "ca.pem"}, "client_auth"),
        ({"client_auth": "sometimes"}, "client_auth"),
        ({"min_version": "1.1"}, "min_version"),
    ],
)
def test_contradictory_settings_are_refused(
    settings: dict[str, object], words: str
) -> None:
    """When they are made, with a word that names the setting."""
    with pytest.raises(CallerError, match=words):
        TLSSettings(**{"certificates": [Certificate("x.pem")], **settings})  # type: ignore[arg-type]


async def test_oldest_version_is_a_setting(tmp_path: Path) -> None:
    """A client that speaks only TLS 1.2 is refused if 1.3 is the least."""
    server = contexts(Certificate(*write_server_files(tmp_path)), min_version="1.3")
    client = client_context()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.RaisesGroup(ssl.SSLError, allow_unwrapped=True, flatten_subgroups=True):
        async with tls_pair(server.first, client):
            pass


def test_kernel_is_asked_to_encrypt_where_python_can_say_so(tmp_path: Path) -> None:
    """kTLS; renegotiation and ends without an alert are off everywhere."""
    context = contexts(Certificate(*write_server_files(tmp_path))).first
    wanted = getattr(ssl, "OP_ENABLE_KTLS", 0) | ssl.OP_NO_RENEGOTIATION
    assert context.options & wanted == wanted
    assert not context.options & ssl.OP_IGNORE_UNEXPECTED_EOF
