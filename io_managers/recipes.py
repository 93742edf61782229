"""Recipes in the database: rows of provenances, and recipes read back."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from resources.database import Database
from resources.settings import Settings
from seechange_assets.errors import ProductNotFound, ServiceUnavailable
from seechange_assets.provenance import ID_LENGTH, REFERENCE, Provenance, Recipes, StoredProvenance, canonical
from sql.models import ProvenanceRow, ProvenanceUpstreamRow, ReferenceRow

Recipe = Provenance | StoredProvenance


def register(session: Session, recipes: Iterable[Recipe]) -> None:
    """Write recipes with their links; what is there already stays. Any number of processes may do so at once.

    Upstreams of a recipe that are not among `recipes` must be in the database.
    """
    recipes = sorted(recipes, key=lambda recipe: recipe.id)
    # Sorted, so that processes that register at once lock rows in the same order.
    rows = [
        {"id": r.id, "process": r.process, "algorithm_version": r.algorithm_version, "parameters": dict(r.parameters)}
        for r in recipes
    ]
    links = sorted((r.id, upstream) for r in recipes for upstream in set(r.upstream_ids))
    session.execute(insert(ProvenanceRow).on_conflict_do_nothing(), rows)
    if links:
        told = [{"downstream_id": down, "upstream_id": up} for down, up in links]
        session.execute(insert(ProvenanceUpstreamRow).on_conflict_do_nothing(), told)


def stored(session: Session, ids: Iterable[str]) -> dict[str, StoredProvenance]:
    """Recipes by id, with everything they were fed by, however far up."""
    found: dict[str, StoredProvenance] = {}
    wanted = set(ids)
    while wanted:
        links: dict[str, list[str]] = {key: [] for key in wanted}
        query = sa.select(ProvenanceUpstreamRow).where(ProvenanceUpstreamRow.downstream_id.in_(wanted))
        for link in session.scalars(query):
            links[link.downstream_id].append(link.upstream_id)
        for row in session.scalars(sa.select(ProvenanceRow).where(ProvenanceRow.id.in_(wanted))):
            upstream_ids = tuple(sorted(links[row.id]))
            found[row.id] = StoredProvenance(row.id, row.process, row.algorithm_version, row.parameters, upstream_ids)
        wanted = {key for ids_ in links.values() for key in ids_} - found.keys()
    return found


def resolve_id(session: Session, given: str) -> str:
    """The full id of a recipe from its first characters.

    Raises
    ------
    ProductNotFound
        No recipe, or several, begin so.
    """
    query = sa.select(ProvenanceRow.id).where(ProvenanceRow.id.startswith(given.lower(), autoescape=True)).limit(2)
    found = session.scalars(query).all() if 4 <= len(given) <= ID_LENGTH else []
    if len(found) != 1:
        what = "several recipes begin" if found else "no recipe begins"
        raise ProductNotFound(f"{what} with {given!r:.40}; `seechange provenance show` lists those of a tag")
    return found[0]


def family(recipes: Mapping[str, StoredProvenance], provenance_id: str) -> dict[str, StoredProvenance]:
    """A recipe and those it was fed by, by process; what fed the reference stays apart."""
    own: dict[str, StoredProvenance] = {}
    queue = [provenance_id]
    while queue:
        recipe = recipes[queue.pop()]
        if recipe.process in own:
            continue
        own[recipe.process] = recipe
        if recipe.process != REFERENCE or recipe.id == provenance_id:
            queue += recipe.upstream_ids
    return own


def recipe_of_reference_set(session: Session, wanted: Recipe, instrument: str) -> dict[str, StoredProvenance] | None:
    """How the references of a set that exists were made, by process; None where there is none yet.

    Parameters
    ----------
    wanted : the recipe of ``reference`` in the configuration. A set is told by the version and the parameters
        of that recipe, its name among them; the recipes of the images are those of its first reference.
    """
    if session.scalar(sa.select(sa.func.to_regclass(ReferenceRow.__tablename__))) is None:
        return None  # a database that is about to be migrated
    query = (
        sa.select(ProvenanceRow.id, ProvenanceRow.parameters)
        .join(ReferenceRow, ReferenceRow.provenance_id == ProvenanceRow.id)
        .where(ProvenanceRow.process == REFERENCE, ProvenanceRow.algorithm_version == wanted.algorithm_version)
        .where(ReferenceRow.instrument == instrument)
        .group_by(ProvenanceRow.id)
        .order_by(sa.func.min(ReferenceRow.created_at))
    )
    for provenance_id, parameters in session.execute(query):
        if parameters == dict(wanted.parameters):
            return family(stored(session, [provenance_id]), provenance_id)
    return None


def with_reference_set(recipes: Recipes, database: Database, settings: Settings) -> Recipes:
    """The recipes with that of the reference set in use, where it has references already.

    A set keeps the recipe that its first reference was made by, so what is changed later makes none of them stale.
    """
    try:
        settings.database_url  # noqa: B018  (no server was ever started: there are no references)
    except ServiceUnavailable:
        return recipes
    with database.session() as session:
        made = recipe_of_reference_set(session, recipes[REFERENCE], settings.instrument)
    return recipes.pinned(made) if made else recipes


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two recipes: a parameter of a process, or what it is fed by.

    ``process`` is ``reference/wcs`` for the ``wcs`` by which the images of a reference are made.
    """

    process: str
    parameter: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.process}.{self.parameter} {_told(self.old)} -> {_told(self.new)}"


def changes_between(old: Recipe, new: Recipe, recipes: Mapping[str, Recipe]) -> tuple[Change, ...]:
    """Every parameter and version that differs between two recipes, however far up; each once.

    Parameters
    ----------
    old, new : recipes of one process.
    recipes : both and everything they are fed by, by id.
    """
    found: dict[tuple[str, str], Change] = {}
    compared: set[tuple[str, str]] = set()
    queue: list[tuple[str, Recipe, Recipe]] = [("", old, new)]
    while queue:
        prefix, a, b = queue.pop(0)
        if a.id == b.id or (a.id, b.id) in compared:
            continue
        compared.add((a.id, b.id))
        for change in _own_changes(prefix, a, b):
            found.setdefault((change.process, change.parameter), change)
        up = {recipes[key].process: recipes[key] for key in a.upstream_ids}
        up_new = {recipes[key].process: recipes[key] for key in b.upstream_ids}
        inner = f"{REFERENCE}/" if a.process == REFERENCE else prefix
        for process in sorted(up.keys() | up_new.keys()):
            if process in up and process in up_new:
                queue.append((inner, up[process], up_new[process]))
            else:
                is_new = process in up_new
                change = Change(f"{prefix}{a.process}", f"made of {process}", not is_new, is_new)
                found.setdefault((change.process, change.parameter), change)
    return tuple(found.values())


def _own_changes(prefix: str, a: Recipe, b: Recipe) -> Iterator[Change]:
    process = f"{prefix}{b.process}"
    if a.process != b.process:
        yield Change(process, "process", a.process, b.process)
    if a.algorithm_version != b.algorithm_version:
        yield Change(process, "algorithm_version", a.algorithm_version, b.algorithm_version)
    for name, left, right in _differences(canonical(a.parameters), canonical(b.parameters)):
        yield Change(process, name, left, right)


def _differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, value in `a`, value in `b`) of every parameter that differs; None where there is none."""
    for name in sorted({*a, *b}):
        left, right = a.get(name), b.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            yield from _differences(left, right, f"{prefix}{name}.")
        elif left != right or (name in a) != (name in b):
            yield f"{prefix}{name}", left, right


def _told(value: Any) -> str:
    return "none" if value is None else json.dumps(value) if isinstance(value, (dict, list, bool)) else str(value)
