"""Inputs that the data choose: masters by date, images for a reference, the reference of an image."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from io_managers.external_masters import external_provenance
from io_managers.store import ProductStore
from seechange_assets.content import content_hash
from seechange_assets.errors import AmbiguousMaster, MasterNotFound, ReferenceConflict, ReferenceNotFound
from seechange_assets.partitions import Partition
from seechange_assets.products import (
    CalibratedImage,
    ImageInfo,
    Master,
    Reference,
    Wcs,
)
from sql.models import ExposureRow, ImageRow, MasterRow, PsfRow, ReferenceRow, ZeroPointRow
from sql.sky import cone_condition, overlap_fraction, polygon_of

#: Two footprints farther apart than this cannot overlap [deg]; no CCD here is larger.
_SEARCH_RADIUS_DEG = 2.5
#: First half of the advisory locks under which references are written.
_REFERENCE_LOCK = 7317
#: Kinds of master that hold for one filter, and dates that count as the same [day].
_BY_FILTER, _SAME_TIME_DAYS = ("flat", "fringe", "illumination"), 1e-6
_CALIBRATED = ("image", "background", "sources", "psf", "wcs", "zp")


class SurveyStore(ProductStore):
    """A `ProductStore` that also finds what the data choose."""

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
                    f"with other pixels, made {same}, and stays; give the set another name to build a new one"
                )
            return super().save(product_name, partition, product)

    @contextmanager
    def _one_at_a_time(self, row_id: uuid.UUID) -> Iterator[None]:
        """Let no other process write the product with this row until the end."""
        with self.database.session() as session:
            session.execute(sa.select(sa.func.pg_advisory_xact_lock(_REFERENCE_LOCK, row_id.int & 0x7FFFFFFF)))
            yield

    def calibration_frames(
        self, calibration: str, kind: str, ccd: str | None = None, flat_type: str | None = None
    ) -> Sequence[str]:
        """Keys of the exposures of one kind in a calibration run, in time order.

        Parameters
        ----------
        calibration : a night, or ``night.filter`` for one filter of it (then `ccd` is needed).
        kind : ``bias``, ``dark``, ``flat`` or ``science``.
        ccd : only exposures with this CCD.
        flat_type : only flats of this type.
        """
        night, _, name = calibration.partition(".")
        query = (
            sa.select(ExposureRow.key)
            .where(ExposureRow.night == night, ExposureRow.kind == kind)
            .where(ExposureRow.instrument == self.instrument, ExposureRow.bitflag == 0)
            .order_by(ExposureRow.mjd, ExposureRow.key)
        )
        if ccd is not None:
            query = query.where(ExposureRow.filters.has_key(ccd))
        if name:
            query = query.where(ExposureRow.filters[ccd].astext == name)
        if flat_type is not None:
            query = query.where(ExposureRow.flat_type == flat_type)
        with self.database.session() as session:
            return session.scalars(query).all()

    def master(
        self, kind: str, info: ImageInfo, calibration_set: str = "any", flat_type: str = "any"
    ) -> tuple[str, Master]:
        """(identifier, master) valid for this image: the nearest in time.

        Parameters
        ----------
        kind : ``bias``, ``dark``, ``flat``, ``fringe`` or ``illumination``.
        info : date, CCD, instrument and filter of the image.
        calibration_set : ``nightly`` (made of exposures under the current recipe), ``external``, or ``any``.
        flat_type : ``dome``, ``twilight``, ``sky`` or ``any``; for flats.

        Raises
        ------
        MasterNotFound
            None is valid at the date of the image, for its CCD and (where it matters) its filter.
        AmbiguousMaster
            Several fit, and neither set, type nor date chooses.
        """
        rows = self._valid_masters(kind, info, calibration_set, flat_type)
        what = f"master {kind} on MJD {info.mjd:.5f} for CCD {info.ccd}"
        what += f" in filter {info.filter}" if kind in _BY_FILTER else ""
        if not rows:
            raise MasterNotFound(
                f"no {what} is valid; ingest {kind} frames of a night within the validity, or register a file",
                waits_for=f"master_{kind}//{info.ccd}",
            )
        for column, parameter in (("calibration_set", "image.master_set"), ("flat_type", "image.flat_type")):
            choices = sorted({getattr(row, column) for row in rows})
            if len(choices) > 1:
                listed = ", ".join(choice or "none" for choice in choices)
                raise AmbiguousMaster(f"{what}: {column} may be {listed}: choose one by {parameter}")
        distances = [abs((row.valid_from + row.valid_to) / 2 - info.mjd) for row in rows]
        nearest = [row for row, d in zip(rows, distances, strict=True) if d - min(distances) < _SAME_TIME_DAYS]
        if len(nearest) > 1:
            names = ", ".join(row.partition for row in nearest)
            raise AmbiguousMaster(f"{what}: {names} fit equally well: narrow their ranges of validity")
        return f"{nearest[0].partition}/{nearest[0].provenance_id}", self.load_row(nearest[0])

    def _valid_masters(
        self, kind: str, info: ImageInfo, calibration_set: str, flat_type: str
    ) -> Sequence[MasterRow]:
        ids = [external_provenance(kind).id]
        if f"master_{kind}" in self.recipes:
            ids.append(self.recipes[f"master_{kind}"].id)
        query = sa.select(MasterRow).where(
            MasterRow.kind == kind,
            MasterRow.ccd == info.ccd,
            MasterRow.instrument == info.instrument,
            MasterRow.provenance_id.in_(ids),
            MasterRow.valid_from <= info.mjd,
            MasterRow.valid_to >= info.mjd,
            MasterRow.bitflag == 0,
        )
        if kind in _BY_FILTER:
            query = query.where(MasterRow.filter == info.filter)
        if calibration_set != "any":
            query = query.where(MasterRow.calibration_set == calibration_set)
        if kind == "flat" and flat_type != "any":
            query = query.where(MasterRow.flat_type == flat_type)
        with self.database.session() as session:
            return session.scalars(query.order_by(MasterRow.partition)).all()

    def reference_candidates(self, selection: Any, partition: Partition | None = None) -> list[tuple[Partition, str]]:
        """((field.filter, ccd), exposure) of every image that the selection of a reference set admits."""
        query = (
            sa.select(ImageRow.field, ImageRow.filter, ImageRow.ccd, ImageRow.partition)
            .join(PsfRow, sa.and_(PsfRow.partition == ImageRow.partition, PsfRow.ccd == ImageRow.ccd))
            .join(ZeroPointRow, sa.and_(ZeroPointRow.partition == ImageRow.partition, ZeroPointRow.ccd == ImageRow.ccd))
            .where(ImageRow.provenance_id == self.recipes["image"].id, ImageRow.bitflag == 0)
            .where(PsfRow.provenance_id == self.recipes["psf"].id, PsfRow.bitflag == 0)
            .where(ZeroPointRow.provenance_id == self.recipes["zp"].id, ZeroPointRow.bitflag == 0)
            .where(ImageRow.instrument == self.instrument)
            .where(*_selection_conditions(selection))
            .order_by(ZeroPointRow.limiting_magnitude.desc(), ImageRow.partition)
        )
        if partition is not None:
            query = query.where(
                sa.func.concat(ImageRow.field, ".", ImageRow.filter) == partition.key, ImageRow.ccd == partition.ccd
            )
        with self.database.session() as session:
            return [(Partition(f"{r.field}.{r.filter}", r.ccd), r.partition) for r in session.execute(query)]

    def reference_members(self, partition: Partition, selection: Any) -> Sequence[CalibratedImage]:
        """The images that make a reference, deepest first; those it was made of if it exists.

        Raises
        ------
        ReferenceNotFound
            When fewer than ``selection.min_images`` images qualify.
        """
        kept = self.row("reference", partition)
        if kept is not None:
            return [self._calibrated(exposure, partition.ccd) for exposure in kept.inputs["members"]]
        exposures = [exposure for _, exposure in self.reference_candidates(selection, partition)]
        if len(exposures) < selection.min_images:
            raise ReferenceNotFound(
                f"{partition.key} CCD {partition.ccd}: {len(exposures)} images qualify for the reference, "
                f"{selection.min_images} are needed"
            )
        return [self._calibrated(exposure, partition.ccd) for exposure in exposures[: selection.max_images]]

    def find_reference(
        self, info: ImageInfo, wcs: Wcs, shape: tuple[int, int], min_overlap: float
    ) -> tuple[str, Reference]:
        """(row id, reference): the deepest one that covers the image and does not contain it.

        Raises
        ------
        ReferenceNotFound
            When there is none yet.
        """
        ra, dec, corners = polygon_of(wcs.astropy(), shape)
        footprint = {"ra": corners[0], "dec": corners[1]}
        query = (
            sa.select(ReferenceRow)
            .where(ReferenceRow.provenance_id == self.recipes["reference"].id, ReferenceRow.bitflag == 0)
            .where(ReferenceRow.instrument == info.instrument, ReferenceRow.filter == info.filter)
            .where(cone_condition(ReferenceRow.healpix, ra, dec, _SEARCH_RADIUS_DEG))
            .order_by(ReferenceRow.limiting_magnitude.desc(), ReferenceRow.partition)
        )
        with self.database.session() as session:
            rows = session.scalars(query).all()
        covering = [row for row in rows if overlap_fraction(footprint, row.corners) >= min_overlap]
        for row in covering:
            if info.exposure not in row.members:
                return str(row.id), self.reference(str(row.id))
        if covering:
            raise ReferenceNotFound(
                f"{info.exposure} CCD {info.ccd} is itself part of its reference {covering[0].partition}"
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
            self._reference = (row_id, self.load_row(row))
        return self._reference[1]

    def _calibrated(self, exposure: str, ccd: str) -> CalibratedImage:
        partition = Partition(exposure, ccd)
        return CalibratedImage(*(self.load(product, partition) for product in _CALIBRATED))


def _selection_conditions(selection: Any) -> list[sa.ColumnElement[bool]]:
    """Every cut of the selection as an SQL condition; None disables a cut."""
    pairs = [
        (selection.projects, ImageRow.project.in_),
        (selection.min_mjd, lambda v: ImageRow.mjd >= v),
        (selection.max_mjd, lambda v: ImageRow.mjd <= v),
        (selection.max_fwhm_px, lambda v: PsfRow.fwhm_px <= v),
        (selection.min_limiting_magnitude, lambda v: ZeroPointRow.limiting_magnitude >= v),
        (selection.min_exptime_s, lambda v: ImageRow.exptime_s >= v),
        (selection.max_airmass, lambda v: sa.or_(ImageRow.airmass.is_(None), ImageRow.airmass <= v)),
    ]
    return [condition(value) for value, condition in pairs if value is not None]
