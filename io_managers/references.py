"""References: which images make one, which of them an image is subtracted from, and how newer ones supersede older.

The reference of ``field.filter`` is never changed. When enough deeper images have come, another is made beside it, in a
partition of its own (``field.filter.v2``, ``.v3`` ...); old differences keep naming the row they were made with.
"""

import math
import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, overload

import sqlalchemy as sa

from io_managers.reference_sets import in_current_set
from io_managers.store import ProductStore
from seechange_assets.content import content_hash
from seechange_assets.errors import ReferenceConflict, ReferenceNotFound
from seechange_assets.partitions import Partition
from seechange_assets.products import CalibratedImage, ImageInfo, Reference, Wcs
from sql.base import ProductRow
from sql.models import PRODUCT_ROWS, BackgroundRow, ImageRow, PsfRow, ReferenceRow, WcsRow, ZeroPointRow
from sql.sky import cone_condition, footprint_positions, is_inside, overlap_fraction, polygon_of

#: Two footprints farther apart than this cannot overlap [deg]; no CCD here is larger.
_SEARCH_RADIUS_DEG = 2.5
#: First half of the advisory locks under which references are written.
_REFERENCE_LOCK = 7317
_CALIBRATED = ("image", "background", "sources", "psf", "wcs", "zp")
#: Among this many of the deepest images the one is looked for that most of the others cover.
_MAX_TARGETS = 30
_VERSION = re.compile(r"\.v[1-9]\d*$")


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image that the selection of a reference set admits."""

    exposure: str
    limiting_magnitude: float
    corners: dict[str, list[float]]


class StoredImages(Sequence[CalibratedImage]):
    """Calibrated images that are read when asked for and not kept: fifteen at once would be a gigabyte."""

    def __init__(self, load: Callable[[str, Partition], Any], partitions: Sequence[Partition]) -> None:
        self._load, self._partitions = load, partitions

    def __len__(self) -> int:
        return len(self._partitions)

    @overload
    def __getitem__(self, index: int) -> CalibratedImage: ...
    @overload
    def __getitem__(self, index: slice) -> "StoredImages": ...
    def __getitem__(self, index: int | slice) -> "CalibratedImage | StoredImages":
        if isinstance(index, slice):
            return StoredImages(self._load, self._partitions[index])
        partition = self._partitions[index]
        return CalibratedImage(*(self._load(product, partition) for product in _CALIBRATED))


class ReferenceStore(ProductStore):
    """A `ProductStore` that knows references."""

    #: The reference used last: the steps of one run ask for the same one several times.
    _reference: tuple[str, Reference] | None = None

    def save(self, product_name: str, partition: Partition, product: Any) -> dict[str, Any]:
        """See `ProductStore.save`. A reference never changes once it has a row.

        Raises
        ------
        ReferenceConflict
            For a reference that exists with other content: the first stays.
        """
        if product_name != "reference":
            return super().save(product_name, partition, product)
        with self._one_at_a_time(self.row_id(product_name, partition)):
            kept = self.row(product_name, partition)
            if kept is not None and kept.content_hash != content_hash(product):
                same = "of the same images" if kept.inputs["members"] == list(product.members) else "of other images"
                raise ReferenceConflict(
                    f"{partition.key} CCD {partition.ccd}: a reference under provenance {kept.provenance_id} exists "
                    f"with other pixels, made {same}, and stays; a new one is made in a partition of its own "
                    f"({base_key(partition.key)}.v2 ...) or under another name of the set"
                )
            return super().save(product_name, partition, product)

    @contextmanager
    def _one_at_a_time(self, row_id: uuid.UUID) -> Iterator[None]:
        """Let no other process write the product with this row until the end."""
        with self.database.session() as session:
            session.execute(sa.select(sa.func.pg_advisory_xact_lock(_REFERENCE_LOCK, row_id.int & 0x7FFFFFFF)))
            yield

    def reference_candidates(self, selection: Any, partition: Partition | None = None) -> list[tuple[Partition, str]]:
        """((field.filter, ccd), exposure) of every image that the selection of a reference set admits."""
        found = self._candidates(selection, partition)
        return [(place, candidate.exposure) for place, candidates in found.items() for candidate in candidates]

    def _candidates(
        self, selection: Any, partition: Partition | None = None, field: str | None = None
    ) -> dict[Partition, list[Candidate]]:
        """Images by field, filter and CCD, deepest first."""
        query = (
            sa.select(
                ImageRow.field, ImageRow.filter, ImageRow.ccd, ImageRow.partition, ZeroPointRow.limiting_magnitude,
                WcsRow.corners,
            )
            .where(ImageRow.instrument == self.instrument, *self._usable("image"))
            .where(*_selection_conditions(selection))
            .order_by(ZeroPointRow.limiting_magnitude.desc(), ImageRow.partition)
        )  # fmt: skip
        for product in _CALIBRATED[1:]:
            table = PRODUCT_ROWS[product]
            same = sa.and_(table.partition == ImageRow.partition, table.ccd == ImageRow.ccd)
            query = query.join(table, same).where(*self._usable(product))
        if partition is not None:
            field_filter = sa.func.concat(ImageRow.field, ".", ImageRow.filter)
            query = query.where(field_filter == base_key(partition.key), ImageRow.ccd == partition.ccd)
        if field is not None:
            query = query.where(ImageRow.field == field)
        found = defaultdict(list)
        with self.database.session() as session:
            for row in session.execute(query):
                candidate = Candidate(row.partition, row.limiting_magnitude, row.corners)
                found[Partition(f"{row.field}.{row.filter}", row.ccd)].append(candidate)
        return dict(found)

    def _usable(self, product: str) -> tuple[sa.ColumnElement[bool], ...]:
        """What a product must be to be chosen as an input: made under the current recipe, and not flagged bad."""
        table = PRODUCT_ROWS[product]
        return table.provenance_id == self.of_reference_set().recipes[product].id, _is_good(table)

    def reference_members(self, partition: Partition, selection: Any) -> Sequence[CalibratedImage]:
        """The images that make a reference, deepest first; those it was made of if it exists.

        Raises
        ------
        ReferenceNotFound
            When fewer than ``selection.min_images`` images qualify, or they do not cover the footprint.
        """
        kept = self.row("reference", partition)
        if kept is not None:
            chosen = list(kept.inputs["members"])
        else:
            candidates = self._candidates(selection, partition).get(
                Partition(base_key(partition.key), partition.ccd), []
            )
            chosen = [candidate.exposure for candidate in covering(candidates, selection)]
            if not chosen:
                raise ReferenceNotFound(
                    f"{partition.key} CCD {partition.ccd}: {len(candidates)} images qualify for the reference; "
                    f"{selection.min_images} are needed that cover its footprint"
                )
        return StoredImages(self.of_reference_set().load, [Partition(exposure, partition.ccd) for exposure in chosen])

    def references_to_build(self, selection: Any, field: str | None = None) -> dict[Partition, list[str]]:
        """Partitions in which a reference is to be made, each with the images that would make it.

        The first of a field, filter and CCD as soon as enough images qualify; another where the images that qualify
        now are expected to go deeper than every one that exists by ``selection.min_gain_mag``. None is made twice of
        the same images. All fields are looked at, or the one named.
        """
        existing = self._existing(self.recipes["reference"].id, field)
        wanted = {}
        for place, candidates in self._candidates(selection, field=field).items():
            rows = existing.get(place, [])
            depth = {candidate.exposure: candidate.limiting_magnitude for candidate in candidates}
            best = [stacked_depth([depth[e] for e in row.members if e in depth]) for row in rows if row.bitflag == 0]
            limit = max(best, default=-math.inf) + selection.min_gain_mag
            if stacked_depth([c.limiting_magnitude for c in candidates[: selection.max_images]]) < limit:
                continue  # before the footprints are compared, which takes longer
            chosen = covering(candidates, selection)
            members = [candidate.exposure for candidate in chosen]
            if any(set(row.members) == set(members) for row in rows):
                continue
            if chosen and stacked_depth([candidate.limiting_magnitude for candidate in chosen]) >= limit:
                wanted[_next_version(place, rows)] = members
        return wanted

    def next_reference_partition(self, place: Partition, provenance_id: str) -> Partition:
        """The partition after the last in which a reference of ``field.filter`` x ccd was made."""
        return _next_version(place, self._existing(provenance_id).get(place, []))

    def _existing(self, provenance_id: str, field: str | None = None) -> dict[Partition, list[ReferenceRow]]:
        """References of a recipe by field, filter and CCD, flagged ones too."""
        query = sa.select(ReferenceRow).where(
            ReferenceRow.provenance_id == provenance_id, ReferenceRow.instrument == self.instrument
        )
        if field is not None:
            query = query.where(ReferenceRow.field == field)
        found = defaultdict(list)
        with self.database.session() as session:
            for row in session.scalars(query):
                found[Partition(base_key(row.partition), row.ccd)].append(row)
        return dict(found)

    def find_reference(
        self, info: ImageInfo, wcs: Wcs, shape: tuple[int, int], min_overlap: float
    ) -> tuple[str, Reference]:
        """(row id, reference): the deepest one that covers the image and does not contain it.

        Where the image has a difference under this recipe already, that one's reference is found again, so that a
        rerun changes nothing although a deeper one has come; unless it has been flagged bad since.

        Raises
        ------
        ReferenceNotFound
            When there is none yet.
        """
        ra, dec, corners = polygon_of(wcs.astropy(), shape)
        footprint = {"ra": corners[0], "dec": corners[1]}
        query = (
            sa.select(ReferenceRow)
            .where(in_current_set(self.recipes), _is_good(ReferenceRow))
            .where(ReferenceRow.instrument == info.instrument, ReferenceRow.filter == info.filter)
            .where(cone_condition(ReferenceRow.healpix, ra, dec, _SEARCH_RADIUS_DEG))
            .order_by(ReferenceRow.limiting_magnitude.desc(), ReferenceRow.partition)
        )
        with self.database.session() as session:
            rows = session.scalars(query).all()
        made: Any = self.row("diff", Partition(info.exposure, info.ccd))
        rows = sorted(rows, key=lambda row: made is None or row.id != made.reference_id)
        covering_it = [row for row in rows if overlap_fraction(footprint, row.corners) >= min_overlap]
        for row in covering_it:
            if info.exposure not in row.members:
                return str(row.id), self.reference(str(row.id))
        if covering_it:
            raise ReferenceNotFound(
                f"{info.exposure} CCD {info.ccd} is itself part of its reference {covering_it[0].partition}",
                waits_for=f"reference/{info.filter}/{info.ccd}",
            )
        raise ReferenceNotFound(
            f"no reference in {info.filter} covers {min_overlap:.0%} of {info.exposure} CCD {info.ccd}",
            waits_for=f"reference/{info.filter}/{info.ccd}",
        )

    def reference(self, row_id: str) -> Reference:
        """The reference of a row, as recorded in the difference made with it."""
        if self._reference is None or self._reference[0] != row_id:
            with self.database.session() as session:
                row = session.get(ReferenceRow, uuid.UUID(row_id))
            if row is None:
                raise ReferenceNotFound(
                    f"reference {row_id} is not in the database any more; make the difference again"
                )
            self._reference = None  # first, so that there are never two in memory
            self._reference = (row_id, self.load_row(row))
        return self._reference[1]


def base_key(key: str) -> str:
    """``field.filter`` of the partition of a reference of any version."""
    return _VERSION.sub("", key)


def stacked_depth(limiting_magnitudes: Sequence[float]) -> float:
    """Depth expected of the weighted mean of images: their limiting fluxes add as inverse squares."""
    total = sum(10 ** (0.8 * magnitude) for magnitude in limiting_magnitudes)
    return math.log10(total) / 0.8 if total > 0 else -math.inf


def covering(candidates: Sequence[Candidate], selection: Any) -> list[Candidate]:
    """Those of the candidates that make a reference, deepest first; none where they do not suffice.

    The target is the image that most others cover by ``min_overlap``; it and they are taken, the deepest up to
    ``max_images``. At nine positions, the target's centre and eight at 0.8 of its half-size, there must be
    ``min_images_everywhere`` of them.
    """
    if len(candidates) < selection.min_images:
        return []

    def members(target: Candidate) -> list[Candidate]:
        fits = [overlap_fraction(target.corners, c.corners) >= selection.min_overlap for c in candidates]
        return [c for c, fit in zip(candidates, fits, strict=True) if fit]

    target, fitting = max(((t, members(t)) for t in candidates[:_MAX_TARGETS]), key=lambda found: len(found[1]))
    chosen = fitting[: selection.max_images]
    if len(chosen) < selection.min_images:
        return []
    depth = [sum(is_inside(c.corners, *place) for c in chosen) for place in footprint_positions(target.corners)]
    return chosen if min(depth) >= min(selection.min_images_everywhere, selection.min_images) else []


def _is_good(table: type[ProductRow]) -> sa.ColumnElement[bool]:
    """The one place that says which products may be chosen: those without a flag."""
    return table.bitflag == 0


def _next_version(place: Partition, rows: Sequence[ReferenceRow]) -> Partition:
    numbers = [int(row.partition.rpartition(".v")[2]) if _VERSION.search(row.partition) else 1 for row in rows]
    return Partition(f"{place.key}.v{max(numbers) + 1}", place.ccd) if numbers else place


def _selection_conditions(selection: Any) -> list[sa.ColumnElement[bool]]:
    """Every cut of the selection as an SQL condition; None disables a cut, and what is unknown does not pass one."""
    limits = {
        "mjd": ImageRow.mjd, "fwhm_px": PsfRow.fwhm_px, "limiting_magnitude": ZeroPointRow.limiting_magnitude,
        "exptime_s": ImageRow.exptime_s, "airmass": ImageRow.airmass, "background": BackgroundRow.level,
    }  # fmt: skip
    conditions: list[sa.ColumnElement[bool]] = [ImageRow.project.in_(selection.projects)] if selection.projects else []
    for name, column in limits.items():
        low, high = getattr(selection, f"min_{name}"), getattr(selection, f"max_{name}")
        conditions += [] if low is None else [column >= low]
        conditions += [] if high is None else [column <= high]
    return conditions
