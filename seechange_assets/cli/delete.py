"""`seechange delete`: a product and everything that was made from it."""

from typing import Annotated, Any

import typer

from seechange_assets.cli.common import JsonOption, busy, print_json, print_table, settings
from seechange_assets.cli.flag import VERSION_HELP, addressed


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(delete)


def delete(
    exposure: Annotated[str, typer.Argument(help="Exposure; field.filter of a reference; night of a master.")],
    ccd: Annotated[list[str], typer.Option(help="The CCD; may be repeated.")],
    product: Annotated[str, typer.Option(help="Which product of the CCD; what is made from it goes, too.")] = "image",
    version: Annotated[str | None, typer.Option(help=VERSION_HELP)] = None,
    keep_sent: Annotated[
        bool, typer.Option("--keep-sent", help="Keep what alerts that were sent are made of; delete the rest.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete. Without it only say what would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete a product and all that was made from it: files, rows, and its status in Dagster.

    Raw exposures stay. What alerts that have been sent were made of is never deleted.
    """
    from io_managers import deletion
    from seechange_assets.cli.session import open_session
    from sensors import forget

    session = open_session(settings())
    store = session.store
    with store.database.session() as transaction:
        rows = [row for one in ccd for row in addressed(transaction, store, product, exposure, one, version)]
        roots = {product: [row.id for row in rows]}
        found = deletion.plan(transaction, roots, keep_sent=keep_sent)
    if yes:
        forget.check_no_work(session.instance, found.products)
        with busy("deleting"):
            found = deletion.delete(store.database, store.archive, roots, _refresh_objects(store), keep_sent=keep_sent)
            forget.forget(session.instance, found.products)
    _tell(found, yes, as_json)


def _refresh_objects(store: Any) -> Any:
    from seechange_assets.publish.positions import refresh_objects

    recipe = store.recipes["associations"]
    clip_sigma = store.recipes.parameters("associations").clip_sigma
    return lambda session, ids: refresh_objects(session, sorted(ids), recipe.id, clip_sigma)


def _tell(found: Any, is_done: bool, as_json: bool) -> None:
    n_bytes = sum(one.n_bytes for one in found.products)
    counts = {
        "measurements": found.n_measurements,
        "forced_fluxes": found.n_forced,
        "unsent_messages": found.n_messages,
    }
    if as_json:
        listed = [
            {"product": one.product, "exposure": one.partition.key, "ccd": one.partition.ccd,
             "provenance": one.provenance_id, "file": one.path}
            for one in found.products
        ]  # fmt: skip
        print_json({"deleted": is_done, "products": listed, "bytes": n_bytes, "kept": found.n_kept, **counts,
                    "alert_files": found.alert_files})  # fmt: skip
        return
    print_table([{"product": name, "number": count} for name, count in found.counts.items()])
    told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
    verb = "deleted" if is_done else "would be deleted (--yes does it)"
    typer.echo(f"{len(found.products)} products, {n_bytes / 1e6:.1f} MB, with {told}: {verb}")
    if found.n_kept:
        typer.echo(f"{found.n_kept} products stay: alerts that have been sent were made of them")
