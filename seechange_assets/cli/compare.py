"""`seechange compare`: what changes between two tags for the same partitions."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seechange_assets.cli.common import JsonOption, busy, print_json, print_table, settings

if TYPE_CHECKING:
    from seechange_assets.comparison import Comparison

_PAIRS = {"zp": 4, "depth": 3, "fwhm_px": 3, "diff_depth": 3}


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(compare)


def compare(
    first: Annotated[str, typer.Argument(help="A tag or provenance id.")],
    second: Annotated[str, typer.Argument(help="Another one.")],
    exposure: Annotated[list[str] | None, typer.Option(help="Only this exposure; may be repeated.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the same partitions under two tags: zero points, depths, detections gained and lost, scores.

    Changes are second minus first. Detections match within 2 arcsec; only good ones count.
    """
    from seechange_assets.cli.session import open_session
    from seechange_assets.comparison import compare

    store = open_session(settings()).store
    with busy("comparing"):
        found = compare(store.reading(first), store.reading(second), exposure or ())
    if as_json:
        print_json({"partitions": [asdict(one) for one in found], "summary": summary(found)})
    elif not found:
        typer.echo(f"{first} and {second} have no partition in common")
    else:
        print_table([_row(one) for one in found], title=f"{second} against {first}")
        print_table([summary(found)])


def summary(found: "Sequence[Comparison]") -> dict[str, Any]:
    """Means of the changes over all partitions, and sums of detections."""
    answer: dict[str, Any] = {"partitions": len(found)}
    for name, digits in _PAIRS.items():
        changes = [b - a for a, b in (getattr(one, name) for one in found) if a is not None and b is not None]
        answer[f"d_{name}"] = round(sum(changes) / len(changes), digits) if changes else None
    for name in ("matched", "gained", "lost"):
        known = [value for one in found if (value := getattr(one, name)) is not None]
        answer[name] = sum(known) if known else None
    scored = [(one.d_score, one.matched) for one in found if one.d_score is not None and one.matched]
    n_scored = sum(n for _, n in scored)
    answer["d_score"] = round(sum(d * n for d, n in scored) / n_scored, 4) if n_scored else None
    return answer


def _row(one: "Comparison") -> dict[str, Any]:
    row: dict[str, Any] = {"exposure": one.exposure, "ccd": one.ccd}
    for name, digits in _PAIRS.items():
        a, b = getattr(one, name)
        row[f"d_{name}"] = None if a is None or b is None else round(b - a, digits)
    row["detections"] = " -> ".join("none" if n is None else str(n) for n in one.detections)
    row |= {name: getattr(one, name) for name in ("matched", "gained", "lost")}
    return row | {"d_score": None if one.d_score is None else round(one.d_score, 4)}
