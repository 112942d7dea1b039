"""The command line. Exit codes: 0 done, 1 some requests failed, 2 bad usage or configuration, 130 interrupted."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine

import click

import tidegate
from tidegate._loops import runner

INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(tidegate.__version__, prog_name="tidegate")
def cli() -> None:
    """Collect from rate-limited backends: use all of what they allow, lose nothing."""


@cli.command()
@click.option("--targets", type=click.IntRange(min=1), default=500, show_default=True, help="How many targets to collect.")
def demo(targets: int) -> None:
    """Collect from three strict servers on this machine, for about half a minute.

    A sliding window, a token bucket, and a server that turns slow and fails for a while. Exits with 1 unless the
    first two, by their own count, rejected nothing and were used to 97 %, and nothing was lost.
    """
    try:
        from tidegate._demo.run import demo as collect
    except ModuleNotFoundError as error:
        raise click.UsageError(f"the demo needs {error.name}: pip install 'aiohttp>=3.12'") from None
    sys.exit(_run(collect(targets)))


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
    sys.exit(code)
