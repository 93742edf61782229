"""Steps that never made anything: they failed, or wait, under an earlier recipe, and only their reports say so.

No row of a product tells of them, so a comparison of products would pass them by: a CCD whose PSF failed has no PSF
that could be stale. What is to be made again of such a CCD is the step and all that is made from it, of which there
is nothing either. Where a version of the step's product exists, its row says what is stale.
"""

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from io_managers.reference_sets import in_current_set
from seechange_assets.provenance import REFERENCE, Recipes
from sql.models import PRODUCT_ROWS, MasterRow, ReferenceRow, ReportRow

#: Assets whose partition is no exposure.
SHARED = ("master_bias", "master_dark", "master_flat", "master_fringe", REFERENCE)
#: Temporary, of the transaction: what is asked several times is looked for once.
_STOPPED = sa.table("stopped", *(sa.column(name) for name in ("partition", "ccd", "step", "provenance_id", "outcome")))


class StoppedSteps:
    """Newest attempts of steps without any product, by earlier recipes than those in force.

    Parameters
    ----------
    old_ids : every earlier recipe of this camera.
    failed : count what failed under the recipes in force too.
    """

    def __init__(self, session: Session, recipes: Recipes, old_ids: Collection[str], *, failed: bool = False) -> None:
        self._session, self._recipes = session, recipes
        self._old = sa.and_(ReportRow.outcome.in_(("failed", "waiting")), ReportRow.provenance_id.in_(old_ids))
        now = [recipe.id for recipe in recipes.values()]
        self._now = sa.and_(ReportRow.outcome == "failed", ReportRow.provenance_id.in_(now)) if failed else sa.false()
        self._steps = self._collected()

    def assets(self) -> list[str]:
        """What is to be made again, in the order of the pipeline."""
        found = {name for step in self._steps for name in self._made_after(step)}
        return [name for name in self._recipes if name in found]

    def counts(self, asset: str, night: sa.Select | None) -> list[tuple[str, str, str, int]]:
        """(step, its old recipe, outcome, number) of the partitions that lack an asset for a step that stopped.

        Parameters
        ----------
        night : keys of the exposures that count; all if None.
        """
        steps = [step for step in self._steps if asset in self._made_after(step)]
        query = sa.select(_STOPPED).where(_STOPPED.c.step.in_(steps))
        if len(steps) > 1:  # the first step that stopped is the one to name
            rank = sa.func.array_position(sa.cast(steps, sa.ARRAY(sa.Text)), sa.cast(_STOPPED.c.step, sa.Text))
            query = query.ext(distinct_on(_STOPPED.c.partition, _STOPPED.c.ccd))
            query = query.order_by(_STOPPED.c.partition, _STOPPED.c.ccd, rank)
        first = _of(query, night).subquery()
        told = (first.c.step, first.c.provenance_id, first.c.outcome)
        counted = sa.select(*told, sa.func.count()).group_by(*told)
        return [(step, old, outcome, count) for step, old, outcome, count in self._session.execute(counted)]

    def partitions(self, night: sa.Select | None) -> list[tuple[tuple[str, ...], list[tuple[str, str]]]]:
        """For each step that stopped: what is to be made after it, and the (partition, ccd) it stopped in."""
        found = []
        for step in self._steps:
            query = sa.select(_STOPPED.c.partition, _STOPPED.c.ccd).where(_STOPPED.c.step == step)
            found.append((self._made_after(step), [(p, c) for p, c in self._session.execute(_of(query, night))]))
        return found

    def _collected(self) -> list[str]:
        """Steps that stopped anywhere, in the order of the pipeline; their reports are in the temporary table."""
        steps = set(self._session.scalars(sa.select(ReportRow.step).where(sa.or_(self._old, self._now)).distinct()))
        steps &= self._recipes.keys() & PRODUCT_ROWS.keys()
        if not steps:
            return []
        names = [column.name for column in _STOPPED.c]
        reports = sa.select(*(getattr(ReportRow, name) for name in names))
        listed = f"select {', '.join(names)} from reports where false"  # noqa: S608 (names of ours)
        self._session.execute(sa.text("drop table if exists pg_temp.stopped"))
        self._session.execute(sa.text(f"create temporary table stopped on commit drop as {listed}"))
        of_old = [reports.where(self._old, *_without_product(step, self._recipes)) for step in sorted(steps)]
        for query in (*of_old, reports.where(self._now, ReportRow.step.in_(steps))):
            self._session.execute(sa.insert(_STOPPED).from_select(names, query))
        self._session.execute(sa.text("analyze stopped"))
        left = set(self._session.scalars(sa.select(_STOPPED.c.step).distinct()))
        return [name for name in self._recipes if name in left]

    def _made_after(self, step: str) -> tuple[str, ...]:
        """The step and all of the same partition that is made from it."""
        if step in SHARED:
            return (step,)
        return (step, *(name for name in self._recipes.descendants(step) if name in PRODUCT_ROWS.keys() - set(SHARED)))


def _without_product(step: str, recipes: Recipes) -> list[Any]:
    """Reports of a step that no row says anything of, and that are not the last word."""
    table, report = PRODUCT_ROWS[step], ReportRow
    made = sa.exists().where(table.partition == report.partition, table.ccd == report.ccd)
    if issubclass(table, MasterRow):  # all kinds share a table
        made = made.where(table.kind == step.removeprefix("master_"))
    conditions = [report.step == step, ~made]
    if step == "diff":
        place = sa.tuple_(report.partition, report.ccd)
        conditions.append(sa.or_(report.outcome != "waiting", place.not_in(_finished(recipes))))
    return conditions


def _finished(recipes: Recipes) -> sa.Select:
    """(partition, ccd) of images that wait for ever: they are part of every reference of their field and filter."""
    r = ReferenceRow
    in_use = sa.and_(in_current_set(recipes), r.bitflag == 0)
    member = sa.func.jsonb_array_elements_text(r.members).label("member")
    members = sa.select(r.ccd, r.field, r.filter, member).where(in_use).subquery()
    counted = sa.select(r.ccd, r.field, r.filter, sa.func.count().label("n")).where(in_use)
    total = counted.group_by(r.ccd, r.field, r.filter).subquery()
    same_place = [members.c[name] == total.c[name] for name in ("ccd", "field", "filter")]
    query = sa.select(members.c.member, members.c.ccd).join(total, sa.and_(*same_place))
    query = query.group_by(members.c.member, members.c.ccd, members.c.field, members.c.filter, total.c.n)
    return query.having(sa.func.count() == total.c.n)


def _of(query: sa.Select, night: sa.Select | None) -> sa.Select:
    return query if night is None else query.where(_STOPPED.c.partition.in_(night))
