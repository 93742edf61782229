"""Masters are found by date, set, type and filter; files are accepted; what is missing or ambiguous is an error."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from io_managers.external_masters import register_master
from io_managers.lookups import SurveyStore
from resources.archive import Archive
from resources.database import Database
from resources.settings import Settings
from seechange_assets.definitions import build_recipes
from seechange_assets.errors import AmbiguousMaster, BadMaster, MasterNotFound
from seechange_assets.instruments.base import get_instrument
from seechange_assets.partitions import Partition
from seechange_assets.products import Flag, ImageInfo, Master

MJD = 61366.2
INFO = ImageInfo(
    exposure="e1", ccd="01", instrument="demo", field="f", filter="r", mjd=MJD, exptime_s=45.0, airmass=1.0, target="",
    project="", gain=1.6, read_noise=6.5, saturation=5e4, pixel_scale_arcsec=1.0,
)  # fmt: skip
INSTRUMENT = get_instrument("demo")


@pytest.fixture
def store(database_url: str, tmp_path: Path):
    settings = Settings.from_environment({"SEECHANGE_HOME": str(tmp_path), "SEECHANGE_INSTRUMENT": "demo"})
    store = SurveyStore(Database(database_url), Archive(str(tmp_path / "archive")), build_recipes(settings), "demo")
    store.database.upgrade()
    yield store
    store.database.engine.dispose()


def nightly(store, kind: str, night: str, mjd: float, **values) -> Master:
    master = Master(
        kind=kind, calibration=night, ccd="01", instrument="demo", filter="r" if kind in ("flat", "fringe") else "",
        valid_from=mjd - 30, valid_to=mjd + 30, data=np.full((512, 512), mjd, np.float32),
        flags=np.zeros((512, 512), np.uint16), members=(),
    )  # fmt: skip
    master = replace(master, **values)
    store.save(f"master_{kind}", Partition(night, "01"), master)
    return master


def file(tmp_path: Path, data: np.ndarray | None = None) -> Path:
    path = tmp_path / "master.fits"
    data = np.ones((512, 512), np.float32) if data is None else data
    fits.PrimaryHDU(data.astype(np.float32)).writeto(path, overwrite=True)
    return path


def external(store, path: Path, **values) -> Master:
    given = {"name": "dome2026", "kind": "flat", "ccd": "01", "filter_name": "r", "flat_type": "dome"}
    given |= {"valid_from": MJD - 100, "valid_to": MJD + 100}
    return register_master(store, INSTRUMENT, path, **given | values)


def test_the_nearest_valid_master_is_taken(store) -> None:
    for night, mjd in (("2026-11-01", MJD - 20), ("2026-11-20", MJD - 1), ("2027-03-01", MJD + 90)):
        nightly(store, "bias", night, mjd)
        nightly(store, "dark", night, mjd)
    identifier, master = store.master("bias", INFO)
    assert identifier.startswith("2026-11-20/")
    assert master.data[0, 0] == pytest.approx(MJD - 1, abs=0.01)
    assert store.master("dark", INFO)[0].startswith("2026-11-20/")
    assert store.master("bias", replace(INFO, mjd=MJD - 45))[0].startswith("2026-11-01/")
    with pytest.raises(MasterNotFound, match=r"no master bias on MJD .* is valid") as caught:
        store.master("bias", replace(INFO, mjd=MJD + 500))
    assert caught.value.waits_for == "master_bias//01"


def test_filter_and_ccd_count(store) -> None:
    nightly(store, "flat", "2026-11-20", MJD)
    assert store.master("flat", INFO)[1].filter == "r"
    with pytest.raises(MasterNotFound, match="in filter g"):
        store.master("flat", replace(INFO, filter="g"))
    with pytest.raises(MasterNotFound, match="CCD 02"):
        store.master("flat", replace(INFO, ccd="02"))


def test_types_of_flat(store) -> None:
    nightly(store, "flat", "2026-11-19", MJD - 1, flat_type="dome")
    nightly(store, "flat", "2026-11-20", MJD, flat_type="twilight")
    assert store.master("flat", INFO, flat_type="dome")[1].flat_type == "dome"
    assert store.master("flat", INFO, flat_type="twilight")[1].flat_type == "twilight"
    with pytest.raises(MasterNotFound):
        store.master("flat", INFO, flat_type="sky")
    with pytest.raises(AmbiguousMaster, match="flat_type may be dome, twilight: choose one by"):
        store.master("flat", INFO)


def test_a_file_becomes_a_master(store, tmp_path: Path) -> None:
    data = np.random.default_rng(1).normal(1, 0.01, (512, 512))
    data[3, 4], data[5, 6] = np.nan, 0.0
    external(store, file(tmp_path, data))
    identifier, master = store.master("flat", INFO)
    assert identifier.startswith("dome2026/")
    assert (master.calibration_set, master.flat_type) == ("external", "dome")
    assert {tuple(at) for at in np.argwhere(master.flags)} == {(3, 4), (5, 6)}
    assert master.flags[3, 4] == Flag.BAD
    np.testing.assert_allclose(master.data[10], data[10], rtol=1e-6)
    external(store, file(tmp_path, data))
    assert store.master("flat", INFO)[0] == identifier
    register_master(
        store, INSTRUMENT, file(tmp_path), name="illum", kind="illumination", ccd="01", filter_name="r",
        valid_from=MJD - 1, valid_to=MJD + 1,
    )  # fmt: skip
    assert store.master("illumination", INFO)[1].kind == "illumination"


def test_ambiguous_sets_and_dates(store, tmp_path: Path) -> None:
    nightly(store, "flat", "2026-11-20", MJD, flat_type="dome")
    external(store, file(tmp_path))
    with pytest.raises(AmbiguousMaster, match="calibration_set may be external, nightly: choose one by"):
        store.master("flat", INFO)
    assert store.master("flat", INFO, "nightly")[1].calibration_set == "nightly"
    assert store.master("flat", INFO, "external")[1].calibration_set == "external"
    external(store, file(tmp_path), name="another")
    with pytest.raises(AmbiguousMaster, match="another, dome2026 fit equally well"):
        store.master("flat", INFO, "external")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "gain"}, "expected one of bias"),
        ({"ccd": "77"}, "no CCD '77'"),
        ({"filter_name": "X"}, "needs a filter"),
        ({"flat_type": "moon"}, "'moon'"),
        ({"kind": "bias"}, "'dome' of a bias"),
        ({"valid_to": MJD - 200}, "no range"),
        ({"valid_from": float("nan")}, "no range"),
    ],
)
def test_bad_descriptions(store, tmp_path: Path, values: dict, said: str) -> None:
    with pytest.raises(BadMaster, match=said):
        external(store, file(tmp_path), **values)
    with pytest.raises(MasterNotFound):
        store.master("flat", INFO)


@pytest.mark.parametrize("shape", [(10, 10), (512,)])
def test_bad_files(store, tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(BadMaster):
        external(store, file(tmp_path, np.ones(shape)))
    (tmp_path / "text.fits").write_text("no FITS")
    with pytest.raises(BadMaster, match="not a readable"):
        external(store, tmp_path / "text.fits")
    with pytest.raises(BadMaster, match="no usable pixel"):
        external(store, file(tmp_path, np.full((512, 512), np.nan)))
