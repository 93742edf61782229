"""Rows as the pipeline writes them, without the products."""

import uuid
from typing import Any

from sql.models import ExposureRow, MasterRow, ReferenceRow, ReportRow, WcsRow

MJD = 61366.2


def exposure(recipes: Any, key: str, **values: Any) -> ExposureRow:
    defaults = {
        "key": key,
        "instrument": "demo",
        "kind": "science",
        "night": "2026-11-22",
        "mjd": MJD,
        "exptime_s": 45.0,
        "target": "",
        "project": "survey",
        "field": "f1",
        "filters": {"01": "r", "02": "g"},
        "filepath": f"demo/{key}/raw.fits",
        "sha256": "0" * 64,
        "n_bytes": 1,
        "provenance_id": recipes["exposure"].id,
    }
    return ExposureRow(**defaults | values)


def _product(recipes: Any, process: str, partition: str, ccd: str) -> dict[str, Any]:
    return {
        "id": uuid.uuid4(),
        "partition": partition,
        "ccd": ccd,
        "filepath": f"{process}/{uuid.uuid4()}.fits",
        "sha256": "0" * 64,
        "content_hash": uuid.uuid4().hex * 2,
        "n_bytes": 1,
        "summary": {},
        "inputs": {},
        "provenance_id": recipes[process].id,
    }


def master(recipes: Any, kind: str, ccd: str = "01", **values: Any) -> MasterRow:
    own = {"kind": kind, "instrument": "demo", "filter": "r", "valid_from": MJD - 30, "valid_to": MJD + 30}
    common = _product(recipes, f"master_{kind}", f"night{uuid.uuid4().hex[:8]}", ccd)
    return MasterRow(**common | own | values)


def footprint(ra_deg: float = 150.0, dec_deg: float = 2.0, side_deg: float = 0.2) -> dict[str, Any]:
    h = side_deg / 2
    corners = {
        "ra": [ra_deg - h, ra_deg + h, ra_deg + h, ra_deg - h],
        "dec": [dec_deg - h, dec_deg - h, dec_deg + h, dec_deg + h],
    }
    return {"ra_deg": ra_deg, "dec_deg": dec_deg, "corners": corners, "healpix": 0}


def wcs(recipes: Any, exposure_key: str, ccd: str = "01", **where: float) -> WcsRow:
    own = {"n_matched": 9, "residual_ra_mas": 1.0, "residual_dec_mas": 1.0}
    return WcsRow(**_product(recipes, "wcs", exposure_key, ccd) | own | footprint(**where))


def reference(
    recipes: Any, ccd: str = "01", *, members: tuple[str, ...] = (), where: dict | None = None, **values: Any
):
    own = {
        "name": "default",
        "instrument": "demo",
        "field": "f1",
        "filter": "r",
        "limiting_magnitude": 23.0,
        "fwhm_px": 3.0,
        "members": list(members),
    }
    partition = f"f{uuid.uuid4().hex[:6]}.r"
    return ReferenceRow(**_product(recipes, "reference", partition, ccd) | own | footprint(**where or {}) | values)


def report(recipes: Any, key: str, step: str, waits_for: str, ccd: str = "01", **values: Any) -> ReportRow:
    defaults = {
        "partition": key,
        "ccd": ccd,
        "step": step,
        "provenance_id": recipes[step].id,
        "outcome": "waiting",
        "waits_for": waits_for,
        "seconds": 2.0,
    }
    return ReportRow(**defaults | values)
