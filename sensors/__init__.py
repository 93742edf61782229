"""When things run: jobs and the sensors that request them."""

from typing import Any

import dagster as dg

from sensors.alert_relay import alert_relay
from sensors.calibrations import calibration_runs
from sensors.failures import failed_runs
from sensors.http_archive import http_archive
from sensors.new_exposures import new_exposures
from sensors.night_reports import night_reports
from sensors.references import new_references
from sensors.repeats import repeat_exposures, repeat_masters, repeat_references
from sensors.stale import stale_partitions
from sensors.staleness_checks import staleness
from sensors.waiting import waiting_partitions
from sensors.window import nightly_retire, retire_window

SENSORS = [
    new_exposures,
    calibration_runs,
    new_references,
    waiting_partitions,
    repeat_exposures,
    repeat_masters,
    repeat_references,
    alert_relay,
    stale_partitions,
    staleness,
    night_reports,
    http_archive,
]
#: Asked by Dagster for each run that failed, not at intervals.
RUN_SENSORS = [failed_runs]
SCHEDULES = [nightly_retire]


def jobs(phases: dict[str, list[Any]]) -> list[Any]:
    """`process_ccd` runs one exposure x CCD from pixels to alerts; two jobs make what it needs, two tend nights."""
    chain = [a for phase in ("calibrate", "discover", "publish") for a in phases[phase] if a.name != "reference"]
    masters = [a for a in phases["acquire"] if a.name != "exposure"]
    return [
        _job("process_ccd", chain, "One exposure and CCD from raw pixels to alerts."),
        _job("build_masters", masters, "The master frames of a night for one CCD."),
        _job("build_reference", [phases["discover"][0]], "The reference of a field, filter and CCD."),
        dg.define_asset_job("report_night", selection=dg.AssetSelection.assets("night_report")),
        retire_window,
    ]


def _job(name: str, assets: list[Any], description: str) -> Any:
    selection = dg.AssetSelection.assets(*(asset.name for asset in assets))
    return dg.define_asset_job(name, selection=selection, description=description)
