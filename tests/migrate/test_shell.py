# SPDX-License-Identifier: Apache-2.0
"""Shell text is read as a shell would read it, as far as commands are kept in READMEs and scripts."""

import pytest

from fmstune.errors import UserError
from fmstune.migrate.shell import UNSET, shell_commands


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (r"""a "b c" 'd e' f\ g""", ["a", "b c", "d e", "f g"]),
        ("a \\\n b \\ \n c", ["a", "b", "c"]),
        ("a b # a comment", ["a", "b"]),
        ("a b#c", ["a", "b#c"]),
        (r'a "\n### Response:"', ["a", r"\n### Response:"]),
        (r'a "say \"hi\" \$X"', ["a", 'say "hi" $X']),
        ("a '$X' \"$X\" ${X}y", ["a", "$X", "one", "oney"]),
        ("a $NOPE/b", ["a", f"{UNSET}NOPE{UNSET}/b"]),
        ("a --b=1 > out.log 2>&1 &", ["a", "--b=1"]),
        ("nohup a b", ["a", "b"]),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert [list(command.words) for command in shell_commands(text, {"X": "one"})] == ([words] if words else [])


def test_variables_are_filled_in_and_exported_ones_stay_with_each_command() -> None:
    text = "A=1\nexport B=2; C=$A$B\nD=4 run $A $C && other $D | third"
    run, other, third = shell_commands(text, {})
    assert run.words == ("run", "1", "12") and dict(run.environment) == {"B": "2", "D": "4"}
    assert other.words == ("other", f"{UNSET}D{UNSET}") and dict(other.environment) == {"B": "2"}
    assert third.words == ("third",)


def test_a_commented_variable_is_none() -> None:
    (command,) = shell_commands("# A=1 # what it is\nrun $A", {})
    assert command.words == ("run", f"{UNSET}A{UNSET}")


@pytest.mark.parametrize("text", ["a $(date)", "a `date`", "a ${X:-b}"])
def test_what_a_shell_would_have_to_run_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="only a shell can run this"):
        shell_commands(text, {})


def test_a_quote_that_does_not_end_is_shown() -> None:
    with pytest.raises(UserError, match=r"the quote at 'b c does not end"):
        shell_commands("a 'b c", {})
