"""`seechange process`: the chain of one exposure, now, in this process."""

from typing import Annotated, Any

import typer

from seechange_assets.cli.common import JsonOption, print_json, print_table, progress_bar, settings


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(process)


def process(
    exposure: Annotated[str, typer.Argument(help="Key of a registered exposure.")],
    ccd: Annotated[list[str] | None, typer.Option(help="Only this CCD; repeat for more.")] = None,
    through: Annotated[str, typer.Option(help="Last asset to make.")] = "alerts",
    as_json: JsonOption = False,
) -> None:
    """Run the chain for an exposure. One CCD that fails stops that CCD alone.

    Exit code 1 if any CCD failed.
    """
    from seechange_assets.cli.session import open_session

    session = open_session(settings())
    ccds = _ccds(session, exposure, ccd)
    assets = chain(session.store.recipes, through)
    session.announce([exposure])
    rows = []
    with progress_bar(exposure) as show:
        for number, name in enumerate(ccds):
            show(f"CCD {name}", number / len(ccds))
            rows.append(_process_ccd(session, exposure, name, assets))
    if as_json:
        print_json(rows)
    else:
        print_table(rows, title=exposure)
    if any(row["outcome"] == "failed" for row in rows):
        raise typer.Exit(1)


def chain(recipes: Any, through: str) -> list[str]:
    """The assets from `image` to `through`, without those that feed nothing in it.

    Raises
    ------
    ParameterError
        When `through` is no asset of the chain.
    """
    from seechange_assets.errors import ParameterError
    from seechange_assets.parameters import unknown_name

    apart = {"exposure", "reference", *(name for name in recipes if name.startswith("master_"))}
    names = [name for name in recipes if name not in apart]
    if through not in names:
        raise ParameterError(unknown_name(through, names, "--through"))
    wanted, queue = set(), [through]
    while queue:
        name = queue.pop()
        if name not in wanted and name not in apart:
            wanted.add(name)
            queue += recipes.upstreams(name)
    return [name for name in names if name in wanted]


def _ccds(session: Any, exposure: str, wanted: list[str] | None) -> list[str]:
    from seechange_assets.errors import ProductNotFound

    row = session.registry.get(exposure)
    if row is None:
        raise ProductNotFound(f"exposure {exposure!r:.90} is not registered; run `seechange ingest`")
    if row.kind != "science":
        raise ProductNotFound(f"{exposure} is a {row.kind} frame; masters are built from it by the calibration sensor")
    for ccd in wanted or []:
        if ccd not in row.filters:
            raise ProductNotFound(f"{exposure} has no CCD {ccd!r}; it has {', '.join(sorted(row.filters))}")
    return wanted or sorted(row.filters)


def _process_ccd(session: Any, exposure: str, ccd: str, assets: list[str]) -> dict[str, Any]:
    result = session.run("process_ccd", {"exposure": exposure, "ccd": ccd}, assets)
    done = {event.asset_key.path[-1] for event in result.all_events if event.is_step_materialization}
    made = [name for name in assets if name in done]
    row = {"ccd": ccd, "outcome": "done" if len(made) == len(assets) else "waiting", "made": len(made), "reason": None}
    stopped = session.store.latest_report(exposure, ccd)
    if not result.success:
        row["outcome"] = "failed"
    if row["outcome"] != "done" and stopped is not None:
        row["reason"] = f"{stopped.step}: {stopped.message}"
    return row
