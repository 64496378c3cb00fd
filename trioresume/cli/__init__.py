"""The command ``trioresume``. It uses only what an embedding program could use as well.

A subcommand's module is imported only when the subcommand runs, so that
``trioresume upload`` does not import the server. The subcommand's function returns an
:class:`~.options.ExitCode`, or None for success.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import click

from trioresume.cli.help import WIDTH, CommandGroup
from trioresume.cli.options import ARGUMENTS, ExitCode, name_environment_twins
from trioresume.cli.output import Purpose, guard
from trioresume.errors import TrioresumeError

__all__ = ["main"]


class TrioresumeGroup(CommandGroup):
    """The group of subcommands. It is the only place that turns errors into exit codes."""

    # Name of the subcommand -> module and name of its click command.
    _TABLE: ClassVar = {
        "serve": "trioresume.cli.serve:serve",
        "upload": "trioresume.cli.upload:upload",
        "uploads": "trioresume.cli.uploads:uploads",
        "download": "trioresume.cli.download:download",
        "bench": "trioresume.cli.bench:bench",
        "bench diff": "trioresume.cli.bench_diff:bench_diff",
        "bench proxy": "trioresume.cli.bench_proxy:bench_proxy",
        "ls": "trioresume.cli.maintenance:list_",
        "show": "trioresume.cli.maintenance:show",
        "verify": "trioresume.cli.maintenance:verify",
        "gc": "trioresume.cli.maintenance:gc",
        "retry": "trioresume.cli.maintenance:retry",
        "doctor": "trioresume.cli.doctor:doctor",
        "hooks": "trioresume.cli.hooks:hooks",
        "backup": "trioresume.cli.backup:backup",
        "restore": "trioresume.cli.backup:restore",
        "export": "trioresume.cli.transfer:export",
        "import": "trioresume.cli.transfer:import_",
        "rm": "trioresume.cli.changes:remove",
        "mv": "trioresume.cli.changes:rename",
        "chown": "trioresume.cli.changes:give",
        "config": "trioresume.cli.configuration:config",
        "token": "trioresume.cli.serve:token",
        "sign": "trioresume.cli.signing:sign",
        "signing-key": "trioresume.cli.signing:signing_key",
        "completion": "trioresume.cli.completion:completion",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._TABLE)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._TABLE:
            return None
        module, _, name = self._TABLE[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        name_environment_twins(cmd_name, command)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[ARGUMENTS] = [*args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Take the first two words for a command if there is such a one: ``bench diff``."""
        name, command, rest = super().resolve_command(ctx, args)
        if rest and (longer := self.get_command(ctx, f"{name} {rest[0]}")) is not None:
            return f"{name} {rest[0]}", longer, rest[1:]
        return name, command, rest

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Do the same as click's method, but exit with the code that the subcommand returns."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        guarded = guard()
        code = self._exit_code(args, prog_name, complete_var, **extra)
        complaint = guarded.finish()
        if complaint is not None:
            failed = guarded.purpose is Purpose.PRODUCT
            if failed and code == ExitCode.DONE:
                code = ExitCode.FAILED
            click.echo(f"{'Error' if failed else 'Warning'}: {complaint}", err=True)
        sys.exit(code)

    def _exit_code(
        self,
        args: Sequence[str] | None,
        prog_name: str | None,
        complete_var: str | None,
        **extra: Any,
    ) -> int:
        """Run the subcommand. Return its exit code, or the exit code for its error."""
        try:
            result = super().main(args, prog_name, complete_var, False, **extra)
        except click.ClickException as exc:
            exc.show()
            return exc.exit_code
        except TrioresumeError as exc:
            click.echo(f"Error: {exc}", err=True)
            return ExitCode.FAILED
        except click.Abort:
            return ExitCode.INTERRUPTED
        except BaseExceptionGroup as group:
            # Ctrl-C comes out of trio's nurseries wrapped in a group.
            if group.split(KeyboardInterrupt)[1] is not None:
                raise
            return ExitCode.INTERRUPTED
        return result if isinstance(result, int) else ExitCode.DONE


@click.group(
    cls=TrioresumeGroup,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "max_content_width": WIDTH,
    },
)
@click.version_option(package_name="trioresume")
def main() -> None:
    """Resumable HTTP uploads: serve, upload, measure, and look after stored files."""
