"""Copies of one exposure's rows, made by the database itself: a full window of Dagster for `window.py`.

Every row of the survey and of Dagster that tells of the exposure is copied under the keys of other exposures: rows of
products, reports and claims, runs with their tags, planned and made materializations with their tags, partitions. The
copies lie in other fields of the sky, as the exposures of real nights do.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from resources.database import Database
from sql.base import Base
from sql.models import PRODUCT_ROWS, AlertSetRow, ExposureRow, WcsRow
from sql.sky import healpix_of

#: Fields that the copies are spread over; degrees between them.
N_FIELDS, FIELD_STEP_DEG = 60, 5.0
#: Start of the first night's first copy, and the length of a night [days].
_FIRST_MJD, _NIGHT_DAYS = 61200.05, 0.4
_PER_CHUNK = 50
_SHARED = ("master_bias", "master_dark", "master_flat", "master_fringe", "reference")

_COPIES = """
insert into copies
select n, :camera || to_char(at, '_YYYYMMDD"T"HH24MISS'), to_char(at - interval '12 hours', 'YYYY-MM-DD'), mjd
from (
    select n, mjd, timestamp '1858-11-17' + mjd * interval '1 day' as at
    from unnest(cast(:n as int[]), cast(:mjd as float8[])) as u(n, mjd)
) t
"""
#: The id of a copied run: the number of the copy, then the old id from its ninth character on.
_RUN = "to_char(c.n, 'FM00000000') || substr(e.run_id, 9)"
_DAGSTER = [
    """
create temporary table own_runs on commit drop as
select r.* from runs r join run_tags t using (run_id)
where t.key = 'dagster/partition/exposure' and t.value = :key and r.status = 'SUCCESS'
""",
    """
create temporary table own_events on commit drop as
select * from event_logs
where run_id in (select run_id from own_runs)
and dagster_event_type in ('ASSET_MATERIALIZATION_PLANNED', 'ASSET_MATERIALIZATION')
""",
    """
insert into dynamic_partitions (partitions_def_name, partition, create_timestamp)
select 'exposure', key, now() from copies
""",
    f"""
insert into runs (
    run_id, snapshot_id, pipeline_name, mode, status, run_body, partition, partition_set, create_timestamp,
    update_timestamp, start_time, end_time, backfill_id
)
select {_RUN}, e.snapshot_id, e.pipeline_name, e.mode, e.status,
    replace(replace(e.run_body, :key, c.key), e.run_id, {_RUN}), replace(e.partition, :key, c.key), e.partition_set,
    e.create_timestamp - interval '1 day', e.update_timestamp - interval '1 day', e.start_time - 86400,
    e.end_time - 86400, e.backfill_id
from own_runs e cross join copies c
""",
    f"""
insert into run_tags (run_id, key, value)
select {_RUN}, e.key, replace(e.value, :key, c.key)
from run_tags e cross join copies c where e.run_id in (select run_id from own_runs)
""",
    f"""
create temporary table new_events on commit drop as
select nextval('event_logs_id_seq') as id, e.id as old_id, {_RUN} as run_id,
    replace(replace(e.event, :key, c.key), e.run_id, {_RUN}) as event, e.dagster_event_type,
    e.timestamp - interval '1 day' as timestamp, e.step_key, e.asset_key, replace(e.partition, :key, c.key) as partition
from own_events e cross join copies c order by c.n, e.id
""",
    """
insert into event_logs (id, run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)
select id, run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition from new_events
""",
    """
insert into asset_event_tags (event_id, asset_key, key, value, event_timestamp)
select n.id, t.asset_key, t.key, case when t.value = :key then split_part(n.partition, '|', 2) else t.value end,
    t.event_timestamp - interval '1 day'
from asset_event_tags t join new_events n on n.old_id = t.event_id
""",
]


class WindowSeed:
    """Copies of the newest exposure that is done.

    Attributes
    ----------
    nights : list of str
        Those of the copies, the oldest first.
    """

    def __init__(self, survey: Database, dagster: Database) -> None:
        self._survey, self._dagster = survey, dagster
        self.nights: list[str] = []

    def fill(self, n_exposures: int, n_nights: int, show: Callable[[str], None]) -> None:
        """Make so many copies, in as many nights."""
        with self._survey.session() as session:
            newest = sa.select(AlertSetRow.partition).order_by(AlertSetRow.created_at.desc()).limit(1)
            template: Any = session.get(ExposureRow, session.scalar(newest))
            _make_sky(session, template.key)
        numbers = np.arange(n_exposures)
        mjd = _FIRST_MJD + numbers * n_nights // n_exposures + _NIGHT_DAYS * ((numbers * n_nights / n_exposures) % 1)
        for start in range(0, n_exposures, _PER_CHUNK):
            show(f"rows of {start} of {n_exposures} exposures")
            chunk = slice(start, start + _PER_CHUNK)
            self._copy(template, numbers[chunk].tolist(), mjd[chunk].tolist())
        show("vacuum")
        for database in (self._survey, self._dagster):
            with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(sa.text("vacuum analyze"))

    def _copy(self, template: Any, numbers: list[int], mjd: list[float]) -> None:
        given = {"camera": template.instrument, "n": numbers, "mjd": mjd}
        with self._survey.session() as session:
            _make_copies(session)
            session.execute(sa.text(_COPIES), given)
            copies = [dict(row) for row in session.execute(sa.text("select * from copies order by n")).mappings()]
            for statement in _survey_statements():
                session.execute(sa.text(statement), {"key": template.key})
        with self._dagster.session() as session:
            _make_copies(session)
            session.execute(sa.text("insert into copies values (:n, :key, :night, :mjd)"), copies)
            for statement in _DAGSTER:
                session.execute(sa.text(statement), {"key": template.key})
        self.nights = sorted({*self.nights, *(copy["night"] for copy in copies)})


def _make_copies(session: Session) -> None:
    session.execute(sa.text("create temporary table copies (n int, key text, night text, mjd float8) on commit drop"))


def _make_sky(session: Session, key: str) -> None:
    """A table with the place of each CCD of an exposure in each field."""
    columns = "field int, ccd text, ra_deg float8, dec_deg float8, corners jsonb, healpix int8"
    session.execute(sa.text("drop table if exists seed_sky"))
    session.execute(sa.text(f"create table seed_sky ({columns})"))
    sky = sa.table(
        "seed_sky", *(sa.column(name, getattr(WcsRow, name, WcsRow.ccd).type) for name in _SKY), sa.column("field")
    )
    rows = session.execute(sa.select(*(getattr(WcsRow, name) for name in _SKY)).where(WcsRow.partition == key)).all()
    for field in range(N_FIELDS):
        shift = 20.0 + FIELD_STEP_DEG * field
        session.execute(sa.insert(sky), [{"field": field, **_shifted(row, shift)} for row in rows])


#: Columns that are those of the sky, and the CCD.
_SKY = ("ccd", "ra_deg", "dec_deg", "corners", "healpix")


def _shifted(row: Any, shift_deg: float) -> dict[str, Any]:
    corners = {"ra": list((np.array(row.corners["ra"]) + shift_deg) % 360), "dec": row.corners["dec"]}
    ra_deg = (row.ra_deg + shift_deg) % 360
    place = {"ra_deg": ra_deg, "dec_deg": row.dec_deg, "corners": corners}
    return {"ccd": row.ccd, **place, "healpix": healpix_of(ra_deg, row.dec_deg)}


def _survey_statements() -> Iterator[str]:
    """Copies within each table of the survey that tells of an exposure."""
    own = {"key": "c.key", "night": "c.night", "mjd": "c.mjd", "partition": "c.key", "exposure": "c.key"}
    own |= {"id": "gen_random_uuid()", "filepath": "replace(t.filepath, :key, c.key)"}
    yield _within("exposures", "key", own)
    yield _within("exposure_claims", "exposure", own)
    for name, row in PRODUCT_ROWS.items():
        if name not in _SHARED:
            yield _within(row.__tablename__, "partition", own)
    yield _within("reports", "partition", own)


def _within(table: str, key: str, own: dict[str, str]) -> str:
    names = [column.name for column in Base.metadata.tables[table].columns if column.name != "sequence"]
    sky = [name for name in _SKY[1:] if name in names] if "ccd" in names else []
    values = [own.get(name, f"s.{name}" if name in sky else f"t.{name}") for name in names]
    place = f"join seed_sky s on s.ccd = t.ccd and s.field = c.n % {N_FIELDS}" if sky else ""
    return f"""
insert into {table} ({", ".join(names)})
select {", ".join(values)} from {table} t cross join copies c {place} where t.{key} = :key
"""
