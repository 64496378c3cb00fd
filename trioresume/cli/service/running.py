"""Running a service: from its plan to its end, with what signals and systemd want of it.

systemd is told that the service is ready when it listens and has taken up again what an
earlier run left between complete and done. Until then it may ask for more time.
"""

from __future__ import annotations

import gc
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial

import click
import trio

import trioresume
from trioresume.cli.rules import RulesFile
from trioresume.cli.service.exposure import dangers, facts
from trioresume.cli.service.plan import Plan

logger = logging.getLogger("trioresume.cli")

__all__ = ["ignore_hangups", "start", "start_worker"]

_SIGNALS = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP"):
    _SIGNALS.append(signal.SIGHUP)


def ignore_hangups() -> None:
    """Ignore SIGHUP until the service handles it: it must not end the start."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def start(plan: Plan) -> None:
    """Run the service until a signal ends it.

    Raises :class:`click.ClickException` if it cannot start, or fails.
    """
    _raise_descriptor_limit()
    _calm_collector()
    try:
        trio.run(_serve, plan, restrict_keyboard_interrupt_to_checkpoints=True)
    except* (OSError, trioresume.TrioresumeError) as group:
        raise click.ClickException(str(_first(group))) from group


def start_worker(plan: Plan) -> None:
    """Run a worker until its parent, or SIGTERM, ends it.

    A terminal sends Ctrl-C and hangups to all processes: the parent decides what they mean.
    Raises what the service raises.
    """
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    _raise_descriptor_limit()
    _calm_collector()
    try:
        trio.run(_serve_as_worker, plan)
    except* (OSError, trioresume.TrioresumeError) as group:
        raise click.ClickException(str(_first(group))) from group


async def _serve_as_worker(plan: Plan) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(
                _running,
                partial(plan.run, plan.target, plan.config),
                nursery.cancel_scope,
            )
            async for _ in signals:
                server.shutdown()


def _first(group: BaseExceptionGroup[Exception]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _serve(plan: Plan) -> None:
    manager = plan.manager
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(manager.feed_watchdog)
            obedience = _Obedience(plan, nursery.cancel_scope)
            nursery.start_soon(obedience.obey, signals)
            async with manager.extended_start():
                server = await nursery.start(
                    _running,
                    partial(plan.run, plan.target, plan.config),
                    nursery.cancel_scope,
                )
            for line in facts(plan, server.urls):
                logger.info(line)
            for line in dangers(plan, server.urls):
                logger.warning(line)
            # In one piece: the log may go to the same file, in lines between these.
            click.echo("\n".join(_invitation(plan, server.urls)))
            if isinstance(server, trioresume.Workforce):
                plan.reloads.add_async(
                    "the workers",
                    server.replace_workers,
                    done="are new ones; the old ones end with their requests",
                    kept="stay",
                )
            elif any(url.startswith("https:") for url in server.urls):
                plan.reloads.add_async("the certificates", server.reload_certificates)
            if plan.config_file is not None and plan.config.rules:
                rules = RulesFile(plan.config_file, server)
                plan.reloads.add_async("the rules", rules.reload)
            nursery.start_soon(_stay_ready, plan, server)
            await obedience.begin(server)


def _invitation(plan: Plan, urls: Sequence[str]) -> Iterator[str]:
    """Yield the lines that tell a person where to go."""
    for url in urls:
        yield f"You can now upload files to: {url}{plan.base_path}"
    for url in urls if plan.config.ui is not None else ():
        yield f"In a browser: {url}/ui/"


async def _running(
    run: Callable[..., Awaitable[None]],
    whole: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[trioresume.Server],
) -> None:
    await run(task_status=task_status)
    whole.cancel()


async def _stay_ready(plan: Plan, server: trioresume.Server) -> None:
    """Say that the service is ready, now and after each reload."""
    manager, reloads = plan.manager, plan.reloads
    async with manager.extended_start():
        await server.wait_recovered()
    status = f"Serving at {', '.join(server.urls)}"
    await manager.tell_ready(status)
    reloads.announce = manager.tell_reloading
    reloads.announce_end = partial(manager.tell_ready, status)
    await reloads.run()


class _Obedience:
    """Does what signals say. Workers may take minutes until they listen, so also before that."""

    def __init__(self, plan: Plan, whole: trio.CancelScope) -> None:
        self._plan = plan
        self._whole = whole
        self._server: trioresume.Server | None = None
        self._asked = 0
        """How often somebody has asked for the end."""

    async def obey(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number not in (signal.SIGINT, signal.SIGTERM):
                self._plan.reloads.request()
                continue
            self._asked += 1
            if self._asked > 1:
                self._whole.cancel()
            elif self._server is not None:
                await self._shut_down(self._server)
            elif self._plan.has_workers:
                click.echo("Shutting down, before the workers listen.", err=True)
                self._whole.cancel()

    async def begin(self, server: trioresume.Server) -> None:
        """Note that *server* has started. Shut it down if somebody has asked for it."""
        self._server = server
        if self._asked:
            await self._shut_down(server)

    async def _shut_down(self, server: trioresume.Server) -> None:
        click.echo("Shutting down. Press Ctrl-C again to stop at once.", err=True)
        server.shutdown()
        await self._plan.manager.tell_stopping(self._plan.config.grace_timeout)


def _raise_descriptor_limit() -> None:
    """Allow as many descriptors as the system permits: each upload needs two."""
    try:
        import resource
    except ImportError:
        return  # not on this system
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            pass  # the real limit of some systems is lower than the reported one


def _calm_collector() -> None:
    """Make each run of the garbage collector short, and exclude the permanent objects.

    The objects of a request are freed by their reference counts when it ends. The
    collector is only needed for rare reference cycles. With the usual thresholds it scans
    the objects of all open uploads again and again, and the server answers nobody
    meanwhile: for a quarter of a second with 3,500 uploads, and for a second with
    10,000. With these thresholds a usual run scans 2,000 new objects and the few
    thousand before them, in 5 ms. A scan of all objects happens after some ten million
    new ones. A library must not decide this for its process; a command may.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 1, 5_000)
