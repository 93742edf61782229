"""`seechange flag`: say that a product is bad, and see what is flagged."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from seechange_assets.cli.common import JsonOption, print_json, print_table, settings

VERSION_HELP = "A tag or provenance id; 'all' for every version. Without: the parameters in force."


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(flag)


def flag(
    exposure: Annotated[
        str | None, typer.Argument(help="Exposure; field.filter of a reference; night of a master. None: list all.")
    ] = None,
    ccd: Annotated[str | None, typer.Option(help="The CCD; without one the raw exposure is meant.")] = None,
    product: Annotated[str, typer.Option(help="Which product of the CCD.")] = "image",
    set_flags: Annotated[list[str] | None, typer.Option("--set", help="Flag to set; may be repeated.")] = None,
    clear_flags: Annotated[list[str] | None, typer.Option("--clear", help="Flag to clear; may be repeated.")] = None,
    reason: Annotated[str, typer.Option(help="Why, for others to read.")] = "",
    version: Annotated[str | None, typer.Option(help=VERSION_HELP)] = None,
    as_json: JsonOption = False,
) -> None:
    """Flag a product as bad, or take a flag back. Everything made from it inherits, in every version, at once.

    Flagged products are not used as masters, members or references, and unsent alerts made of them are withheld.
    Without --set and --clear: list what is flagged.
    """
    from seechange_assets.cli.session import open_session
    from seechange_assets.errors import ParameterError

    store = open_session(settings()).store
    if not set_flags and not clear_flags:
        _show(store, exposure, ccd, as_json)
        return
    if exposure is None:
        raise ParameterError("say which product: seechange flag EXPOSURE --ccd CCD --product NAME --set FLAG")
    changed = _change(store, exposure, ccd, product, version, set_flags or [], clear_flags or [], reason)
    if as_json:
        print_json({"product": product if ccd else "exposure", "exposure": exposure, "ccd": ccd, **asdict(changed)})
    else:
        what = f"{changed.n_addressed} {product if ccd else 'exposure'}(s) of {exposure}"
        typer.echo(f"{what}: {changed.n_changed} products have other flags, {changed.n_descendants} are made from it")


def addressed(session: Any, store: Any, product: str, exposure: str, ccd: str, version: str | None) -> list[Any]:
    """Rows of a product that a command names: of the parameters in force, of a tag or id, or of every version.

    Raises
    ------
    ProductNotFound
        There is none.
    """
    from io_managers.badness import find
    from seechange_assets.partitions import Partition

    rows: list[Any] = find(session, product, Partition(exposure, ccd), version_ids(store, product, version))
    return rows


def version_ids(store: Any, product: str, version: str | None) -> list[str] | None:
    """Provenance ids of a product that a version stands for; None for all."""
    from io_managers.external_masters import external_provenance
    from io_managers.external_references import PROVENANCE as EXTERNAL_REFERENCE
    from io_managers.tags import Tags

    if version == "all":
        return None
    recipes = store.recipes if version is None else Tags(store.database).recipes(version)
    ids = [recipes[product].id] if product in recipes else []
    if version is None and product == "reference":
        ids.append(EXTERNAL_REFERENCE.id)
    if version is None and product.startswith("master_"):
        ids.append(external_provenance(product.removeprefix("master_")).id)
    return ids


def _change(
    store: Any, exposure: str, ccd: str | None, product: str, version: str | None, added: list[str],
    removed: list[str], reason: str,
) -> Any:  # fmt: skip
    from io_managers import badness
    from seechange_assets.errors import ProductNotFound
    from sql.models import ExposureRow

    with store.database.session() as session:
        if ccd is None:
            row = session.get(ExposureRow, exposure)
            if row is None:
                raise ProductNotFound(f"exposure {exposure} is not registered; --ccd names a product of a CCD")
            product, rows = "exposure", [row]
        else:
            rows = addressed(session, store, product, exposure, ccd, version)
        return badness.change(session, product, rows, set_flags=added, clear_flags=removed, reason=reason)


def _show(store: Any, exposure: str | None, ccd: str | None, as_json: bool) -> None:
    from io_managers.badness import flagged

    with store.database.session() as session:
        rows: list[dict[str, Any]] = [
            {
                "product": one.product, "exposure": one.partition.key, "ccd": one.partition.ccd,
                "provenance": one.provenance_id, "own": list(one.own), "inherited": list(one.upstream),
                "reason": one.reason,
            }
            for one in flagged(session, exposure, ccd)
        ]  # fmt: skip
    if as_json:
        print_json(rows)
    elif rows:
        print_table([row | {name: ", ".join(row[name]) for name in ("own", "inherited")} for row in rows])
    else:
        typer.echo("nothing is flagged")
