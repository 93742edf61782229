"""`seechange alerts listen`, `replay`, `status`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from seechange_assets.cli.common import JsonOption, print_json, print_table, settings


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(no_args_is_help=True, help="Alerts: read them, resend them, see what waits.")
    for command in (listen, replay, status):
        group.command()(command)
    app.add_typer(group, name="alerts")


def listen(
    topics: Annotated[str, typer.Option(help="Regular expression of whole topic names.")] = ".*-alerts-.*",
    from_beginning: Annotated[bool, typer.Option(help="Start with the oldest alert kept.")] = False,
    timeout: Annotated[float | None, typer.Option(help="Stop when nothing came for so long [s].")] = None,
    maximum: Annotated[int | None, typer.Option(min=1, help="Stop after so many.")] = None,
    save: Annotated[Path | None, typer.Option(help="Folder for the stamps, as FITS.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print alerts as they arrive, one line each; Ctrl-C ends."""
    import json

    from resources.alert_stream import listen as read

    servers = settings().kafka_servers
    try:
        for alert in read(servers, topics, from_beginning=from_beginning, timeout_s=timeout, maximum=maximum):
            typer.echo(json.dumps(without_stamps(alert), default=str) if as_json else one_line(alert))
            if save is not None:
                save_stamps(alert, save)
    except KeyboardInterrupt:
        raise typer.Exit from None


def without_stamps(alert: dict[str, Any]) -> dict[str, Any]:
    """The alert without its pictures, fit for a terminal or JSON."""
    return {key: value for key, value in alert.items() if not isinstance(value, bytes)}


def one_line(alert: dict[str, Any]) -> str:
    """What a person wants to know first; what is null shows as a dash."""
    source = alert["diaSource"]
    return (
        f"{alert['diaObject']['name']:<14} {source['ra']:10.5f} {source['dec']:+10.5f}  {source['band'] or '-':<3} "
        f"{_number(source['psfFlux'], 12, 1)} nJy  S/N {_number(source['snr'], 7, 1)}  "
        f"score {_number(source['reliability'], 4, 2)}  {source['visit']}"
    )


def _number(value: float | None, width: int, decimals: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{decimals}f}"


def save_stamps(alert: dict[str, Any], folder: Path) -> None:
    """Write the three stamps of an alert, named by its id."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("cutoutScience", "cutoutTemplate", "cutoutDifference"):
        if alert.get(name):
            (folder / f"{alert['alertId']}.{name}.fits").write_bytes(alert[name])


def replay(
    exposure: Annotated[str, typer.Option(help="Exposure whose alerts are sent again.")],
    as_json: JsonOption = False,
) -> None:
    """Send the same packets, with the same ids, once more."""
    from resources.alert_stream import AlertStream
    from seechange_assets.cli.session import open_session
    from sql.alerts import OutboxRow, requeue

    configuration = settings()
    database = open_session(configuration).store.database
    with database.session() as session:
        queued = requeue(session, OutboxRow.exposure == exposure)
    sent = AlertStream(configuration.kafka_servers).relay(database)
    print_json({"queued": queued, "sent": sent}) if as_json else typer.echo(f"{queued} queued, {sent} sent")


def status(as_json: JsonOption = False) -> None:
    """What is sent and what waits, by topic."""
    from seechange_assets.cli.session import open_session
    from sql.alerts import outbox_status

    with open_session(settings()).store.database.session() as session:
        rows = outbox_status(session)
    if as_json:
        print_json(rows)
    elif rows:
        print_table(rows)
    else:
        typer.echo("no alerts yet")


def waiting_alerts(database: Any) -> int:
    """How many alerts are committed and not acknowledged."""
    from sql.alerts import outbox_status

    with database.session() as session:
        return sum(row["pending"] for row in outbox_status(session))
