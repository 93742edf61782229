"""`seechange simulate`."""

from pathlib import Path
from typing import Annotated

import typer

from seechange_assets.cli.common import JsonOption, print_json, progress_bar, settings


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(simulate)


def simulate(
    out: Annotated[Path, typer.Argument(help="Folder to write into.")],
    seed: Annotated[int, typer.Option(help="Seed of sky and camera.")] = 1,
    exposures: Annotated[int, typer.Option(min=1, help="Science exposures after the reference epochs.")] = 2,
    reference_epochs: Annotated[int, typer.Option(min=0, help="Exposures without transients.")] = 3,
    ccds: Annotated[str, typer.Option(help="How many CCDs, or their names: 01,02.")] = "2",
    transients: Annotated[int, typer.Option(min=0, help="Transients per CCD.")] = 30,
    streaks: Annotated[int, typer.Option(min=0, help="Satellite streaks per exposure.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write raw exposures, calibration frames, a star catalogue and the truth."""
    from seechange_assets.instruments.base import get_instrument
    from seechange_assets.simulation.survey import simulate_survey

    instrument = get_instrument(settings().instrument)
    with progress_bar("simulating") as show:
        simulate_survey(
            out,
            seed=seed,
            exposures=exposures,
            reference_epochs=reference_epochs,
            ccds=chosen_ccds(instrument.ccds, ccds),
            transients_per_ccd=transients,
            streaks=streaks,
            instrument=instrument.name,
            progress=show,
        )
    files = sorted(str(path) for path in (out / "raw").glob("*.fits"))
    result = {"raw": files, "catalog": str(out / "catalog" / "gaia.fits"), "truth": str(out / "truth.ecsv")}
    if as_json:
        print_json(result)
    else:
        typer.echo(f"{len(files)} raw files in {out / 'raw'}; catalogue {result['catalog']}; truth {result['truth']}")


def chosen_ccds(known: tuple[str, ...], wanted: str) -> tuple[str, ...]:
    """CCD names from a count (``2``) or a list (``01,02``).

    Raises
    ------
    ParameterError
        For a CCD the instrument does not have.
    """
    from seechange_assets.errors import ParameterError

    if (wanted.isdigit() and len(wanted) < 2) or (wanted not in known and wanted.isdigit()):
        count = int(wanted)
        if not 1 <= count <= len(known):
            raise ParameterError(f"--ccds {wanted}: expected 1 to {len(known)}")
        return known[:count]
    names = tuple(wanted.split(","))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ParameterError(f"--ccds: no CCD {unknown[0]!r}; the instrument has {known[0]} to {known[-1]}")
    return names
