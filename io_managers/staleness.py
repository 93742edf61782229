"""What is stale, from our own rows: a partition whose product exists, but not under the current recipe.

So is what an earlier recipe failed to make, or waited for something with (`io_managers.stopped`).

Ids chain, so a change of one recipe gives every descendant another id, and plain comparison of ids finds exactly the
changed processes and all that is made from them. The reason is found by comparing the old and the new recipe.
"""

import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session, aliased

from io_managers.recipes import Change, changes_between, stored
from io_managers.stopped import SHARED, StoppedSteps
from seechange_assets.errors import ParameterError
from seechange_assets.parameters import unknown_name
from seechange_assets.partition import CALIBRATION, EXPOSURE, FIELD_FILTER, Partition
from seechange_assets.provenance import REFERENCE, Recipes
from sql.base import ProductRow
from sql.models import PRODUCT_ROWS, ExposureRow, ProvenanceRow, ProvenanceUpstreamRow

#: Dimensions of the partitions that anything can be stale in.
DIMENSIONS = (EXPOSURE, CALIBRATION, FIELD_FILTER)


def dimension_of(asset: str) -> str:
    """The dimension of an asset's partitions beside the CCD."""
    if asset not in SHARED:
        return EXPOSURE
    return FIELD_FILTER if asset == REFERENCE else CALIBRATION


@dataclass(frozen=True, slots=True)
class StaleGroup:
    """Partitions of one asset that were made by the same old recipe.

    Where ``stopped`` says that a step failed or waited (``psf failed``), nothing was made: ``old`` is the recipe of
    that step then, and the changes are those of the step.
    """

    asset: str
    old: str
    new: str
    n_partitions: int
    changes: tuple[Change, ...]
    stopped: str = ""

    @property
    def reason(self) -> str:
        """Which parameters differ, old -> new."""
        return "; ".join(str(change) for change in self.changes) or "another recipe upstream"


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be made again of one partition."""

    partition: Partition
    night: str | None
    assets: tuple[str, ...]

    @property
    def dimension(self) -> str:
        """The dimension of Dagster's partitions that the key belongs to."""
        return dimension_of(self.assets[0])


@dataclass(frozen=True, slots=True)
class Known:
    """A product that exists."""

    id: uuid.UUID
    partition: Partition


class Staleness:
    """Comparison of the rows of one instrument with the recipes of a configuration.

    Parameters
    ----------
    session : Session
        Everything is read in it.
    recipes : Recipes
        Those in force.
    instrument : str
        Rows of other cameras are none of our business.
    """

    def __init__(self, session: Session, recipes: Recipes, instrument: str) -> None:
        self._session, self._recipes, self._instrument = session, recipes, instrument
        # Whole tables are compared: sorting and hashing in memory, and no time spent on compiling the queries.
        session.execute(sa.text("set local work_mem = '128MB'"))
        session.execute(sa.text("set local jit = off"))
        self._old_ids = self._other_versions()
        self._others = {process: self._with_rows(process, ids) for process, ids in self._old_ids.items()}

    def groups(self, assets: Sequence[str] = (), night: str | None = None) -> list[StaleGroup]:
        """Stale partitions by asset and old recipe, in the order of the pipeline.

        Raises
        ------
        ParameterError
            For an unknown asset.
        """
        found: list[tuple[str, str, str, str, int]] = []  # asset, step it lacks, recipe of that, how it ended, number
        for asset in self._wanted(assets):
            newest = self._stale(asset, night).subquery()
            query = sa.select(newest.c.provenance_id, sa.func.count()).group_by(newest.c.provenance_id)
            found += [(asset, asset, old, "", count) for old, count in self._session.execute(query)]
        stopped = self._stopped()
        for asset in self._named(stopped.assets(), assets):
            counts = stopped.counts(asset, _keys(night))
            found += [(asset, step, old, f"{step} {outcome}", count) for step, old, outcome, count in counts]
        explain = self._explainer({old for _, _, old, _, _ in found})
        rank = {name: number for number, name in enumerate(self._recipes)}
        return [
            StaleGroup(asset, old, self._recipes[asset].id, count, explain(old, self._recipes[step].id), ended)
            for asset, step, old, ended, count in sorted(found, key=lambda item: (rank[item[0]], *item[2:4]))
        ]

    def work(
        self, assets: Sequence[str] = (), night: str | None = None, limit: int | None = None, *, failed: bool = False
    ) -> list[Work]:
        """Stale assets of each partition, those that others need first, then the newest exposures.

        With `failed` also what failed under the recipes in force, and what would have been made from it.
        """
        stale: dict[tuple[bool, str, str], tuple[str, ...]] = {}
        for names, partitions in (*self._stale_lists(assets, night), *self._stopped_lists(assets, night, failed)):
            is_shared, found = names[0] in SHARED, tuple(names)
            for partition, ccd in partitions:
                place = (is_shared, partition, ccd)
                stale[place] = stale[place] + found if place in stale else found
        query = sa.select(ExposureRow.key, ExposureRow.mjd, ExposureRow.night)
        when = {key: (mjd, its_night) for key, mjd, its_night in self._session.execute(query)} if stale else {}
        unknown = (0.0, None)

        def order(place: tuple[bool, str, str]) -> tuple[bool, float, str, str]:
            is_shared, partition, ccd = place
            return not is_shared, 0.0 if is_shared else -when.get(partition, unknown)[0], partition, ccd

        rank = {name: number for number, name in enumerate(self._recipes)}
        # Most partitions are stale in the same assets, and there are 100,000 of them.
        in_order = {names: tuple(sorted(set(names), key=rank.__getitem__)) for names in set(stale.values())}
        return [
            Work(
                Partition(partition, ccd),
                None if is_shared else when.get(partition, unknown)[1],
                in_order[stale[is_shared, partition, ccd]],
            )
            for is_shared, partition, ccd in sorted(stale, key=order)[:limit]
        ]

    def _stale_lists(
        self, assets: Sequence[str], night: str | None
    ) -> Iterator[tuple[list[str], Sequence[tuple[str, str]]]]:
        """Assets with the same stale partitions, and those partitions, which are read once.

        Most assets are stale in the same partitions, so first they are only counted and summed as hashes.
        """
        alike: dict[tuple[bool, int, Any], list[str]] = {}
        for asset in self._wanted(assets):
            stale = self._stale(asset, night).subquery()
            told = sa.func.hashtextextended(sa.func.concat(stale.c.partition, "/", stale.c.ccd), 0)
            count, total = self._session.execute(sa.select(sa.func.count(), sa.func.sum(told))).one()
            if count:
                alike.setdefault((asset in SHARED, count, total), []).append(asset)
        for names in alike.values():
            stale = self._stale(names[0], night).subquery()
            yield names, [(p, c) for p, c in self._session.execute(sa.select(stale.c.partition, stale.c.ccd))]

    def _stopped_lists(
        self, assets: Sequence[str], night: str | None, failed: bool
    ) -> Iterator[tuple[list[str], Sequence[tuple[str, str]]]]:
        """What steps that stopped have left unmade, and where."""
        for names, partitions in self._stopped(failed=failed).partitions(_keys(night)):
            if wanted := self._named(names, assets):
                yield wanted, partitions

    def _stopped(self, *, failed: bool = False) -> StoppedSteps:
        old_ids = [i for ids in self._old_ids.values() for i in ids]
        return StoppedSteps(self._session, self._recipes, old_ids, failed=failed)

    def count_recognisable(self, assets: Sequence[str] = (), night: str | None = None) -> int:
        """How many products `recognisable` would list."""
        queries = [self._recognisable(asset, night) for asset in self._wanted(assets)]
        counts = [sa.select(sa.func.count()).select_from(query.subquery()) for query in queries]
        return sum(self._session.scalar(query) or 0 for query in counts)

    def recognisable(self, assets: Sequence[str] = (), night: str | None = None) -> dict[str, list[Known]]:
        """Products of the current recipe that another version was materialized after: someone changed back."""
        found = {}
        for asset in self._wanted(assets):
            rows = self._session.execute(self._recognisable(asset, night))
            if known := [Known(row.id, Partition(row.partition, row.ccd)) for row in rows]:
                found[asset] = known
        return found

    def _recognisable(self, asset: str, night: str | None) -> sa.Select:
        table, others = PRODUCT_ROWS[asset], self._others[asset]
        later = aliased(table)
        query = sa.select(table.id, table.partition, table.ccd).where(
            table.provenance_id == self._recipes[asset].id,
            sa.exists().where(
                later.partition == table.partition, later.ccd == table.ccd,
                later.provenance_id.in_(others), later.materialized_at > table.materialized_at,
            ),
        )  # fmt: skip
        return _of_night(query, table, night)

    def _stale(self, asset: str, night: str | None) -> sa.Select:
        """(partition, ccd, provenance_id) of the newest version where there is none under the current recipe."""
        table, others = PRODUCT_ROWS[asset], self._others.get(asset, [])
        query = sa.select(table.partition, table.ccd, table.provenance_id).where(table.provenance_id.in_(others))
        if self._recipes[asset].id in self._with_rows(asset, [self._recipes[asset].id]):
            current = aliased(table)
            same = (current.partition == table.partition, current.ccd == table.ccd)
            query = query.where(~sa.exists().where(*same, current.provenance_id == self._recipes[asset].id))
        if len(others) > 1:
            query = query.ext(distinct_on(table.partition, table.ccd))
            query = query.order_by(table.partition, table.ccd, table.materialized_at.desc())
        return _of_night(query, table, night)

    def _wanted(self, assets: Sequence[str]) -> list[str]:
        """Assets that have another version at all."""
        known = [name for name in self._recipes if name in PRODUCT_ROWS]
        for name in assets:
            if name not in known:
                raise ParameterError(unknown_name(name, known, "--assets"))
        return self._named([name for name in known if self._others.get(name)], assets)

    @staticmethod
    def _named(found: Iterable[str], assets: Sequence[str]) -> list[str]:
        return [name for name in found if not assets or name in assets]

    def _other_versions(self) -> dict[str, list[str]]:
        """Recipes of each process other than the current one, of this instrument's camera."""
        cameras = sa.select(ProvenanceRow.id).where(
            ProvenanceRow.process == "exposure", ProvenanceRow.parameters["instrument"].astext == self._instrument
        )
        made_of = cameras.cte("made_of", recursive=True)
        links = ProvenanceUpstreamRow
        made_of = made_of.union(sa.select(links.downstream_id).join(made_of, links.upstream_id == made_of.c.id))
        query = sa.select(ProvenanceRow.process, ProvenanceRow.id).join(made_of, made_of.c.id == ProvenanceRow.id)
        others: dict[str, list[str]] = {}
        for process, provenance_id in self._session.execute(query):
            if process in self._recipes and provenance_id != self._recipes[process].id:
                others.setdefault(process, []).append(provenance_id)
        return others

    def _with_rows(self, process: str, ids: list[str]) -> list[str]:
        """Those of the recipes that something was made by."""
        table = PRODUCT_ROWS.get(process)
        if table is None:
            return []
        # The first id from this one on: that is one step in the index, where looking for one that no row has is a scan.
        first = sa.select(table.provenance_id).order_by(table.provenance_id).limit(1)
        return [i for i in ids if self._session.scalar(first.where(table.provenance_id >= i)) == i]

    def _explainer(self, old: Iterable[str]) -> Callable[[str, str], tuple[Change, ...]]:
        recipes = {recipe.id: recipe for recipe in self._recipes.values()}
        missing = {up for recipe in recipes.values() for up in recipe.upstream_ids} - recipes.keys()
        recipes = {**stored(self._session, {*old, *missing}), **recipes}
        return lambda a, b: changes_between(recipes[a], recipes[b], recipes)


def in_window(work: Iterable[Work], held: Mapping[str, Collection[str]]) -> list[Work]:
    """What Dagster holds partitions for; the others have been retired.

    Parameters
    ----------
    held : dimension -> the keys of its partitions in Dagster.
    """
    return [item for item in work if item.partition.key in held[item.dimension]]


def _of_night(query: sa.Select, table: type[ProductRow], night: str | None) -> sa.Select:
    keys = _keys(night)
    return query if keys is None else query.where(table.partition.in_(keys))


def _keys(night: str | None) -> sa.Select | None:
    return None if night is None else sa.select(ExposureRow.key).where(ExposureRow.night == night)
