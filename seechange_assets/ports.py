"""What the assets ask of the outside world; `resources` and `io_managers` answer.

Assets name these protocols, never a database or a path, so a test can hand them
anything that answers the same questions.
"""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from seechange_assets.partition import Partition
from seechange_assets.products import (
    CalibratedImage,
    ImageInfo,
    Master,
    Reference,
    SkyCatalog,
    Wcs,
)

_T = TypeVar("_T")
_RESOURCE = "resource"
#: Annotation of an argument that answers for the outside world: ``store: Resource[Store]``.
Resource = Annotated[_T, _RESOURCE]


def is_resource(annotation: Any) -> bool:
    """Whether an argument with this annotation is a resource."""
    return _RESOURCE in getattr(annotation, "__metadata__", ())


class SkyCatalogSource(Protocol):
    """A catalogue of stars that answers cone searches."""

    def cone(self, ra_deg: float, dec_deg: float, radius_deg: float, max_mag: float | None = None) -> SkyCatalog:
        """Stars within `radius_deg`; raises CatalogError when there is no usable answer."""


class Store(Protocol):
    """Products and raw files, found by what they are."""

    def exposure_file(self, exposure: str) -> AbstractContextManager[Path]:
        """The raw file of a registered exposure, its checksum verified."""

    def calibration_frames(
        self, calibration: str, kind: str, ccd: str | None = None, flat_type: str | None = None
    ) -> Sequence[str]:
        """Keys of the exposures of a kind in a run (``night`` or ``night.filter``), in time order."""

    def master(
        self, kind: str, info: ImageInfo, calibration_set: str = "any", flat_type: str = "any"
    ) -> tuple[str, Master]:
        """(identifier, master valid for this image); raises MasterNotFound, AmbiguousMaster."""

    def reference_members(self, partition: Partition, selection: Any) -> Sequence[CalibratedImage]:
        """The images that make a reference, best first, read one at a time; raises ReferenceNotFound."""

    def find_reference(
        self, info: ImageInfo, wcs: Wcs, shape: tuple[int, int], min_overlap: float
    ) -> tuple[str, Reference]:
        """(row id, deepest reference covering this image, or that of its difference); raises ReferenceNotFound."""

    def reference(self, row_id: str) -> Reference:
        """The reference with this row id."""

    def load(self, product: str, partition: Partition, *, without: Collection[str] = (), mapped: bool = False) -> Any:
        """A product of the current recipes, verified against its row; empty arrays in the fields of `without`."""
