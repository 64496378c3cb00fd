"""Compare trioresume with its peers and the machine's limits on the same work.

Every server is installed if necessary, and checked. Then the rounds begin. Each round
runs each case on each work, in a new random order, with the cases of one work next to
each other. The first round is small, and its figures are discarded.
"""

from __future__ import annotations

import contextlib
import random
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from bench.compare.figures import lines
from bench.compare.report import Report
from bench.compare.run import Bench, Measured
from bench.compare.works import DISK, Case, Work, cases_of
from bench.options import cache_option, machine, work_dir_option
from bench.peers import PEERS
from bench.peers.cache import Cache, InstallFailed
from bench.peers.own import Trioresume, trioresume
from bench.peers.peer import ToolMissing
from bench.peers.prove import Disproved, prove
from bench.rounds import order
from bench.server import Server, ServerFailed
from bench.workspace import Workspace
from trioresume.bench import FaultKind, Verify
from trioresume.bench.usage import raise_file_limit
from trioresume.cli.options import Size
from trioresume.errors import TrioresumeError

__all__ = ["main", "rounds"]

WARM_UP_SHARE = 8
"""The discarded round does the work divided by this."""

_FAILURES = (InstallFailed, ToolMissing, ServerFailed, Disproved, OSError)


def rounds(
    measure: Callable[[Case, Work, int], Measured],
    cases: Sequence[Case],
    works: Sequence[Work],
    *,
    number: int,
    seed: int,
) -> list[list[Measured]]:
    """Run *number* rounds after a smaller one that is discarded, and return them.

    If it is interrupted, it returns the whole rounds so far; without one, it raises
    :class:`KeyboardInterrupt`.
    """
    dice = random.Random(seed)
    small = [work.share(WARM_UP_SHARE) for work in works]
    kept: list[list[Measured]] = []
    try:
        for index in range(number + 1):
            now = order(works if index else small, cases, dice, Work.suits)
            runs = [measure(case, work, index) for work, case in now]
            if index:
                kept.append(runs)
    except KeyboardInterrupt:
        if not kept:
            raise
    return kept


class _Names(click.ParamType[list[str]]):
    """Names, separated by commas."""

    name = "names"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[str]:
        if isinstance(value, list):
            return value
        return [name.strip() for name in str(value).split(",") if name.strip()]


def _uploads(ctx: click.Context, param: click.Parameter, names: list[str]) -> list[int]:
    found = []
    for name in names:
        if not name.isdecimal() or not 1 <= int(name) <= 100_000:
            raise click.BadParameter(f"{name!r} is not from 1 to 100000", ctx, param)
        found.append(int(name))
    return found


def _cuts(
    ctx: click.Context, param: click.Parameter, names: list[str]
) -> list[int | None]:
    return [
        None if name == "none" else Size().convert(name, param, ctx) for name in names
    ]


def _files(
    ctx: click.Context, param: click.Parameter, text: str | None
) -> tuple[int, int] | None:
    if text is None:
        return None
    count, x, size = text.partition("x")
    if not x or not count.isdecimal() or not 1 <= int(count) <= 1_000_000:
        raise click.BadParameter(f"{text!r} is not COUNTxSIZE", ctx, param)
    return int(count), Size().convert(size, param, ctx)


def _kinds(
    ctx: click.Context, param: click.Parameter, names: list[str]
) -> tuple[FaultKind, ...]:
    try:
        return tuple(FaultKind(name) for name in names)
    except ValueError as exc:
        raise click.BadParameter(str(exc), ctx, param) from exc


def _cases(ctx: click.Context, param: click.Parameter, names: list[str]) -> list[Case]:
    try:
        return cases_of(names)
    except LookupError as exc:
        raise click.BadParameter(str(exc), ctx, param) from exc


@click.command(help=__doc__)
@click.option(
    "--peers",
    "cases",
    type=_Names(),
    callback=_cases,
    default=",".join((*PEERS, DISK)),
    help="Servers, separated by commas, as NAME or NAME:PROTOCOL, with +tls for HTTP/1.1"
    " over TLS, +h2 for HTTP/2 over TLS, or +h2c for HTTP/2 without TLS. [default: all, as"
    " HTTP/1.1 without TLS]",
)
@click.option(
    "--uploads",
    type=_Names(),
    callback=_uploads,
    default="1,16,128,1000",
    show_default=True,
    help="Numbers of uploads at once.",
)
@click.option(
    "--bytes",
    "total",
    type=Size(),
    default="1GiB",
    show_default=True,
    help="Bytes of one run, over all its uploads.",
)
@click.option(
    "--files",
    callback=_files,
    metavar="COUNTxSIZE",
    help="Instead of --bytes: number and size of files, as in 10000x10KiB, of which"
    " --uploads are sent at once.",
)
@click.option(
    "--cuts",
    type=_Names(),
    callback=_cuts,
    default="none",
    show_default=True,
    help="Mean bytes between cuts of an upload, or none; several, separated by commas.",
)
@click.option(
    "--cut-kinds",
    "kinds",
    type=_Names(),
    callback=_kinds,
    default=",".join(kind.value for kind in FaultKind),
    show_default=True,
    help="Ways to cut connections.",
)
@click.option(
    "--rounds",
    "number",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Rounds that count, after a smaller one that does not.",
)
@click.option(
    "--seed",
    type=int,
    default=1,
    show_default=True,
    help="Seed of the order, the content and the cuts.",
)
@click.option(
    "--baselines",
    type=_Names(),
    default="tusd,trioresume,raw-write",
    show_default=True,
    help="Servers with which the others are compared.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Processes of the load generator.",
)
@click.option(
    "--streams",
    type=click.IntRange(1, 1000),
    default=16,
    show_default=True,
    help="Uploads at once on each connection of HTTP/2.",
)
@click.option(
    "--verify",
    type=click.Choice([way.value for way in Verify]),
    default=Verify.AUTO.value,
    show_default=True,
    help="Way to check stored content.",
)
@click.option(
    "--prove/--no-prove",
    "proving",
    default=True,
    show_default=True,
    help="First check that each server keeps and resumes uploads.",
)
@click.option(
    "--limit",
    type=click.FloatRange(1),
    default=120.0,
    show_default=True,
    help="Seconds for one load; an upload that is unfinished then is a failure.",
)
@click.option(
    "--serve-option",
    "serve_options",
    multiple=True,
    metavar="OPTION",
    help="A further option for trioresume serve, such as --log-level=error.",
)
@work_dir_option
@cache_option
@click.option(
    "--drop-caches",
    is_flag=True,
    help="Drop the page cache before each run (needs root).",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File for every run as JSON.",
)
@click.option(
    "--markdown",
    "markdown_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File for the tables, which are also printed.",
)
def main(
    cases: list[Case],
    uploads: list[int],
    total: int,
    files: tuple[int, int] | None,
    cuts: list[int | None],
    kinds: tuple[FaultKind, ...],
    number: int,
    seed: int,
    baselines: list[str],
    processes: int,
    streams: int,
    verify: str,
    proving: bool,
    limit: float,
    serve_options: tuple[str, ...],
    work_dir: Path | None,
    cache: Path | None,
    drop_caches: bool,
    json_path: Path | None,
    markdown_path: Path | None,
) -> None:
    raise_file_limit()
    cases = [_with_options(case, serve_options) for case in cases]
    console = Console(stderr=True)
    if files is None:
        works = [Work(count, total, cut) for cut in cuts for count in uploads]
    else:
        total = files[0] * files[1]
        works = [Work(n, total, cut, files[0]) for cut in cuts for n in uploads]
    begun = time.strftime("%Y-%m-%d", time.gmtime())
    with contextlib.ExitStack() as stack:
        workspace = Workspace(work_dir, drop_caches=drop_caches)
        stack.callback(workspace.close)
        bench = Bench(
            workspace=workspace,
            cache=Cache(cache),
            seed=seed,
            kinds=kinds,
            processes=processes,
            streams=streams,
            verify=Verify(verify),
            limit=limit,
        )
        fit, versions, skipped = _prepare(bench, cases, console, proving=proving)
        measure = _narrated(bench, console, _count(fit, works) * (number + 1))
        results = rounds(measure, fit, works, number=number, seed=seed)
    names = [case.name for case in fit]
    baselines = [name for name in baselines if name in names]
    report = Report(
        command=f"python -m bench.compare {shlex.join(sys.argv[1:])}".strip(),
        machine=machine(work_dir),
        begun=begun,
        rounds=results,
        works=works,
        cases=fit,
        versions=versions,
        skipped=skipped,
        lines=lines(results, works, names, baselines),
        baselines=baselines,
    )
    text = report.markdown()
    click.echo(text)
    if markdown_path is not None:
        markdown_path.write_text(text, "utf-8")
    if json_path is not None:
        json_path.write_text(report.json(), "utf-8")
    if not report.ok:
        sys.exit(1)


def _with_options(case: Case, options: tuple[str, ...]) -> Case:
    """Return *case* with *options*, if it is a case of trioresume."""
    if not options or not isinstance(case.peer, Trioresume):
        return case
    return replace(case, peer=trioresume(case.peer.durability, options))


def _in_a_line(problem: BaseException) -> str:
    """Return *problem* in one line, with the end of the server's output."""
    text = " ".join(f"{type(problem).__name__}: {problem}".split())
    return text if len(text) <= 400 else f"{text[:200]} … {text[-200:]}"


def _count(cases: Sequence[Case], works: Sequence[Work]) -> int:
    return sum(work.suits(case) for work in works for case in cases)


def _prepare(
    bench: Bench, cases: Sequence[Case], console: Console, *, proving: bool
) -> tuple[list[Case], dict[str, str], dict[str, str]]:
    """Return the cases that can run, their versions, and why the others cannot."""
    fit: list[Case] = []
    versions: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for case in cases:
        if case.peer is None:
            fit.append(case)
            continue
        try:
            with console.status(f"preparing {case.name}"):
                at = bench.cache.get(case.peer)
                if proving:
                    with (
                        bench.workspace.data_dir() as directory,
                        Server(
                            case.peer,
                            directory,
                            cache=bench.cache,
                            carrier=case.carrier,
                        ) as server,
                    ):
                        prove(server, case.protocol)
        except _FAILURES as exc:
            skipped[case.name] = _in_a_line(exc)
            console.print(f"not measured: {case.name}: {exc}", highlight=False)
        else:
            fit.append(case)
            versions[case.name] = case.peer.resolved_version(at)
    return fit, versions, skipped


def _narrated(
    bench: Bench, console: Console, total: int
) -> Callable[[Case, Work, int], Measured]:
    """Return :meth:`Bench.run` with messages; a failure becomes a run with a problem."""
    done = 0
    begun = time.monotonic()

    def measure(case: Case, work: Work, index: int) -> Measured:
        nonlocal done
        what = f"round {index}, {case.name}, {work.name}"
        with console.status(f"{done} of {total}: {what}"):
            try:
                run = bench.run(case, work, index)
            except (ServerFailed, TrioresumeError, OSError) as exc:
                run = Measured(
                    case=case.name,
                    work=work,
                    round=index,
                    seconds=0.0,
                    user=0.0,
                    system=0.0,
                    peak_resident=0,
                    problems=(_in_a_line(exc),),
                )
        done += 1
        left = (time.monotonic() - begun) / done * (total - done) / 60
        console.print(
            f"{what}: {run.rate:.0f} MiB/s, {run.cpu:.2f} s/GiB "
            f"({run.cpu_user:.2f} user); {left:.0f} min left",
            highlight=False,
        )
        for problem in run.problems:
            console.print(f"  [red]{problem}[/]", highlight=False)
        return run

    return measure


if __name__ == "__main__":
    main()
