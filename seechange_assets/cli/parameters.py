"""`seechange parameters`: what is in force, and where it comes from."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seechange_assets.cli.common import JsonOption, print_json, print_table, settings

if TYPE_CHECKING:
    from seechange_assets.layers import EffectiveValue

app = typer.Typer(no_args_is_help=True, help="Parameters in force: values, origin, and whether they are critical.")


def register(parent: typer.Typer) -> None:
    """Add this module's commands."""
    parent.add_typer(app, name="parameters")


@app.command()
def show(
    process: Annotated[list[str] | None, typer.Argument(help="Only these processes.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show every parameter with its value, the file and line it comes from, and whether it is critical.

    A critical parameter can change a product: it is part of the recipe, and changing it makes products stale.
    """
    _print(_chosen(_effective(settings()), process or []), as_json)


@app.command()
def diff(
    other: Annotated[
        list[Path] | None,
        typer.Argument(help="YAML files in place of those of SEECHANGE_CONFIG; none compares with the defaults."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the parameters in force that differ from the defaults, or from another set of files."""
    here = _effective(settings())
    if not other:
        _print([value for value in here if value.value != value.default], as_json)
        return
    there = _effective(settings().model_copy(update={"config": tuple(path.resolve() for path in other)}))
    rows = [
        {
            "process": a.process, "parameter": a.parameter, "here": a.value, "there": b.value,
            "critical": a.is_critical, "origin here": a.origin, "origin there": b.origin,
        }
        for a, b in zip(here, there, strict=True)
        if a.value != b.value
    ]  # fmt: skip
    if as_json:
        print_json(rows)
    elif rows:
        print_table([{key: _shown(value) for key, value in row.items()} for row in rows])
    else:
        typer.echo("no parameter differs")


def _effective(configuration: Any) -> "list[EffectiveValue]":
    from seechange_assets.layers import effective_values
    from seechange_assets.pipeline import build_recipes, configured_layers

    recipes, layers = build_recipes(configuration), configured_layers(configuration)
    processes = [process for process in recipes if process != "exposure"]  # the camera's constants are no parameters
    return [value for p in processes for value in effective_values(recipes.parameters(p), layers.get(p))]


def _chosen(values: "list[EffectiveValue]", processes: list[str]) -> "list[EffectiveValue]":
    from seechange_assets.errors import ParameterError
    from seechange_assets.parameters import unknown_name

    known = list(dict.fromkeys(value.process for value in values))
    for process in processes:
        if process not in known:
            raise ParameterError(unknown_name(process, known, "parameters"))
    return [value for value in values if not processes or value.process in processes]


def _print(values: "list[EffectiveValue]", as_json: bool) -> None:
    if as_json:
        print_json([asdict(value) for value in values])
        return
    if not values:
        typer.echo("every parameter has its default")
        return
    print_table([
        {
            "parameter": f"{value.process}.{value.parameter}",
            "value": _shown(value.value),
            "default": "" if value.value == value.default else _shown(value.default),
            "critical": "yes" if value.is_critical else "no",
            "origin": value.origin,
        }
        for value in values
    ])  # fmt: skip


def _shown(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value)
