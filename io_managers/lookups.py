"""Inputs that the data choose: masters by date, images for a reference, the reference of an image."""

import uuid
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from io_managers.store import ProductStore
from seechange_assets.errors import MasterNotFound, ReferenceNotFound
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
_CALIBRATED = ("image", "background", "sources", "psf", "wcs", "zp")


class SurveyStore(ProductStore):
    """A `ProductStore` that also finds what the data choose."""

    #: The reference used last: the steps of one run ask for the same one several times.
    _reference: tuple[str, Reference] | None = None

    def calibration_frames(self, calibration: str, kind: str) -> Sequence[str]:
        """Keys of the exposures of one kind in a calibration run (a night), in time order."""
        query = (
            sa.select(ExposureRow.key)
            .where(ExposureRow.night == calibration, ExposureRow.kind == kind)
            .where(ExposureRow.instrument == self.instrument, ExposureRow.bitflag == 0)
            .order_by(ExposureRow.mjd, ExposureRow.key)
        )
        with self.database.session() as session:
            return session.scalars(query).all()

    def master(self, kind: str, info: ImageInfo) -> tuple[str, Master]:
        """(identifier, master) valid for this image: the nearest in time, the newer of two equally near.

        Raises
        ------
        MasterNotFound
            None is valid at the date of the image, for its CCD and (flats) its filter.
        """
        query = sa.select(MasterRow).where(
            MasterRow.kind == kind,
            MasterRow.ccd == info.ccd,
            MasterRow.instrument == info.instrument,
            MasterRow.provenance_id == self.recipes[f"master_{kind}"].id,
            MasterRow.valid_from <= info.mjd,
            MasterRow.valid_to >= info.mjd,
            MasterRow.bitflag == 0,
        )
        if kind == "flat":
            query = query.where(MasterRow.filter == info.filter)
        middle = (MasterRow.valid_from + MasterRow.valid_to) / 2
        query = query.order_by(sa.func.abs(middle - info.mjd), MasterRow.partition.desc()).limit(1)
        with self.database.session() as session:
            row = session.scalar(query)
        if row is None:
            of_filter = f" in filter {info.filter}" if kind == "flat" else ""
            raise MasterNotFound(
                f"no master {kind} is valid on MJD {info.mjd:.5f} for CCD {info.ccd}{of_filter}; "
                f"ingest {kind} frames of a night within the validity",
                waits_for=f"master_{kind}//{info.ccd}",
            )
        return f"{row.partition}/{row.provenance_id}/{row.content_hash[:10]}", self.load_row(row)

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
        """The images that make a reference, deepest first.

        Raises
        ------
        ReferenceNotFound
            When fewer than ``selection.min_images`` images qualify.
        """
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
