"""What `--help` says of each command."""

import inspect
import re
from collections.abc import Iterator

import click
import pytest
import typer
from typer.testing import CliRunner

from fedlearn import __version__
from fedlearn.cli.app import build
from fedlearn.data.partitioners import PARTITIONERS
from fedlearn.local.options import check_options


def commands(group: click.Command, *names: str) -> Iterator[tuple[str, click.Command]]:
    """Every command below `group`, by the words that call it."""
    yield " ".join(names), group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, *names, name)


COMMANDS = dict(commands(typer.main.get_command(build())))


def words_of(command: str, option: str) -> list[str]:
    """The words of an option's help, without what stands in brackets."""
    found = next(parameter for parameter in COMMANDS[command].params if option in parameter.opts)
    return re.findall(r"\w+", re.sub(r"\(.*?\)", "", getattr(found, "help", "")))


@pytest.mark.parametrize("command", ["run", "up", "data info"])
def test_the_partitioners_that_a_command_takes_are_those_that_its_help_names(command: str) -> None:
    assert set(words_of(command, "--partitioner")) - {"or"} == set(PARTITIONERS)


@pytest.mark.parametrize("command", ["run", "up", "chaos"])
def test_a_command_offers_no_rule_that_it_always_refuses(command: str) -> None:
    rules = set(words_of(command, "--robust")) - {"or", "Default", "the", "weighted", "mean"}
    assert rules == {"median", "trimmed_mean", "multi_krum", "geometric_median", "norm_bound"}
    for rule in rules:
        check_options(robust=rule, devices=9)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_line_of_a_help_breaks_inside_a_sentence(command: str) -> None:
    """Of a first paragraph typer makes one line, of later ones it keeps those that the source has."""
    _, *later = inspect.cleandoc(COMMANDS[command].help or "").split("\n\n")
    assert [paragraph for paragraph in later if "\n" in paragraph] == []


def test_the_version_is_told() -> None:
    assert CliRunner().invoke(build(), ["--version"]).output == f"fedlearn {__version__}\n"
