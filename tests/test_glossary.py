"""One word for one thing: the help of an option uses the glossary's word for it."""

import re
from pathlib import Path

import click
import pytest

from secateur.cli.main import cli
from secateur.config import PruneConfig, RecoverConfig

PAGE = Path(__file__).parent.parent / "docs" / "glossary.md"
ROWS = re.findall(r"^\| (.+?) \| (.+?) \| (.*?) ?\|$", PAGE.read_text("utf-8"), re.MULTILINE)
TERMS = {word: re.findall(r"`([^`]+)`", options) for word, _, options in ROWS if word != "word"}
# These are about no term: what they say is all there is to it.
PLAIN = {"model", "device"}
COMMANDS = {name: cli.get_command(None, name) for name in cli.list_commands(None)}


def helps(option: str) -> dict[str, str]:
    """The help of an option in each command that has it, or in the command named before it."""
    command, _, option = option.rpartition(" ")
    # what a command says of texts and windows when it prunes holds for those that prune in a way
    alike = {"prune": ("prune", "apply", "compare", "evaluate"), "": tuple(COMMANDS)}
    return {
        name: parameter.help or ""
        for name in alike.get(command, (command,))
        for parameter in COMMANDS[name].params
        if isinstance(parameter, click.Option) and option in parameter.opts
    }


@pytest.mark.parametrize("word", [word for word, options in TERMS.items() if options])
def test_the_help_of_an_option_uses_the_word(word: str) -> None:
    stem = re.sub(r"y$", "(y|ies)", word)
    for option in TERMS[word]:
        found = helps(option)
        assert found, f"no command has {option}"
        for command, text in found.items():
            assert re.search(rf"\b{stem}", text, re.IGNORECASE), (command, option, text)


@pytest.mark.parametrize("command", ["prune", "recover"])
def test_every_setting_has_a_word(command: str) -> None:
    settings = {"prune": PruneConfig, "recover": RecoverConfig}[command].model_fields
    named = {option for options in TERMS.values() for option in options}
    for setting in set(settings) - PLAIN:
        option = f"--{setting.replace('_', '-')}"
        assert {option, f"{command} {option}"} & named, option


def test_every_word_has_one_meaning() -> None:
    words = [word for word, _, _ in ROWS if word != "word"]
    assert len(words) == len(set(words)) > 50
