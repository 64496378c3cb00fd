"""``trioresume bench proxy``: is the proxy in front of a server all right?"""

from __future__ import annotations

import json
import textwrap
from urllib.parse import urlsplit

import click
import trio
from rich.console import Console
from rich.text import Text

from trioresume import CallerError, ClientTls
from trioresume.bench import Finding, ProxyChecks, Verdict, check_proxy
from trioresume.cli.help import Command
from trioresume.cli.options import Duration, ExitCode, common_options
from trioresume.cli.output import output
from trioresume.cli.request_options import RequestFields, request_options
from trioresume.cli.tls_options import tls_options
from trioresume.text import printable

__all__ = ["bench_proxy"]

_STYLES = {
    Verdict.PASSED: "green",
    Verdict.LIMITED: "yellow",
    Verdict.FAILED: "bold red",
    Verdict.SKIPPED: "dim",
}


@click.command(
    "bench proxy",
    cls=Command,
    examples=(
        "trioresume bench proxy https://upload.example.org/files/",
        "trioresume bench proxy --silence 2m --token-file token https://upload.example.org/files/",
    ),
)
@common_options
@click.argument("url")
@click.option(
    "--silence",
    type=Duration(minimum=0.1),
    default=10.0,
    help="How long an upload pauses in the check of the proxy's time limits.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object for each check."
)
@request_options
@tls_options
def bench_proxy(
    tls: ClientTls,
    fields: RequestFields,
    url: str,
    silence: float,
    as_json: bool,
) -> ExitCode:
    """Check through URL whether a proxy in front of the server lets uploads resume.

    Each check has a verdict, and says what to change. passed: all is well. limited: uploads
    work, but not in every protocol or size. failed: uploads are refused, or begin again after
    a cut. Nothing is stored. The exit code is 1 if a check failed.
    """
    output.is_report()
    try:
        checks = ProxyChecks(
            url=url,
            headers=fields.for_url(url),
            tls=tls.context() if urlsplit(url).scheme == "https" else None,
            silence=silence,
        )
    except CallerError as exc:
        raise click.UsageError(str(exc)) from exc
    found = trio.run(
        check_proxy, checks, restrict_keyboard_interrupt_to_checkpoints=True
    )
    if as_json:
        for finding in found:
            click.echo(json.dumps(_document(finding)))
    else:
        _show(found)
    failed = any(finding.verdict is Verdict.FAILED for finding in found)
    return ExitCode.FAILED if failed else ExitCode.DONE


def _document(finding: Finding) -> dict[str, str]:
    document = {
        "check": finding.name,
        "verdict": finding.verdict.value,
        "seen": finding.seen,
    }
    return document | ({"cure": finding.cure} if finding.cure else {})


def _show(found: list[Finding]) -> None:
    console = Console(highlight=False)
    indent = max(len(verdict.value) for verdict in Verdict) + 2
    width = max(console.width - indent, 20)
    for finding in found:
        verdict = finding.verdict
        lines = textwrap.wrap(printable(finding.seen), width)
        cure = textwrap.wrap(f"→ {finding.cure}", width) if finding.cure else []
        first = Text(f"{verdict.value:<{indent}}", style=_STYLES[verdict])
        console.print(first.append(lines[0], style="default not bold"), soft_wrap=True)
        for line, style in [(n, "") for n in lines[1:]] + [(n, "bold") for n in cure]:
            console.print(Text(f"{'':{indent}}{line}", style=style), soft_wrap=True)
    failed = sum(finding.verdict is Verdict.FAILED for finding in found)
    limited = sum(finding.verdict is Verdict.LIMITED for finding in found)
    if failed:
        click.echo(
            f"The way to this server is not all right. Checks that failed: {failed}."
        )
    elif limited:
        click.echo(f"Uploads resume. Checks that found a limit: {limited}.")
    else:
        click.echo("The way to this server is all right.")
