"""The command line. Exit codes: 0 done, 1 some requests failed, 2 bad usage or configuration, 130 interrupted."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path

import click

import tidegate
from tidegate._interrupt import CODE as INTERRUPTED
from tidegate._loops import runner


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(tidegate.__version__, prog_name="tidegate")
def cli() -> None:
    """Collect from rate-limited backends: use all of what they allow, lose nothing."""


@cli.command()
@click.option("--targets", type=click.IntRange(min=1), default=500, show_default=True, help="How many targets to collect.")
def demo(targets: int) -> None:
    """Collect from three strict servers on this machine.

    For about half a minute: a sliding window, a token bucket, and a server that turns slow and fails for a while. Exits with
    1 unless the first two, by their own count, rejected nothing and were used to 97 %, and nothing was lost.
    """
    try:
        from tidegate._demo.run import demo as collect
    except ModuleNotFoundError as error:
        raise click.UsageError(f"the demo needs {error.name}: pip install 'aiohttp>=3.12'") from None
    sys.exit(_run(collect(targets)))


FILE = click.argument("file", type=click.Path(path_type=Path), default="tidegate.toml")


@cli.command()
@FILE
@click.option("--targets", metavar="FILE", help="Take the targets from here; - for standard input.")
@click.option("--output", metavar="FILE", help="Write the replies here; - for standard output.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors alone.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary on standard output, as one JSON object.")
def run(file: Path, targets: str | None, output: str | None, quiet: bool, as_json: bool) -> None:
    """Collect what a configuration says.

    That is FILE (default: tidegate.toml). Ctrl-C finishes what runs and takes nothing new; a second one stops now. Exits with
    0 when all was collected, with 1 when something failed, with 2 when FILE is wrong, and with 130 when it was interrupted.
    """
    from tidegate._cli.config import load
    from tidegate._cli.run import collect

    def from_here(name: str | None) -> str | None:
        return name if name in {None, "-"} else str(Path.cwd() / name)

    plan = load(file, os.environ, complete=True, targets=from_here(targets), output=from_here(output))
    if as_json and plan.output.file == "-":
        raise click.UsageError("--json prints on standard output, where the replies go: give --output FILE")
    sys.exit(_run(collect(plan, quiet=quiet, as_json=as_json)))


@cli.command()
@FILE
def check(file: Path) -> None:
    """Say what a configuration comes to, and send nothing.

    Of FILE (default: tidegate.toml): the limits as they are understood, how long one round of all targets takes, whether an
    interval can be kept, and how much of the limits can be used. Needs no network and no variables.
    """
    from tidegate._cli.check import report
    from tidegate._cli.config import load

    click.echo(report(load(file, os.environ, complete=False)), nl=False)


@cli.command()
@FILE
def init(file: Path) -> None:
    """Write a commented configuration to begin with.

    To FILE (default: tidegate.toml), and never over one that exists.
    """
    from tidegate._cli.init import write

    write(file)
    click.echo(f"wrote {file}; now: tidegate check {file}, then: tidegate run {file}")


def _run(main: Coroutine[object, object, int]) -> int:
    """Run on uvloop where it is installed."""
    try:
        with runner() as own:
            return own.run(main)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED


def main() -> None:
    """Entry point of the `tidegate` command."""
    try:
        code = cli.main(prog_name="tidegate", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:  # Ctrl-C before a command has taken it over
        code = INTERRUPTED
    # All is done and said: a Ctrl-C that comes while the interpreter ends takes nothing but the exit code.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)
