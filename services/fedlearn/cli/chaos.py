"""`fedlearn chaos`."""

# ruff: noqa: PLC0415 - the launcher's parts are not in the services' images

import random
import shutil
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedlearn.cli.codecs import CodecOption, KeepOption
from fedlearn.cli.strategies import RobustOption, StrategyOption, StrategyOptions
from fedlearn.core.errors import Code, SetupError

_TABLE_WIDTH = 120


def add_to(app: typer.Typer) -> None:
    """Add `chaos`."""
    app.command(rich_help_panel="On one machine")(chaos)


def chaos(
    kills: Annotated[int, typer.Option(min=0, help="How many SIGKILLs.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the updates, and of who is killed when.")] = 0,
    devices: Annotated[int, typer.Option(min=3, max=64, help="Device processes; one less is a round's goal.")] = 5,
    outage_seconds: Annotated[
        float, typer.Option(min=0, max=60, help="How long storage and database are away once in each phase; 0: never.")
    ] = 0.0,
    aggregators: Annotated[int, typer.Option(min=1, max=8, help="Aggregators that share each round.")] = 1,
    postgresql: Annotated[bool, typer.Option("--postgresql", help="On a PostgreSQL of its own instead of SQLite.")] = False,
    strategy: StrategyOption = "fedavg",
    robust: RobustOption = None,
    strategy_option: StrategyOptions = None,
    codec: CodecOption = "float32",
    keep_fraction: KeepOption = None,
    out: Annotated[Path | None, typer.Option(help="A new directory for state and logs. Default: below runs/.")] = None,
) -> None:
    """Kill server, aggregator, devices and storage while rounds run, and check every version against a replay.

    With --outage-seconds storage and database are taken away as well, in each phase; with --postgresql as well, PostgreSQL.

    The replay follows every strategy, codec and rule but krum: int8's chances are of the seed, and so is what top_k keeps.
    """
    try:
        from fedlearn.local.chaos import TASK, Arena, Kill, chaos_plan, fire
        from fedlearn.local.chaos_checks import faults, kill_table, orphans, recovery_table
        from fedlearn.local.chaos_outages import KINDS, outages
        from fedlearn.local.options import name_parts
        from fedlearn.local.postgres import postgres_of_its_own
    except ModuleNotFoundError as error:
        raise SetupError(
            Code.SETTING_INVALID, f"'fedlearn chaos' needs {error.name}: install fedlearn[local,learning]."
        ) from error
    goal = devices - 1
    try:
        parts = name_parts(strategy, robust, strategy_option or (), codec, keep_fraction, devices=devices, reports=goal)
    except ValueError as error:
        raise SetupError(Code.SETTING_INVALID, f"{error}. See 'fedlearn chaos --help'.") from error
    plan = chaos_plan(*parts)
    console = Console(soft_wrap=True)
    console.width = max(console.width, _TABLE_WIDTH)
    directory = (out or Path("runs") / f"chaos-{datetime.now(UTC):%Y%m%d-%H%M%S}").absolute()
    if directory.exists():
        raise SetupError(Code.SETTING_INVALID, f"--out {directory} exists already: choose another directory.")

    def say(kill: Kill) -> None:
        what = kill.name if kill.name in KINDS else f"{kill.name} killed"
        console.print(f"round {kill.round}, {kill.phase}: {what}, ready again after {kill.back_seconds:.2f} s")

    with ExitStack() as stack:
        postgres = stack.enter_context(postgres_of_its_own()) if postgresql else None
        arena = stack.enter_context(Arena(directory, devices, seed, aggregators=aggregators, postgres=postgres, plan=plan))
        arena.submit(goal=goal)
        done = fire(arena, kills, random.Random(seed), say)  # noqa: S311 - a repeatable choice
        if outage_seconds:
            done += outages(arena, outage_seconds, say)
        arena.end()
        wrong = faults(arena)
        tables = [kill_table(arena, done), recovery_table(arena, done)]
        rounds = arena.store.rounds(TASK)
    wrong += [f"Process {pid} is left over." for pid in orphans(directory)]
    for table in tables:
        console.print(table)
        console.print()
    committed = sum(round_.reason is None for round_ in rounds)
    console.print(
        f"{len(done)} kills and outages; {committed} rounds committed, {len(rounds) - committed} abandoned with their reasons."
    )
    if wrong:
        console.print("\n".join(wrong))
        console.print(f"State and logs: {directory}")
        raise typer.Exit(1)
    console.print(
        f"Each version is what {strategy} makes of the {robust or 'mean'} of its devices' updates, sent as {codec} and counted "
        "once (to 1e-6); versions count up without a gap; the updates bucket is empty; no process is left."
    )
    for name in ("storage", "shards", "keys"):
        shutil.rmtree(directory / name, ignore_errors=True)
