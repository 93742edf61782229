"""A survey of 32 tiny CCDs for `orchestration.py`: one CCD through the real chain, the others moved copies of it."""

import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np

from benchmarks.trivial import MODEL_CCD, Tiny, moved, ready_made
from resources.settings import Settings, project_root
from seechange_assets.cli.process import chain
from seechange_assets.cli.session import Session
from seechange_assets.instruments.headers import MJD_ZERO
from seechange_assets.partitions import Partition
from seechange_assets.simulation.plan import POINTING_DEG
from seechange_assets.simulation.survey import SimulatedSurvey, simulate_survey

#: Days between two exposures of the field: 130 fit into the validity of the masters.
CADENCE_DAYS = 0.2
_FIRST_MJD = 61347.6
_WORKSPACE = """load_from:
  - python_module: {{module_name: benchmarks.trivial, location_name: seechange, working_directory: "{root}"}}
"""


class TinySurvey:
    """Raw files, masters, references and ready-made products in one home."""

    def __init__(self, settings: Settings, n_ccds: int) -> None:
        self.settings, self.ccds = settings, Tiny.ccds[:n_ccds]
        self._session = Session(settings)
        self._frame = np.random.default_rng(1).normal(1200.0, 30.0, Tiny().raw_shape).astype(np.uint16)

    def prepare(self, show: Callable[[str], None]) -> None:
        """Everything but the exposures of the night, unless this home has it; services must be up."""
        if ready_made(self.settings.home).exists():
            return
        show("simulate the model")
        simulated = simulate_survey(
            self.settings.home / "simulation", seed=5, exposures=1, ccds=(MODEL_CCD,), biases=3, flats=3,
            transients_per_ccd=5, instrument=Tiny.name,
        )  # fmt: skip
        self._copy_catalog(simulated.catalog)
        show("the real chain on the model CCD")
        self._run_model(simulated)
        show("copies for the other CCDs")
        self._copy_shared()
        ready_made(self.settings.home).write_bytes(pickle.dumps(self._products))

    def arrivals(self, n: int) -> Iterator[str]:
        """Put one raw file after another into the drop directory; each gives the key of its exposure."""
        for hidden in self._raw_files(n):
            yield Tiny().read_exposure(_shown(hidden)).key

    def burst(self, n: int) -> None:
        """Put so many into it at once."""
        for hidden in list(self._raw_files(n)):
            _shown(hidden)

    def _raw_files(self, n: int) -> Iterator[Path]:
        """New raw files, hidden from the sensor by the dot before their names."""
        from astropy.io import fits

        camera, n_known = Tiny(), sum(row.mjd >= _FIRST_MJD for row in self._session.registry.after(0))
        for number in range(n_known, n_known + n):
            mjd = _FIRST_MJD + CADENCE_DAYS * number
            start = MJD_ZERO + timedelta(days=mjd)
            cards = {
                "INSTRUME": camera.name, "TELESCOP": camera.telescope, "IMAGETYP": "object",
                "DATE-OBS": f"{start.replace(tzinfo=None):%Y-%m-%dT%H:%M:%S.%f}"[:-3], "MJD-OBS": mjd, "EXPTIME": 45.0,
                "PROJECT": "survey", "OBJECT": "sim01", "FIELD": "sim01", "AIRMASS": 1.1,
                "RA": POINTING_DEG[0], "DEC": POINTING_DEG[1],
                "NCCD": len(self.ccds), "CCDLIST": ",".join(self.ccds),
            }  # fmt: skip
            hdus = fits.HDUList([fits.PrimaryHDU(header=fits.Header(cards))])
            for ccd in self.ccds:
                header = camera.wcs_guess(*POINTING_DEG, ccd)
                header["EXTNAME"], header["FILTER"] = f"CCD{ccd}", camera.default_filter(ccd)
                hdus.append(fits.ImageHDU(self._frame, header=header))
            hidden = self.settings.drop / f".tiny_{number:05d}.fits"
            hdus.writeto(hidden)
            yield hidden

    def _run_model(self, simulated: SimulatedSurvey) -> None:
        session = self._session
        for file in simulated.raw:
            session.registry.register(file)
        session.announce([simulated.keys[file] for file in simulated.references + simulated.science])
        night = session.registry.get(simulated.keys[simulated.biases[0]]).night
        session.instance.add_dynamic_partitions("calibration", [night])
        _run(session, "build_masters", {"calibration": night, "ccd": MODEL_CCD}, ["master_bias", "master_flat"])
        for file in simulated.references:
            self._process(simulated.keys[file], "zp")
        selection = session.store.recipes.parameters("reference")
        target = next(partition for partition, _ in session.store.reference_candidates(selection))
        session.instance.add_dynamic_partitions("field_filter", [target.key])
        _run(session, "build_reference", {"field_filter": target.key, "ccd": target.ccd}, ["reference"])
        model = simulated.keys[simulated.science[0]]
        self._process(model, "alerts")
        names = chain(session.store.recipes, "scores")
        self._products = {name: session.store.load(name, Partition(model, MODEL_CCD)) for name in names}
        self._night, self._target = night, target

    def _copy_catalog(self, catalog: Path) -> None:
        """Stars on every CCD, as on the model's."""
        from astropy.table import Table, vstack

        stars = Table.read(catalog)
        vstack([moved(stars, ccd) for ccd in self.ccds], metadata_conflicts="silent").write(catalog, overwrite=True)

    def _process(self, exposure: str, through: str) -> None:
        assets = chain(self._session.store.recipes, through)
        _run(self._session, "process_ccd", {"exposure": exposure, "ccd": MODEL_CCD}, assets)

    def _copy_shared(self) -> None:
        store, camera = self._session.store, Tiny()
        masters = [store.load(name, Partition(self._night, MODEL_CCD)) for name in ("master_bias", "master_flat")]
        reference = store.load("reference", self._target)
        for ccd in self.ccds[1:]:
            name = camera.default_filter(ccd)
            for master in masters:
                filtered = name if master.kind == "flat" else master.filter
                copy = replace(master, ccd=ccd, filter=filtered)
                store.save(f"master_{master.kind}", Partition(self._night, ccd), copy)
            placed = moved(reference, ccd)
            placed = replace(placed, info=replace(placed.info, ccd=ccd, filter=name))
            store.save("reference", Partition(f"{placed.info.field}.{name}", ccd), placed)


def _shown(hidden: Path) -> Path:
    return hidden.rename(hidden.with_name(hidden.name[1:]))


def _run(session: Session, job: str, partition: dict[str, str], assets: list[str]) -> None:
    if not session.run(job, partition, assets).success:
        raise RuntimeError(f"{job} of {partition} failed")


def settings_of(home: Path, workers: int) -> Settings:
    """Settings of the benchmark, also in the environment of everything it starts."""
    for name in [name for name in os.environ if name.startswith("SEECHANGE_")]:
        del os.environ[name]
    home.mkdir(parents=True, exist_ok=True)
    workspace = home / "workspace.yaml"
    workspace.write_text(_WORKSPACE.format(root=project_root()))
    os.environ |= {
        "SEECHANGE_HOME": str(home), "SEECHANGE_INSTRUMENT": Tiny.name, "SEECHANGE_WORKERS": str(workers),
        "SEECHANGE_WORKSPACE": str(workspace), "SEECHANGE_UI_PORT": "0",
        "SEECHANGE_CATALOG": str(home / "simulation" / "catalog" / "gaia.fits"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(project_root()), os.environ.get("PYTHONPATH")])),
    }  # fmt: skip
    return Settings.from_environment()
