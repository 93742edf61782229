"""What README.md and docs/ name exists: links, files, commands and their options, targets, variables (`make docs`)."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from resources import settings
from seechange_assets.cli.main import build_app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Folders that the pages name files of.
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")} - {"var", "demo"}
#: Begin like files of ours, and are not.
NO_FILES = {"demo/summary.json"}


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request) -> str:
    return request.param.read_text()


def code_of(text: str) -> Iterator[str]:
    """Every line of a block of code, and every span of code within a line."""
    fenced = re.split(r"^```.*$", text, flags=re.MULTILINE)
    for number, part in enumerate(fenced):
        for line in part.splitlines():
            yield from [line] if number % 2 or line.startswith("    ") else re.findall(r"`([^`]+)`", line)


def commands_of(text: str) -> Iterator[str]:
    """What stands behind `seechange`, without comments; the alternatives of `show/diff` one by one."""
    for code in code_of(text):
        for given in re.findall(r"(?:^|[\s;(=$])seechange ((?!:)[a-z].*)", code):
            yield from alternatives(re.split(r"\s{2,}|#|\||;", given)[0])


def alternatives(given: str) -> Iterator[str]:
    first = re.search(r"\b([a-z]+(?:/[a-z]+)+)\b", given)
    if first is None or "-" in given[: first.start()]:
        yield given
        return
    for one in first[1].split("/"):
        yield given[: first.start()] + one + given[first.end() :]


def resolved(given: str, command=None):
    """The command that the first words name, and the words after them."""
    command = command or typer.main.get_command(build_app())
    words = given.split()
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    return command, words


def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page):
        if "://" not in target:
            folders = [path.parent for path in PAGES if path.read_text() == page]
            assert any((folder / target).exists() for folder in folders), target


def test_files_are_there(page):
    for code in code_of(page):
        for name in re.findall(rf"(?:^|[\s(])((?:{'|'.join(FOLDERS)})/[\w./-]+)", code):
            if name not in NO_FILES:
                assert (ROOT / name.rstrip("./")).exists(), name


def wrong_commands(text: str) -> list[str]:
    """Commands that a text names and nobody can give."""
    wrong = []
    for given in commands_of(text):
        command, words = resolved(given)
        known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help", "--debug"}
        used = {word.strip("[]`.,)").split("=")[0] for word in words if word.lstrip("[").startswith("--")}
        is_unknown = hasattr(command, "commands") and words and re.fullmatch(r"[a-z]+", words[0])
        if is_unknown or not used <= known:
            wrong.append(given)
    return wrong


def test_commands_and_their_options_are_there(page):
    assert wrong_commands(page) == []


def test_a_command_that_is_not_there_is_found():
    text = "`seechange stales`, `seechange stale --al`, `seechange alerts show/status`, `seechange stale --night N`"
    assert wrong_commands(text) == ["stales", "stale --al", "alerts show"]


def test_the_table_of_commands_is_whole():
    rows = re.findall(r"^\| (`.*`.*) \|.*\|$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    told = set()
    for span in re.findall(r"`([^`]+)`", " ".join(rows)):
        for given in alternatives(span):
            command, words = resolved(given)
            if words != given.split():
                told.add(given.split()[0])
                used = {word.strip("[]") for word in words if word.lstrip("[").startswith("--")}
                known = {name for parameter in command.params for name in parameter.opts}
                assert used <= known, span
    assert typer.main.get_command(build_app()).commands.keys() <= told


def test_targets_are_there(page):
    makefile = (ROOT / "Makefile").read_text()
    for code in code_of(page):
        for target in re.findall(r"(?:^|\s)make ([a-z-]+)", code):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_target_says_what_it_does():
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)[1].split()
    assert set(phony) == set(re.findall(r"^([a-z-]+):.*## \S", makefile, flags=re.MULTILINE))


def test_variables_are_read_and_explained():
    pages = "\n".join(path.read_text() for path in PAGES)
    named = {name.rstrip("_") for name in re.findall(r"SEECHANGE_[A-Z][A-Z_]+", pages)}
    read = set(re.findall(r"\b(SEECHANGE_[A-Z][A-Z_]*[A-Z])\b", Path(settings.__file__).read_text()))
    families = {f"SEECHANGE_KAFKA_{name}" for name in settings.KAFKA_OPTIONS}
    families |= {f"SEECHANGE_HOP_{name}" for name in settings.HOP_OPTIONS}
    of_tests = {"SEECHANGE_TEST_DATA"}
    assert named - {"SEECHANGE_KAFKA", "SEECHANGE_HOP"} <= read | families | of_tests
    assert read <= named
