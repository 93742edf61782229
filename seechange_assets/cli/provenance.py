"""`seechange provenance`: recipes, what differs between two of them, and tags."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seechange_assets.cli.common import JsonOption, print_json, print_table, settings

if TYPE_CHECKING:
    from io_managers.recipes import Change
    from io_managers.tags import Move

app = typer.Typer(no_args_is_help=True, help="Recipes, what differs between two of them, and tags.")
tag_app = typer.Typer(no_args_is_help=True, help="Tags: names for one recipe per process.")
app.add_typer(tag_app, name="tag")

NAME_HELP = "A tag, the first characters of a provenance id, or 'configuration' for the parameters in force."
CONFIGURATION = "configuration"


def register(parent: typer.Typer) -> None:
    """Add this module's commands."""
    parent.add_typer(app, name="provenance")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help=NAME_HELP)] = CONFIGURATION,
    as_json: JsonOption = False,
) -> None:
    """Show the recipe of every process that a name stands for."""
    recipes = _recipes(_store(), name)
    rows = [
        {
            "process": recipe.process, "id": recipe.id, "algorithm_version": recipe.algorithm_version,
            "upstreams": sorted(recipe.upstream_ids), "parameters": dict(recipe.parameters),
        }
        for recipe in recipes.values()
    ]  # fmt: skip
    if as_json:
        print_json(rows)
        return
    known = {recipe.id: recipe.process for recipe in recipes.values()}
    for row in rows:
        row["upstreams"] = ", ".join(known.get(key, key[:10]) for key in row["upstreams"])
        del row["parameters"]
    print_table(rows, title=name)


@app.command()
def diff(
    a: Annotated[str, typer.Argument(help=NAME_HELP)],
    b: Annotated[str, typer.Argument(help="As A.")] = CONFIGURATION,
    as_json: JsonOption = False,
) -> None:
    """Name every process and parameter in which two sets of recipes differ, however deep."""
    changes = _compare(_store(), a, b)
    if as_json:
        print_json([asdict(change) for change in changes])
    elif changes:
        print_table([{"process": c.process, "parameter": c.parameter, a: c.old, b: c.new} for c in changes])
    else:
        typer.echo(f"{a} and {b} are the same recipes")


@app.command("tags")
@tag_app.command("show")
def show_tags(
    tag: Annotated[str | None, typer.Argument(help="Only this one, with its recipes.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the tags there are, or the recipes of one."""
    tags = _tags()
    if tag is None:
        rows = [{"tag": name, "recipes": count} for name, count in tags.names().items()]
    else:
        rows = [
            {"process": process, "id": recipe.id, "algorithm_version": recipe.algorithm_version}
            for process, versions in tags.show(tag).items()
            for recipe in versions
        ]
    print_json(rows) if as_json else print_table(rows, title=tag)


@tag_app.command()
def create(
    tag: Annotated[str, typer.Argument(help="Name of the new tag.")],
    source: Annotated[str, typer.Option("--of", help=NAME_HELP)] = CONFIGURATION,
    as_json: JsonOption = False,
) -> None:
    """Make a tag. One that exists and names other recipes is an error."""
    recipes = _recipes(_store(), source)
    _tags().create(tag, recipes.values())
    _say(as_json, {"tag": tag, "recipes": len(recipes)}, f"tag {tag}: {len(recipes)} recipes of {source}")


@tag_app.command()
def clone(
    tag: Annotated[str, typer.Argument(help="The tag to copy.")],
    copy: Annotated[str, typer.Argument(help="Name of the copy.")],
    as_json: JsonOption = False,
) -> None:
    """Make a second tag that names the same recipes."""
    _tags().clone(tag, copy)
    _say(as_json, {"tag": copy, "of": tag}, f"tag {copy} names what {tag} names")


@tag_app.command()
def move(
    tag: Annotated[str, typer.Argument(help="The tag; it is made if there is none.")],
    target: Annotated[str, typer.Option("--to", help=NAME_HELP)] = CONFIGURATION,
    as_json: JsonOption = False,
) -> None:
    """Let a tag name other recipes, in one transaction."""
    moves = _tags().move(tag, _recipes(_store(), target).values())
    _say(as_json, {"tag": tag, "moves": [asdict(m) for m in moves]}, told_moves(tag, moves))


@tag_app.command()
def delete(tag: Annotated[str, typer.Argument(help="The tag.")], as_json: JsonOption = False) -> None:
    """Forget a tag. Products and recipes stay."""
    count = _tags().delete(tag)
    _say(as_json, {"tag": tag, "recipes": count}, f"tag {tag} is gone; its {count} recipes and their products stay")


def told_moves(tag: str, moves: "list[Move]") -> str:
    """One line on what a tag names now."""
    if not moves:
        return f"tag {tag} names these recipes already"
    return f"tag {tag} moved: " + ", ".join(move.process for move in moves)


def _compare(store: Any, a: str, b: str) -> "list[Change]":
    from io_managers.recipes import Change, changes_between, stored

    left, right = _recipes(store, a), _recipes(store, b)
    known = {recipe.id: recipe for recipe in [*left.values(), *right.values()]}
    missing = {up for recipe in known.values() for up in recipe.upstream_ids} - known.keys()
    with store.database.session() as session:
        known = {**stored(session, missing), **known}
    found = {}
    for process in dict.fromkeys([*left, *right]):
        if process in left and process in right:
            changes = changes_between(left[process], right[process], known)
        else:
            is_new = process in right
            changes = (Change(process, "exists", not is_new, is_new),)
        found.update({(c.process, c.parameter): c for c in changes if (c.process, c.parameter) not in found})
    return list(found.values())


def _recipes(store: Any, name: str) -> Any:
    from io_managers.tags import Tags

    return store.recipes if name == CONFIGURATION else Tags(store.database).recipes(name)


def _store() -> Any:
    from seechange_assets.cli.session import open_session

    return open_session(settings()).ledger


def _tags() -> Any:
    from io_managers.tags import Tags

    return Tags(_store().database)


def _say(as_json: bool, data: Any, line: str) -> None:
    print_json(data) if as_json else typer.echo(line)
