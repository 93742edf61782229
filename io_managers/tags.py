"""Tags: names for a set of recipes, one per process, by which readers find a consistent version.

A tag never moves by itself. The first use of a name makes it; `seechange up`, `backfill` and `provenance tag move`
move it, in one transaction. Who computes under a tag that names another recipe is stopped (`TagConflict`).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from io_managers.recipes import Recipe, family, register, resolve_id, stored
from resources.database import Database
from seechange_assets.errors import ProductNotFound, TagConflict
from seechange_assets.names import checked_name
from seechange_assets.provenance import REFERENCE, SHORT_LENGTH, StoredProvenance
from sql.models import ProvenanceRow, ProvenanceTagRow

#: First half of the advisory locks under which tags change; the second is a hash of the name.
_TAG_LOCK = 7318


@dataclass(frozen=True, slots=True)
class Move:
    """What a move did to one process: the recipe its tag named before (None: none) and names now."""

    process: str
    old: str | None
    new: str | None


class StoredRecipes(Mapping[str, StoredProvenance]):
    """The recipes that a tag or a provenance id names, for reading products."""

    def __init__(self, recipes: Mapping[str, StoredProvenance], name: str) -> None:
        self._recipes, self.name = dict(recipes), name

    def __getitem__(self, process: str) -> StoredProvenance:
        if process not in self._recipes:
            raise ProductNotFound(f"{self.name} names no recipe of {process!r:.40}")
        return self._recipes[process]

    def __iter__(self) -> Iterator[str]:
        return iter(self._recipes)

    def __len__(self) -> int:
        return len(self._recipes)

    def __contains__(self, process: object) -> bool:
        return process in self._recipes


class Tags:
    """The tags of one survey database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def names(self) -> dict[str, int]:
        """Every tag and how many recipes it names."""
        row = ProvenanceTagRow
        query = sa.select(row.tag, sa.func.count()).group_by(row.tag).order_by(row.tag)
        with self._database.session() as session:
            return {key: value for key, value in session.execute(query)}  # noqa: C416

    def show(self, tag: str) -> dict[str, list[StoredProvenance]]:
        """The recipes of a tag by process: one each, of ``reference`` one per set, the newest last.

        Raises
        ------
        ProductNotFound
            There is no such tag.
        """
        with self._database.session() as session:
            ids = _ids_of(session, tag)
            recipes = stored(session, ids)
        shown: dict[str, list[StoredProvenance]] = {}
        for provenance_id in ids:
            shown.setdefault(recipes[provenance_id].process, []).append(recipes[provenance_id])
        return shown

    def recipes(self, name: str) -> StoredRecipes:
        """The recipes that a tag, or a provenance id with what it was fed by, names.

        Raises
        ------
        ProductNotFound
            Neither a tag nor a recipe has this name.
        """
        with self._database.session() as session:
            if _exists(session, name):
                recipes = stored(session, _ids_of(session, name))
                named = {recipes[key].process: recipes[key] for key in _ids_of(session, name)}
                return StoredRecipes(named, f"tag {name!r}")
            provenance_id = resolve_id(session, name)
            return StoredRecipes(family(stored(session, [provenance_id]), provenance_id), f"provenance {provenance_id}")

    def create(self, tag: str, recipes: Iterable[Recipe]) -> None:
        """Make a tag of these recipes. The same tag with the same recipes again is no error.

        Raises
        ------
        TagConflict
            The tag exists and names other recipes; nothing is changed.
        """
        recipes = list(recipes)
        with self._database.session() as session:
            register(session, recipes)
            if _exists(session, checked_name(tag, "tag")):
                _check(session, tag, recipes)
            _insert(session, tag, recipes)
            _check(session, tag, recipes)  # another process may have been first

    def clone(self, tag: str, copy: str) -> None:
        """Make a tag that names what another one names.

        Raises
        ------
        TagConflict
            `copy` exists and names other recipes.
        ProductNotFound
            There is no tag `tag`.
        """
        recipes = [recipe for versions in self.show(tag).values() for recipe in versions]
        self.create(copy, recipes)

    def move(self, tag: str, recipes: Iterable[Recipe]) -> list[Move]:
        """Let a tag name these recipes and no others, in one transaction; it is made if there is none.

        Reference sets that it names besides stay. Returns what changed.
        """
        recipes = list(recipes)
        with self._database.session() as session:
            _lock(session, checked_name(tag, "tag"))
            register(session, recipes)
            before = _named(session, tag)
            after = {recipe.process: recipe.id for recipe in recipes}
            row = ProvenanceTagRow
            is_other_set = (row.process == REFERENCE) & (row.provenance_id != after.get(REFERENCE))
            session.execute(sa.delete(row).where(row.tag == tag, ~is_other_set))
            _insert(session, tag, recipes)
        changed = [name for name in [*after, *before] if before.get(name) != after.get(name)]
        return [Move(name, before.get(name), after.get(name)) for name in dict.fromkeys(changed)]

    def delete(self, tag: str) -> int:
        """Forget a tag; products and recipes stay. Returns how many recipes it named.

        Raises
        ------
        ProductNotFound
            There is no such tag.
        """
        with self._database.session() as session:
            _lock(session, tag)
            n = len(_ids_of(session, tag))
            session.execute(sa.delete(ProvenanceTagRow).where(ProvenanceTagRow.tag == tag))
        return n


def use(session: Session, tag: str, recipes: Iterable[Recipe]) -> None:
    """Compute under a tag: the first use of a name makes it.

    Raises
    ------
    TagConflict
        The tag names another recipe for one of the processes.
    """
    recipes = list(recipes)
    _insert(session, tag, recipes)
    _check(session, tag, recipes)


def _insert(session: Session, tag: str, recipes: list[Recipe]) -> None:
    rows = [{"tag": tag, "process": r.process, "provenance_id": r.id} for r in recipes]
    rows.sort(key=lambda row: row["process"])  # who inserts at once, waits in the same order
    session.execute(insert(ProvenanceTagRow).on_conflict_do_nothing(), rows)


def _check(session: Session, tag: str, recipes: Iterable[Recipe]) -> None:
    query = sa.select(ProvenanceTagRow.process, ProvenanceTagRow.provenance_id).where(ProvenanceTagRow.tag == tag)
    named = {(process, provenance_id) for process, provenance_id in session.execute(query)}
    others = [r for r in recipes if (r.process, r.id) not in named]
    if others:
        now = dict(sorted(named))
        listed = ", ".join(f"{r.process} ({now.get(r.process, 'none')[:SHORT_LENGTH]} there)" for r in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise TagConflict(
            f"tag {tag!r} names other recipes than this configuration for {listed}{more}: move it on purpose "
            f"(`seechange backfill` or `seechange provenance tag move {tag}`), or choose another with SEECHANGE_TAG"
        )


def _named(session: Session, tag: str) -> dict[str, str]:
    """Process -> recipe of a tag, of several references the newest."""
    query = (
        sa.select(ProvenanceTagRow.process, ProvenanceTagRow.provenance_id)
        .where(ProvenanceTagRow.tag == tag)
        .order_by(ProvenanceTagRow.created_at, ProvenanceTagRow.provenance_id)
    )
    return {key: value for key, value in session.execute(query)}  # noqa: C416


def _ids_of(session: Session, tag: str) -> list[str]:
    query = (
        sa.select(ProvenanceTagRow.provenance_id)
        .join(ProvenanceRow, ProvenanceRow.id == ProvenanceTagRow.provenance_id)
        .where(ProvenanceTagRow.tag == tag)
        .order_by(ProvenanceTagRow.created_at, ProvenanceTagRow.provenance_id)
    )
    found = list(session.scalars(query))
    if not found:
        known = ", ".join(session.scalars(sa.select(ProvenanceTagRow.tag).distinct().order_by(ProvenanceTagRow.tag)))
        raise ProductNotFound(f"there is no tag {tag!r:.90}; there are: {known or 'none yet'}")
    return found


def _exists(session: Session, tag: str) -> bool:
    return session.scalar(sa.select(sa.exists().where(ProvenanceTagRow.tag == tag))) or False


def _lock(session: Session, tag: str) -> None:
    """Let no other process move this tag until the transaction ends."""
    session.execute(sa.select(sa.func.pg_advisory_xact_lock(_TAG_LOCK, sa.func.hashtext(tag))))
