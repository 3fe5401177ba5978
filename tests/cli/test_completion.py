"""Shells complete commands and options, as docs/guide/commands.md says."""

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from clue_ray.cli.main import app


def complete(shell: str, words: str) -> str:
    """Ask for completions as the shell's own script does; `words` end where the cursor is."""
    settings = {
        "_CLUE_RAY_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
        "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = CliRunner().invoke(app, [], env=settings, prog_name="clue-ray")
    assert done.exit_code == 0, done.output
    return done.output


def test_bash_completes_every_command_by_its_beginning():
    commands = get_command(app).commands
    for name in commands:
        offered = complete("bash", f"clue-ray {name[:2]}").split()
        assert offered == [other for other in commands if other.startswith(name[:2])]
    assert complete("bash", "clue-ray zz").split() == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_options_are_those_of_the_command(shell):
    assert "--output" in complete(shell, "clue-ray export x --o")
    assert "--output" not in complete(shell, "clue-ray export x --j")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_commands_are_offered_with_what_they_do(shell):
    offered = complete(shell, "clue-ray tr")
    assert "Train one point of a study" in offered
    assert "Evaluate a trained encoder" in offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_asks_this_command(shell):
    settings = {"_CLUE_RAY_COMPLETE": f"source_{shell}"}
    script = CliRunner().invoke(app, [], env=settings, prog_name="clue-ray").output
    assert f"_CLUE_RAY_COMPLETE=complete_{shell}" in script
    assert "clue-ray" in script
