"""Rules on products, shown as asset checks; a blocking rule stops what would follow."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import dagster as dg


@dataclass(frozen=True, slots=True)
class ProductCheck:
    """One rule: `measure` gives a number of the product that must not exceed `limit`.

    A blocking rule that fails is an error and stops the partition; others only warn.
    """

    name: str
    description: str
    measure: Callable[[Any], float]
    limit: float
    blocking: bool = False

    def spec(self, asset: str) -> "dg.AssetCheckSpec":
        """The check as Dagster declares it."""
        import dagster as dg

        return dg.AssetCheckSpec(self.name, asset=asset, description=self.description, blocking=self.blocking)

    def passes(self, product: Any) -> bool:
        """Whether the product keeps the rule (a NaN does not)."""
        return bool(self.measure(product) <= self.limit)

    def result(self, product: Any) -> "dg.AssetCheckResult":
        """The outcome on one product."""
        import dagster as dg

        severity = dg.AssetCheckSeverity.ERROR if self.blocking else dg.AssetCheckSeverity.WARN
        return dg.AssetCheckResult(
            check_name=self.name,
            passed=self.passes(product),
            severity=severity,
            metadata={"value": float(self.measure(product)), "limit": self.limit},
        )


SEEING = ProductCheck("seeing", "Seeing (FWHM) of at most 6 pixels.", lambda psf: psf.fwhm_px, limit=6.0)
ASTROMETRIC_RESIDUAL = ProductCheck(
    "astrometric_residual",
    "Robust residual against the catalogue of at most 150 mas in each axis.",
    lambda wcs: max(wcs.residual_ra_mas, wcs.residual_dec_mas),
    limit=150.0,
)
ZERO_POINT_SCATTER = ProductCheck(
    "zero_point_scatter",
    "Scatter of single stars about the zero point of at most 0.1 mag.",
    lambda zp: zp.scatter,
    limit=0.1,
)
#: More than this is a bad subtraction, not a sky: nothing of it becomes an object or an alert.
DETECTION_COUNT = ProductCheck(
    "detection_count", "At most 1000 detections per CCD.", lambda d: len(d.table), limit=1000, blocking=True
)
