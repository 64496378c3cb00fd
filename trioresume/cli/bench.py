"""``trioresume bench``: measure a server with uploads that are cut and resumed."""

from __future__ import annotations

import re
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import click
import trio
from rich.console import Console

from trioresume.bench import (
    FaultKind,
    FaultPlace,
    Faults,
    Protocol,
    Quantity,
    Results,
    Settings,
    SizeKind,
    Sizes,
    Snapshot,
    Threshold,
    Verify,
    run,
    to_json,
)
from trioresume.bench.report import (
    figure_text,
    html_page,
    print_results,
    require_plotly,
    watching,
)
from trioresume.cli.help import Command
from trioresume.cli.options import (
    Duration,
    ExitCode,
    SecretFile,
    Size,
    common_options,
)
from trioresume.cli.output import output
from trioresume.cli.request_options import HeaderLines
from trioresume.cli.sections import BENCH
from trioresume.errors import CallerError, TrioresumeError

__all__ = ["bench"]


class SizesType(click.ParamType[Sizes]):
    """The sizes of uploads: ``1MiB``, ``1MiB-64MiB``, or ``lognormal:8MiB,1.5``.

    Sizes in a range have a uniform distribution. A log-normal distribution is given by
    its median and the sigma of the logarithm. It may have bounds:
    ``lognormal:8MiB,1.5,64KiB-1GiB``.
    """

    name = "sizes"

    _LOGNORMAL = re.compile(
        r"lognormal:(?P<median>[^,]+),(?P<sigma>[0-9.]+)(?:,(?P<bounds>.+))?"
    )

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Sizes:
        if isinstance(value, Sizes):
            return value
        text = str(value).strip()
        match = self._LOGNORMAL.fullmatch(text)
        try:
            if match is None:
                low, high = self._bounds(text, param, ctx)
                kind = SizeKind.FIXED if low == high else SizeKind.UNIFORM
                return Sizes(kind=kind, minimum=low, maximum=high)
            bounds = match["bounds"] or "1-1TiB"
            low, high = self._bounds(bounds, param, ctx)
            return Sizes(
                kind=SizeKind.LOGNORMAL,
                minimum=low,
                maximum=high,
                median=Size().convert(match["median"], param, ctx),
                sigma=float(match["sigma"]),
            )
        except (CallerError, ValueError) as exc:
            self.fail(f"{text!r}: {exc}", param, ctx)

    def _bounds(
        self, text: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        low, dash, high = text.partition("-")
        first = Size().convert(low, param, ctx)
        return first, Size().convert(high, param, ctx) if dash else first


class ThresholdType(click.ParamType[Threshold]):
    """A comparison of a figure with a bound: ``resume.p99>500ms``, ``failed>0``."""

    name = "comparison"
    envvar_list_splitter: ClassVar[str | None] = ";"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Threshold:
        if isinstance(value, Threshold):
            return value

        def read(quantity: Quantity, text: str) -> float:
            if quantity is Quantity.SECONDS:
                return Duration().convert(text, param, ctx)
            if quantity in (Quantity.BYTES, Quantity.RATE):
                return Size().convert(text.removesuffix("/s"), param, ctx)
            try:
                share = text.endswith("%") and quantity is Quantity.SHARE
                return float(text.rstrip("%")) / 100 if share else float(text)
            except ValueError:
                self.fail(f"{text!r} is not a number", param, ctx)

        try:
            return Threshold.parse(str(value), read)
        except CallerError as exc:
            self.fail(str(exc), param, ctx)


class InteropVersion(click.ParamType["int | None"]):
    """A draft's interop version, or ``none`` to send no version."""

    name = "version"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        if str(value).lower() == "none":
            return None
        if str(value) not in map(str, range(3, 11)):
            self.fail(f"{value!r} is neither 3 to 10 nor none", param, ctx)
        return int(str(value))


E = TypeVar("E", FaultKind, FaultPlace)


def _members(kind: type[E], names: tuple[str, ...]) -> tuple[E, ...]:
    return tuple(member for member in kind if member.value in names)


@click.command(
    cls=Command,
    sections=BENCH,
    examples=(
        "trioresume bench http://127.0.0.1:8080/files/",
        "trioresume bench -n 100 --size 1MiB-64MiB --cut-every 8MiB http://127.0.0.1:8080/files/",
        "trioresume bench --html report.html https://upload.example.org/files/",
    ),
)
@common_options
@click.argument("url")
@click.option(
    "--protocol",
    type=click.Choice([p.value for p in Protocol]),
    default=Protocol.AUTO.value,
    help="Protocol. seed: Partial and Resumable Requests in HTTP; rufh: Resumable Uploads "
    "for HTTP; tus: tus 1.0.0; plain: whole requests; auto: the first of seed, rufh and "
    "tus that the server speaks.",
)
@click.option(
    "--at-once",
    "-n",
    type=click.IntRange(1, 100_000),
    default=16,
    help="Number of uploads that run at the same time.",
)
@click.option(
    "--total",
    type=click.IntRange(1, 1_000_000),
    help="Total number of uploads. [default: four times --at-once]",
)
@click.option(
    "--size",
    type=SizesType(),
    default="16MiB",
    help="Size of an upload: 16MiB, a range 1MiB-64MiB, or "
    "lognormal:MEDIAN,SIGMA[,MIN-MAX].",
)
@click.option(
    "--rate",
    type=Size(minimum=1),
    help="Most bytes a second of one upload. [default: no limit]",
)
@click.option(
    "--seed",
    type=int,
    default=1,
    help="Seed of the random numbers for sizes, contents and cuts.",
)
@click.option(
    "--duration",
    type=Duration(minimum=0.1),
    help="Stop the load after this time, even if uploads are unfinished.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 256),
    default=1,
    help="Number of processes of the load generator.",
)
@click.option(
    "--cut-every",
    type=Size(minimum=1024),
    help="Cut each upload after this many bytes on average. [default: no cuts]",
)
@click.option(
    "--cut-by",
    multiple=True,
    type=click.Choice([k.value for k in FaultKind]),
    default=tuple(k.value for k in FaultKind),
    help="How to cut connections; may be repeated, and each way is equally likely.",
)
@click.option(
    "--cut-in",
    multiple=True,
    type=click.Choice([p.value for p in FaultPlace]),
    default=(FaultPlace.BODY.value,),
    help="Where to cut a request; may be repeated. response: after the whole request, "
    "before the answer is read.",
)
@click.option(
    "--think",
    type=Duration(),
    default=0.0,
    help="How long an upload waits after a cut before it continues.",
)
@click.option("--kill-command", help="Shell command that kills the server.")
@click.option("--restart-command", help="Shell command that starts the server again.")
@click.option(
    "--kill-every",
    type=Duration(minimum=0.1),
    default=10.0,
    help="Time between a start of the server and the next kill.",
)
@click.option(
    "--down-time",
    type=Duration(),
    default=0.5,
    help="Time between the kill and the restart.",
)
@click.option(
    "--server-pid",
    type=click.IntRange(1),
    help="Process id of the server: measure its CPU time and memory, with its children.",
)
@click.option(
    "--server-pid-file",
    help="File with the server's process id, read again after each restart.",
)
@click.option(
    "--verify",
    type=click.Choice([v.value for v in Verify]),
    default=Verify.AUTO.value,
    help="How to check content. auto: by digest if it can be read back, else by length.",
)
@click.option(
    "--method",
    metavar="METHOD",
    help="HTTP method. {id} in the URL becomes the upload's name. With PUT, the name is "
    "added to a URL that ends with a slash. [default: POST if the URL ends with a slash, "
    "else PUT]",
)
@click.option(
    "--header",
    "-H",
    "headers",
    multiple=True,
    type=HeaderLines(),
    help="A header field to add to every request; may be repeated. With @FILE they are the "
    "lines of a file.",
)
@click.option(
    "--token-file", type=SecretFile(), help="File whose first line is the bearer token."
)
@click.option(
    "--chunk",
    type=Size(minimum=1),
    help="Most content in one request, with tus and rufh. [default: no limit]",
)
@click.option(
    "--interop-version",
    type=InteropVersion(),
    default=8,
    help="Interop version of rufh: 3 to 10, or none.",
)
@click.option(
    "--idle-timeout",
    type=Duration(minimum=0.1),
    default=30.0,
    help="How long the server may be silent before the attempt fails.",
)
@click.option(
    "--retries",
    type=click.IntRange(0, 1_000_000),
    default=10,
    help="Attempts in a row without progress before an upload fails.",
)
@click.option(
    "--cacert",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="PEM file with the authorities to trust, instead of the system's.",
)
@click.option(
    "--insecure", "-k", is_flag=True, help="Do not check the server's certificate."
)
@click.option(
    "--cert",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="PEM file with the certificate of the load generator.",
)
@click.option(
    "--key",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="PEM file with its private key, if --cert does not have it.",
)
@click.option(
    "--http2",
    is_flag=True,
    help="Use HTTP/2. To an http:// URL it is spoken with prior knowledge (h2c).",
)
@click.option(
    "--streams",
    type=click.IntRange(1, 1000),
    default=16,
    help="Most uploads at once on one connection, with --http2.",
)
@click.option(
    "--json",
    "json_path",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True, writable=True),
    help="Write all results to this file; - is standard output.",
)
@click.option(
    "--html",
    "html_path",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    help="Write a page with plots to this file. Reading it needs no network. Writing it "
    "needs the extra: pip install 'trioresume[html]'.",
)
@click.option(
    "--fail-if",
    metavar="COMPARISON",
    type=ThresholdType(),
    multiple=True,
    help="Exit with 4 if the comparison holds, such as 'resume.p99>500ms' or "
    "'goodput<100MiB'; may be repeated.",
)
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
def bench(
    url: str,
    json_path: Path | None,
    html_path: Path | None,
    fail_if: tuple[Threshold, ...],
    quiet: bool,
    **options: Any,
) -> ExitCode:
    """Measure the server at URL with many uploads, which may be cut and resumed.

    The content of every finished upload is checked. The exit code is 0 if all uploads
    finished and are right, 65 if content is wrong, 1 if uploads failed, and 4 if a
    comparison of --fail-if holds.
    """
    if json_path != Path("-"):
        output.is_report()
    try:
        settings = _settings(url, options)
        if settings.insecure:
            click.echo("Warning: the server's certificate is not checked.", err=True)
        _tell_of_proxy(url)
        if html_path is not None:
            require_plotly()  # fail before the load, which may take an hour
        for path in (json_path, html_path):
            _must_have_a_place(path)
        with watching(settings, Console(stderr=True, quiet=quiet)) as show:
            results = trio.run(
                _run, settings, show, restrict_keyboard_interrupt_to_checkpoints=True
            )
    except CallerError as exc:
        raise click.UsageError(str(exc)) from exc
    to_stdout = json_path == Path("-")
    if json_path is not None:
        text = to_json(results) + "\n"
        if to_stdout:
            click.echo(text, nl=False)
        else:
            _write(json_path, text)
    # Print before writing the page: that takes a moment, and fails on a full disk.
    print_results(results, Console(stderr=to_stdout))
    if html_path is not None:
        _write(html_path, html_page(results))
    code = _exit_code(results)
    if not _unmet(results, fail_if) and code == ExitCode.DONE:
        return ExitCode.OVER_THRESHOLD
    return code


def _unmet(results: Results, fail_if: Sequence[Threshold]) -> bool:
    """Say which of the comparisons hold. Return whether none does."""
    is_fine = True
    for threshold in fail_if:
        value = threshold.figure.of(results)
        if value is None:
            click.echo(
                f"--fail-if {threshold.text}: the run has no such figure", err=True
            )
        elif threshold.is_met(value):
            shown = figure_text(threshold.figure.quantity, value)
            click.echo(f"--fail-if {threshold.text}: it is {shown}", err=True)
        else:
            continue
        is_fine = False
    return is_fine


def _tell_of_proxy(url: str) -> None:
    """Say that the environment's proxy is not used: it would be measured, too."""
    parts = urlsplit(url)
    proxies = getproxies_environment()
    named = proxies.get(parts.scheme) or proxies.get("all")
    if named and not proxy_bypass(parts.netloc):
        click.echo("Note: the proxy of the environment is not used.", err=True)


def _must_have_a_place(path: Path | None) -> None:
    """Raise :class:`CallerError` if the directory of the output file does not exist."""
    if path is not None and path != Path("-") and not path.absolute().parent.is_dir():
        raise CallerError(f"there is no directory {path.absolute().parent}")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as exc:
        raise click.ClickException(f"{path} cannot be written: {exc}") from exc


def _settings(url: str, options: dict[str, Any]) -> Settings:
    """Return the settings. Raises :class:`CallerError` if they contradict each other."""
    headers = tuple(line for lines in options["headers"] for line in lines)
    if options["token_file"] is not None:
        headers = (*headers, ("authorization", f"Bearer {options['token_file']}"))
    return Settings(
        url=url,
        protocol=Protocol(options["protocol"]),
        seed=options["seed"],
        at_once=options["at_once"],
        total=options["total"] or min(1_000_000, 4 * options["at_once"]),
        sizes=options["size"],
        rate=options["rate"],
        faults=Faults(
            mean_bytes=options["cut_every"],
            kinds=_members(FaultKind, options["cut_by"]),
            places=_members(FaultPlace, options["cut_in"]),
            kill_command=options["kill_command"],
            restart_command=options["restart_command"],
            kill_every=options["kill_every"],
            down_seconds=options["down_time"],
        ),
        think=options["think"],
        duration=options["duration"],
        processes=options["processes"],
        server_pid=options["server_pid"],
        server_pid_file=options["server_pid_file"],
        idle_timeout=options["idle_timeout"],
        retries=options["retries"],
        method=options["method"].upper() if options["method"] else None,
        headers=headers,
        chunk=options["chunk"],
        interop_version=options["interop_version"],
        verify=Verify(options["verify"]),
        cacert=None if options["cacert"] is None else str(options["cacert"]),
        insecure=options["insecure"],
        cert=None if options["cert"] is None else str(options["cert"]),
        key=None if options["key"] is None else str(options["key"]),
        http2=options["http2"],
        streams=options["streams"],
    )


async def _run(settings: Settings, show: Callable[[Snapshot], None]) -> Results:
    """Run the benchmark. After Ctrl-C it stops the load and returns the results up to then."""
    stop = trio.Event()
    results: Results | TrioresumeError
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, signals, stop)
            try:
                results = await run(settings, observe=show, stop=stop)
            except TrioresumeError as exc:
                results = exc  # raised below: the nursery would wrap it in a group
            nursery.cancel_scope.cancel()
    if isinstance(results, TrioresumeError):
        raise results
    return results


async def _watch(signals: AsyncIterator[int], stop: trio.Event) -> None:
    async for _ in signals:
        if stop.is_set():  # after a second signal the user does not want to wait
            raise KeyboardInterrupt
        stop.set()


def _exit_code(results: Results) -> ExitCode:
    """Return the exit code for the worst result. Wrong content is worse than a failure."""
    if results.wrong:
        return ExitCode.WRONG_CONTENT
    if results.failures:
        return ExitCode.FAILED
    return ExitCode.INTERRUPTED if results.interrupted else ExitCode.DONE
