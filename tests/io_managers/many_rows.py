"""Rows of a whole survey, made by the database itself: exposures x CCDs under given recipes, without products."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, UUID
from sqlalchemy.orm import Session

from sql.models import PRODUCT_ROWS, ExposureRow, ReportRow

SHARED = ("master_bias", "master_dark", "master_flat", "master_fringe", "reference")
#: Every asset of an exposure and CCD that has rows of its own.
CHAIN = [name for name in PRODUCT_ROWS if name not in SHARED]


def insert_exposures(session: Session, recipes: Any, n_exposures: int, per_night: int = 100) -> None:
    """Exposures ``demo_000001`` ..., so many a night."""
    number = sa.func.generate_series(1, n_exposures).column_valued("number")
    day = sa.literal("2026-11-01").cast(sa.Date) + sa.cast(sa.func.div(number, per_night), sa.Integer)
    given = {
        "key": _key(number), "instrument": sa.literal("demo"), "kind": sa.literal("science"),
        "night": sa.func.to_char(day, "YYYY-MM-DD"),
        "mjd": 61345.0 + number / float(per_night), "filters": sa.literal({"01": "r", "02": "g"}, JSONB),
        "filepath": sa.func.concat("raw/", number), "provenance_id": sa.literal(recipes["exposure"].id),
    }  # fmt: skip
    _insert(session, ExposureRow, given, {"sequence"}, sa.select())


def insert_products(
    session: Session, recipes: Any, n_exposures: int, n_ccds: int, assets: list[str] = CHAIN, first: int = 1
) -> None:
    """A row of each asset for the exposures from `first` on, under `recipes`."""
    for asset in assets:
        table = PRODUCT_ROWS[asset]
        number = sa.func.generate_series(first, n_exposures).column_valued("number")
        ccd = sa.func.generate_series(1, n_ccds).column_valued("ccd")
        provenance_id = recipes[asset].id
        digest = sa.func.md5(sa.func.concat(asset, provenance_id, number, "/", ccd))
        given = {
            "id": digest.cast(UUID), "partition": _key(number), "ccd": sa.func.to_char(ccd, "FM00"),
            "provenance_id": sa.literal(provenance_id), "filepath": digest,
            "summary": sa.literal({"numbers": list(range(60))}, JSONB),
        }  # fmt: skip
        _insert(session, table, given, set(), sa.select())


def analyze(session: Session) -> None:
    """What autovacuum does within minutes."""
    for table in [ExposureRow, *PRODUCT_ROWS.values()]:
        session.execute(sa.text(f"analyze {table.__tablename__}"))


def _key(number: Any) -> Any:
    return sa.func.concat("demo_", sa.func.to_char(number, "FM000000"))


def _insert(session: Session, table: Any, given: dict[str, Any], left_out: set[str], query: sa.Select) -> None:
    columns = [c for c in table.__table__.columns if c.name not in left_out and (c.name in given or _is_needed(c))]
    values = [given.get(c.name, _filler(c)) for c in columns]
    session.execute(sa.insert(table).from_select([c.name for c in columns], query.add_columns(*values)))


def _is_needed(column: Any) -> bool:
    return not column.nullable and column.server_default is None


def _filler(column: Any) -> Any:
    """Any value of the type of a column that has to have one."""
    if isinstance(column.type, JSONB):
        return sa.literal({}, JSONB)
    if isinstance(column.type, UUID):
        return sa.literal("00000000-0000-0000-0000-000000000000").cast(UUID)
    if isinstance(column.type, (sa.Integer, sa.Float, sa.Double)):
        return sa.literal(0, column.type)
    return sa.literal("")


def insert_reports(session: Session, recipes: Any, n_exposures: int, n_ccds: int, outcomes: dict[str, str]) -> None:
    """How every step of these exposures ended under `recipes`: as `outcomes` says of it, else computed."""
    for step in CHAIN:
        number = sa.func.generate_series(1, n_exposures).column_valued("number")
        ccd = sa.func.generate_series(1, n_ccds).column_valued("ccd")
        given = {
            "partition": _key(number), "ccd": sa.func.to_char(ccd, "FM00"), "step": sa.literal(step),
            "provenance_id": sa.literal(recipes[step].id), "outcome": sa.literal(outcomes.get(step, "computed")),
        }  # fmt: skip
        _insert(session, ReportRow, given, set(), sa.select())
