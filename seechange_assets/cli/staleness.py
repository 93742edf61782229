"""`seechange stale` and `backfill`: what other recipes made than those in force, and making it again."""

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seechange_assets.cli.common import JsonOption, NightOption, busy, print_json, print_table, settings

if TYPE_CHECKING:
    from io_managers.staleness import StaleGroup, Work
    from seechange_assets.cli.session import Session

AssetsOption = Annotated[
    list[str] | None, typer.Option("--assets", help="Only these assets, separated by commas; repeat for more.")
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(stale)
    app.command()(backfill)


def stale(
    assets: AssetsOption = None,
    night: NightOption = None,
    list_partitions: Annotated[bool, typer.Option("--partitions", help="List every partition.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what was made under other recipes than those in force, and which parameter made the difference.

    What failed or waited under other recipes counts too, with all that would have been made from it.
    Nothing is changed. Without --partitions the answer is grouped by asset and old recipe.
    """
    session = _session()
    with busy("comparing rows and recipes"), session.ledger.database.session() as rows:
        compared = _staleness(session, rows)
        groups = compared.groups(_names(assets), night)
        work = compared.work(_names(assets), night) if list_partitions else []
        n_known = compared.count_recognisable(_names(assets), night)
    if as_json:
        listed = [{"partition": w.partition.key, "ccd": w.partition.ccd, "assets": w.assets} for w in work]
        print_json([_told(group) for group in groups] if not list_partitions else listed)
    elif not groups:
        typer.echo("nothing is stale")
        if n_known:
            typer.echo(f"{n_known} products were made by these recipes before: `seechange backfill` recognises them")
    elif list_partitions:
        print_table(
            [{"partition": w.partition.key, "ccd": w.partition.ccd, "stale": ", ".join(w.assets)} for w in work]
        )
    else:
        _print_groups(groups)


def backfill(
    assets: AssetsOption = None,
    night: NightOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many partitions, the newest exposures.")] = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Also what failed under these recipes, and what was to be made from it.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make again what is stale, as one Dagster backfill, after live data; and move the tag to these recipes.

    Stale is also what failed, or waited, under other recipes than these: a change may be what it lacked.
    What these recipes made before (a change that was taken back) is recognised and not computed. A backfill that
    ended early is carried on by giving the command again: what is done, or in the hands of an unfinished backfill,
    is left out.
    """
    from io_managers.staleness import DIMENSIONS, in_window
    from resources.dagster_rows import DagsterRows

    session = _session()
    ledger = session.ledger
    with busy("comparing rows and recipes"), ledger.database.session() as rows:
        compared = _staleness(session, rows)
        work = compared.work(_names(assets), night, limit, failed=failed)
        n_known = compared.count_recognisable(_names(assets), night)
        known = compared.recognisable(_names(assets), night) if n_known and not dry_run else {}
    dagster = DagsterRows(session.settings.dagster_url)
    unfinished = _without_unfinished(session, work) if dagster.has_unfinished_backfills() else work
    wanted = in_window(unfinished, dagster.held(DIMENSIONS))
    plan = {
        "partitions": len(wanted),
        "assets": dict(Counter(asset for item in wanted for asset in item.assets)),
        "recognised": n_known,
        "in_unfinished_backfills": len(work) - len(unfinished),
        "retired": len(unfinished) - len(wanted),
        "backfill": None,
    }
    if not dry_run:
        plan |= _carry_out(session, wanted, known, failed=failed)
    _print_plan(plan, ledger.tag, as_json, dry_run)


def _without_unfinished(session: "Session", work: "list[Work]") -> "list[Work]":
    from sensors.backfill import without_unfinished  # seconds of imports, which a dry run seldom needs

    return without_unfinished(session.instance, work, session.ledger.tag)


def _carry_out(session: "Session", wanted: "list[Work]", known: dict[str, Any], *, failed: bool) -> dict[str, Any]:
    from io_managers.tags import Tags
    from seechange_assets.cli.location import reload_location
    from sensors import backfill as dagster_side
    from sensors.staleness_checks import tell, verdicts

    store = session.store
    reload_location(session.settings, store.recipes)
    moves = Tags(store.database).move(store.tag, store.recipes.values())
    with busy("telling Dagster what is known"):
        told = dagster_side.recognise(session.instance, store, known)
    done: dict[str, Any] = {"told": told, "moved": [asdict(move) for move in moves]}
    if wanted:
        graph = session.definitions.resolve_asset_graph()
        title = f"{'stale and failed' if failed else 'stale'} under tag {store.tag}"
        with busy("submitting"):
            done["backfill"] = dagster_side.submit(session.instance, graph, wanted, tag=store.tag, title=title)
    tell(session.instance, verdicts(store))
    return done


def _print_plan(plan: dict[str, Any], tag: str, as_json: bool, dry_run: bool) -> None:
    if as_json:
        print_json(plan)
        return
    would = "would be " if dry_run else ""
    if plan["assets"]:
        print_table([{"asset": asset, "partitions": count} for asset, count in plan["assets"].items()])
    for key, text in (
        ("in_unfinished_backfills", "partitions left to backfills that are not finished"),
        ("retired", "partitions are not in Dagster's window: `seechange activate` their nights first"),
        ("recognised", f"products exist under these recipes: {would}recognised, not computed"),
    ):
        if plan[key]:
            typer.echo(f"{plan[key]} {text}")
    if plan.get("moved"):
        typer.echo(f"tag {tag} moved: " + ", ".join(move["process"] for move in plan["moved"]))
    if not plan["partitions"]:
        typer.echo("nothing to compute")
    elif dry_run:
        typer.echo(f"{plan['partitions']} runs would be submitted")
    else:
        typer.echo(f"backfill {plan['backfill']}: {plan['partitions']} runs; Dagster's page shows how far it is")


def _print_groups(groups: "list[StaleGroup]") -> None:
    for reason in dict.fromkeys(group.reason for group in groups):
        rows = [
            {"asset": g.asset, "partitions": g.n_partitions, "made by": g.stopped or g.old[:10], "now": g.new[:10]}
            for g in groups
            if g.reason == reason
        ]
        print_table(rows, title=reason)
    typer.echo("`seechange backfill` makes them again")


def _told(group: "StaleGroup") -> dict[str, Any]:
    return {
        "asset": group.asset, "partitions": group.n_partitions, "old": group.old, "new": group.new,
        "stopped": group.stopped or None, "reason": group.reason,
        "changes": [asdict(change) for change in group.changes],
    }  # fmt: skip


def _session() -> "Session":
    from seechange_assets.cli.session import open_session

    return open_session(settings())


def _staleness(session: "Session", rows: Any) -> Any:
    from io_managers.staleness import Staleness

    return Staleness(rows, session.ledger.recipes, session.ledger.instrument)


def _names(given: list[str] | None) -> list[str]:
    return [name for part in given or [] for name in part.split(",") if name]
