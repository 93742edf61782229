"""When things run: jobs and the sensors that request them."""

from typing import Any

import dagster as dg

from sensors.alert_relay import alert_relay
from sensors.calibrations import calibration_runs
from sensors.new_exposures import new_exposures
from sensors.references import new_references
from sensors.stale import stale_partitions
from sensors.waiting import waiting_partitions

SENSORS = [new_exposures, calibration_runs, new_references, waiting_partitions, alert_relay, stale_partitions]


def jobs(phases: dict[str, list[Any]]) -> list[Any]:
    """`process_ccd` runs one exposure x CCD from pixels to alerts; two small jobs make what it needs."""
    chain = [a for phase in ("calibrate", "discover", "publish") for a in phases[phase] if a.key.path != ["reference"]]
    masters = [a for a in phases["acquire"] if a.key.path != ["exposure"]]
    return [
        _job("process_ccd", chain, "One exposure and CCD from raw pixels to alerts."),
        _job("build_masters", masters, "The master frames of a night for one CCD."),
        _job("build_reference", [phases["discover"][0]], "The reference of a field, filter and CCD."),
    ]


def _job(name: str, assets: list[Any], description: str) -> Any:
    selection = dg.AssetSelection.assets(*(asset.key for asset in assets))
    return dg.define_asset_job(name, selection=selection, description=description)
