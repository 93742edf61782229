"""A small survey run through the whole chain with real services: what the tests of this folder look at."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from resources.database import Database
from resources.settings import Settings
from seechange_assets.cli.process import chain
from seechange_assets.cli.session import Session
from seechange_assets.simulation.survey import SimulatedSurvey, simulate_survey
from sql.base import Base
from sql.models import ReportRow

SEED = 5


@dataclass
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class World:
    """One home with its services, a simulated survey, and the commands of a user."""

    instrument = "demo"

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self.home = home
        self.environment = environment | {"SEECHANGE_INSTRUMENT": self.instrument, "SEECHANGE_HOME": str(home)}
        self.environment["SEECHANGE_CATALOG"] = str(home / "simulation" / "catalog" / "gaia.fits")
        self.settings = Settings.from_environment(self.environment)
        self.session = Session(self.settings)

    @cached_property
    def simulated(self) -> SimulatedSurvey:
        return simulate_survey(
            self.home / "simulation", seed=SEED, exposures=3, ccds=("01", "02"), biases=3, flats=3, instrument="demo"
        )

    def cli(self, *arguments: str) -> Answer:
        """Run a `seechange` command in this process, as its console script would."""
        from seechange_assets.cli.main import main

        out, err = io.StringIO(), io.StringIO()
        with self.as_environment(), redirect_stdout(out), redirect_stderr(err):
            try:
                code = main([*arguments]) or 0
            except SystemExit as stop:
                code = int(stop.code or 0)
        return Answer(code, out.getvalue(), err.getvalue())

    def spawn(self, *arguments: str) -> subprocess.Popen:
        """Start a `seechange` command as a process of its own."""
        command = [sys.executable, "-m", "seechange_assets.cli.main", *arguments]
        return subprocess.Popen(
            command, env=os.environ | self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    @contextmanager
    def as_environment(self) -> Iterator[None]:
        before = dict(os.environ)
        os.environ.update(self.environment)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def ingest(self, files: Sequence[Path]) -> Answer:
        return self.cli("ingest", *(str(file) for file in files))

    def build_masters(self) -> None:
        instance = self.session.instance
        for night in sorted({row.night for row in self.session.registry.after(0) if row.kind != "science"}):
            instance.add_dynamic_partitions("calibration", [night])
            for ccd in ("01", "02"):
                keys = {"calibration": night, "ccd": ccd}
                result = self.session.run("build_masters", keys, ["master_bias", "master_flat"])
                assert result.success

    def build_references(self) -> None:
        selection = self.session.store.recipes.parameters("reference")
        for partition in sorted({p for p, _ in self.session.store.reference_candidates(selection)}, key=str):
            self.session.instance.add_dynamic_partitions("field_filter", [partition.key])
            keys = {"field_filter": partition.key, "ccd": partition.ccd}
            assert self.session.run("build_reference", keys, ["reference"]).success

    def process(self, exposure: str, ccd: str, through: str = "alerts") -> Any:
        """The chain of one CCD, in this process."""
        assets = chain(self.session.store.recipes, through)
        return self.session.run("process_ccd", {"exposure": exposure, "ccd": ccd}, assets)

    def failures(self) -> list[str]:
        """What failed and why, one line each."""
        with self.session.store.database.session() as session:
            failed = session.scalars(sa.select(ReportRow).where(ReportRow.outcome == "failed")).all()
        return [f"{row.step} of {row.partition}/{row.ccd}: {row.error}: {row.message}" for row in failed]

    def counts(self) -> dict[str, int]:
        """Rows of every table but `reports`, which tells of attempts."""
        with self.session.store.database.session() as session:
            return {
                table.name: session.scalar(sa.select(sa.func.count()).select_from(table))
                for table in Base.metadata.sorted_tables
                if table.name != "reports"
            }

    def files(self) -> dict[str, bytes]:
        """Every file of the archive."""
        root = Path(self.settings.archive)
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    def run_everything(self) -> None:
        """Ingest, masters, references, then the first science exposure (the others stay for the tests)."""
        from resources.services.dagster_ui import prepare_home

        prepare_home(self.settings)
        Database(self.settings.database_url).upgrade()
        simulated = self.simulated
        files = [*simulated.biases, *simulated.flats, *simulated.references, *simulated.science[:2]]
        assert self.ingest(files).code == 0
        with self.as_environment():
            self.build_masters()
            keys = [simulated.keys[file] for file in simulated.references]
            for key in keys:
                for ccd in ("01", "02"):
                    assert self.process(key, ccd, "zp").success, self.failures()
            self.build_references()
            for ccd in ("01", "02"):
                assert self.process(simulated.keys[simulated.science[0]], ccd).success, self.failures()
