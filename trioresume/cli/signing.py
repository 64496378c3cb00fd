"""``trioresume sign`` and ``trioresume signing-key``: addresses that are their own credential."""

from __future__ import annotations

from pathlib import Path

import click

import trioresume
from trioresume.cli.help import Command
from trioresume.cli.options import Duration, Size, common_options

__all__ = ["sign", "signing_key"]


@click.command(
    cls=Command,
    examples=(
        "trioresume sign https://up.example.com/files/ --key-file signing-keys --max-size 1GiB",
        "trioresume sign https://up.example.com/files/a.pdf --key-file signing-keys --method GET",
    ),
)
@common_options
@click.argument("url")
@click.option(
    "--key-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help="File of the keys of 'trioresume serve --signing-keys'. The first one signs.",
)
@click.option(
    "--method",
    type=click.Choice(["POST", "PUT", "GET"]),
    default="POST",
    help="Method that is allowed: POST or PUT for uploads, GET for downloads.",
)
@click.option(
    "--expires",
    type=Duration(minimum=1),
    default=3600.0,
    help="How long the address can be used. An upload that has begun may go on after that.",
)
@click.option(
    "--max-size",
    type=Size(),
    help="Largest upload to allow. [default: the limit of the service]",
)
@click.option(
    "--media-type",
    metavar="TYPE",
    help="Media type that the content must have, such as image/png or image/*.",
)
@click.option(
    "--principal",
    metavar="NAME",
    default="",
    help="Name for which the upload counts, and to which its file belongs; for a download: "
    "the owner of the file.",
)
@click.option(
    "--prefix",
    is_flag=True,
    help="Allow every path that begins with that of URL, which ends with a slash.",
)
def sign(
    url: str,
    key_file: Path,
    method: str,
    expires: float,
    max_size: int | None,
    media_type: str | None,
    principal: str,
    prefix: bool,
) -> None:
    """Print URL with a signature, for clients that have no other credential.

    Keep the address secret until it expires: everybody who has it can use it, any number of
    times.
    """
    try:
        key = trioresume.SigningKey.read(key_file)[0]
        if method != "GET":
            signed = trioresume.sign_upload(
                url,
                key,
                method=method,
                expires_in=expires,
                prefix=prefix,
                max_size=max_size,
                media_type=media_type,
                principal=principal,
            )
        elif max_size is not None or media_type is not None:
            raise click.UsageError("--max-size and --media-type are for uploads")
        else:
            signed = trioresume.sign_download(
                url, key, expires_in=expires, prefix=prefix, principal=principal
            )
    except trioresume.CallerError as exc:
        raise click.UsageError(str(exc)) from exc
    except OSError as exc:
        raise click.UsageError(f"{key_file} cannot be read: {exc.strerror}") from exc
    click.echo(signed)


@click.command(cls=Command, examples=("trioresume signing-key 2026-11 > signing-keys",))
@common_options
@click.argument("id")
def signing_key(id: str) -> None:
    """Print a new key for signed addresses, with the name ID.

    It is a line for the file of 'trioresume serve --signing-keys'. To replace a key, put the
    new one before the old one, and remove the old one when its last address has expired.
    """
    click.echo(trioresume.SigningKey.new(id).line)
