"""`seechange alerts listen`, `replay`, `status`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from seechange_assets.cli.common import JsonOption, NightOption, print_json, print_table, settings


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(no_args_is_help=True, help="Alerts: read them, resend them, see what waits.")
    for command in (listen, replay, status):
        group.command()(command)
    app.add_typer(group, name="alerts")


def listen(
    topics: Annotated[str, typer.Option(help="Regular expression of whole topic names.")] = ".*-alerts-.*",
    condition: Annotated[
        str | None, typer.Option("--filter", help='Only alerts that meet it, e.g. "snr > 10 and rb > 0.8".')
    ] = None,
    from_beginning: Annotated[bool, typer.Option(help="Start with the oldest alert kept.")] = False,
    timeout: Annotated[float | None, typer.Option(help="Stop when nothing came for so long [s].")] = None,
    maximum: Annotated[int | None, typer.Option(min=1, help="Stop after so many.")] = None,
    save: Annotated[Path | None, typer.Option(help="Folder for each alert: JSON, and its stamps as FITS.")] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Show new, reference, difference; with --save as PNG in the folder.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print alerts as they arrive, one line each; Ctrl-C ends."""
    from resources.alert_stream import listen as read
    from seechange_assets.alert_filter import AlertFilter

    is_wanted = AlertFilter(condition) if condition else None
    configuration = settings()
    heard = read(
        configuration.kafka_servers, topics, from_beginning=from_beginning, timeout_s=timeout,
        security=configuration.kafka_options,
    )  # fmt: skip
    n_shown = 0
    try:
        for alert in heard:
            if is_wanted is None or is_wanted(alert):
                show(alert, save, pictures, as_json)
                n_shown += 1
                if n_shown == maximum:
                    break
    except KeyboardInterrupt:
        raise typer.Exit from None
    finally:
        heard.close()  # type: ignore[attr-defined]


def show(alert: dict[str, Any], save: Path | None, pictures: bool, as_json: bool) -> None:
    """Print one alert, and keep what was asked for."""
    typer.echo(json.dumps(without_stamps(alert), default=str) if as_json else one_line(alert))
    if save is not None:
        save_alert(alert, save)
    if pictures and save is not None:
        from seechange_assets.alert_pictures import triplet_png

        (save / f"{_file_name(alert)}.png").write_bytes(triplet_png(alert))
    elif pictures and not as_json:
        from seechange_assets.alert_pictures import triplet_text

        typer.echo(triplet_text(alert))


def without_stamps(alert: dict[str, Any]) -> dict[str, Any]:
    """The alert without its pictures, fit for a terminal or JSON."""
    return {key: value for key, value in alert.items() if not isinstance(value, bytes)}


def one_line(alert: dict[str, Any]) -> str:
    """What a person wants to know first; what is null shows as a dash, what is not printable is escaped."""
    from seechange_assets.alert_filter import field

    numbers = (_number(field(alert, "psfFlux"), 12, 1), _number(field(alert, "snr"), 7, 1))
    place = field(alert, "visit") or f"MJD {_number(field(alert, 'MJD'), 0, 5)}"
    line = (
        f"{(alert.get('diaObject') or {}).get('name') or '-':<14} {alert['diaSource']['ra']:10.5f} "
        f"{alert['diaSource']['dec']:+10.5f}  {field(alert, 'band') or '-':<3} {numbers[0]} nJy  S/N {numbers[1]}  "
        f"score {_number(field(alert, 'reliability'), 4, 2)}  {place}"
    )
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


def _number(value: float | None, width: int, decimals: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{decimals}f}"


def save_alert(alert: dict[str, Any], folder: Path) -> None:
    """Write an alert as JSON and its stamps as FITS (raw pixels of an old packet as they are), named by its id."""
    folder.mkdir(parents=True, exist_ok=True)
    name = _file_name(alert)
    (folder / f"{name}.json").write_text(json.dumps(without_stamps(alert), indent=1, default=str))
    for stamp in ("cutoutScience", "cutoutTemplate", "cutoutDifference"):
        if alert.get(stamp):
            ending = "fits" if alert[stamp].startswith(b"SIMPLE") else "f4"
            (folder / f"{name}.{stamp}.{ending}").write_bytes(alert[stamp])


def _file_name(alert: dict[str, Any]) -> str:
    """The id, if it is fit for a file: what comes over a network decides no path."""
    from seechange_assets.names import checked_name

    return checked_name(str(alert["alertId"]), "alertId")


def replay(
    exposure: Annotated[str | None, typer.Option(help="Exposure whose alerts are sent again.")] = None,
    night: NightOption = None,
    name: Annotated[str | None, typer.Option("--object", help="Object whose alerts are sent again.")] = None,
    resend: Annotated[
        bool, typer.Option("--resend", help="Also what was withheld because its detection had been told before.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Send the same packets, with the same ids, once more."""
    from resources.alert_brokers import alert_stream
    from seechange_assets.cli.session import open_session
    from seechange_assets.errors import ParameterError
    from sql.alerts import OutboxRow, requeue, taken_in_night

    conditions = [OutboxRow.exposure == exposure] if exposure else []
    conditions += [taken_in_night(night)] if night else []
    conditions += [OutboxRow.key == name] if name else []
    if not conditions:
        raise ParameterError("replay: say which alerts by --exposure, --night or --object")
    configuration = settings()
    database = open_session(configuration).store.database
    with database.session() as session:
        queued = requeue(session, *conditions, withheld=resend)
    sent = alert_stream(configuration).relay(database)
    print_json({"queued": queued, "sent": sent}) if as_json else typer.echo(f"{queued} queued, {sent} sent")


def status(as_json: JsonOption = False) -> None:
    """What is sent, waits and is withheld, by topic: age of the oldest that waits, latency of those sent [s]."""
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
