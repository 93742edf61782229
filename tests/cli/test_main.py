"""The command line itself: help of every command, and errors of usage as one line."""

import json
import re

import pytest
import typer

from seechange_assets.cli.common import NIGHT_HELP
from seechange_assets.cli.main import build_app, main

#: A unit as help texts write it.
UNIT = re.compile(r"\[(deg|arcsec|s|nJy|px|mag|sigma|MB)\]")


def commands(command=None, path=()):
    """(words of a command, the command) of everything that can be typed."""
    command = command or typer.main.get_command(build_app())
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


ALL = dict(commands())


def answer(capsys, *words):
    """(exit code, stdout, stderr) of a command."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def plain(text):
    return " ".join(text.split())


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_shows_every_word_of_it(words, capsys):
    code, out, _ = answer(capsys, *words, "--help")
    assert code == 0
    command = ALL[words]
    texts = [command.help or "", *(getattr(parameter, "help", None) or "" for parameter in command.params)]
    for text in texts:
        assert plain(text).rstrip(".") in plain(out)


def test_units_are_among_them(capsys):
    shown = [answer(capsys, *words, "--help")[1] for words in ALL]
    units = set(UNIT.findall("".join(shown)))
    assert units >= {"deg", "arcsec", "s", "nJy"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["lightcurve"], "Missing argument 'name'; see `seechange lightcurve --help`"),
        (["lightcurve", "x", "--foo"], "No such option: --foo; see `seechange lightcurve --help`"),
        (["no-such"], "No such command 'no-such'; see `seechange --help`"),
        (["provenance", "tag", "no-such"], "No such command 'no-such'; see `seechange provenance tag --help`"),
        (["objects"], "Invalid value: a cone search needs --ra and --dec; see `seechange objects --help`"),
        (["backfill", "--limit", "0"], "Invalid value for '--limit'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(words, told, capsys):
    code, out, err = answer(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"seechange: {told}")
    assert err.count("\n") == 1


NIGHTS = [
    ["stale", "--night"], ["backfill", "--dry-run", "--night"], ["exposures", "--night"],
    ["exposures", "hold", "--night"],
    ["exposures", "release", "--night"], ["alerts", "replay", "--night"], ["report"],
]  # fmt: skip


@pytest.mark.parametrize("words", NIGHTS, ids=" ".join)
def test_what_is_no_date_is_no_night(words, capsys):
    """It would mean: no exposures."""
    code, _, err = answer(capsys, *words, "22.11.2026")
    assert (code, err) == (1, "seechange: '22.11.2026' is no night: expected YYYY-MM-DD\n")


def test_every_night_is_explained_in_the_same_words():
    nights = {p.help for c in ALL.values() for p in c.params if p.name == "night"}
    assert nights == {NIGHT_HELP}


def test_a_group_alone_prints_its_help(capsys):
    code, out, err = answer(capsys, "provenance")
    assert code == 2
    assert "show" in out + err
    assert "diff" in out + err


def test_every_command_that_answers_can_answer_machines():
    without = {" ".join(words) for words, command in ALL.items() if words and not takes_json(command)}
    assert without == {
        "alerts", "db", "master", "parameters", "provenance", "provenance tag", "reference",  # groups
        "metrics", "workers",  # run until they are stopped
    }  # fmt: skip


def takes_json(command):
    return any("--json" in parameter.opts for parameter in command.params)


def test_version_and_debug(capsys):
    code, out, _ = answer(capsys, "--version")
    assert code == 0
    assert out.startswith("seechange ")
    with pytest.raises(Exception, match="star"):
        main(["exposures", "--state", "stars", "--debug"])
    code, _, err = answer(capsys, "exposures", "--state", "stars")
    assert code == 1
    assert err.count("\n") == 1


def test_json_is_json(capsys):
    assert json.loads(answer(capsys, "parameters", "show", "--json")[1])
