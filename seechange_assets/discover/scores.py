"""Real/bogus score of each measurement."""

from typing import Any, ClassVar

from seechange_assets.parameters import Field, Parameters
from seechange_assets.process import data_product
from seechange_assets.products import Cutouts, Measurements, Scores


class ScoresParameters(Parameters):
    """Which classifier, and from which score on a detection is real."""

    process: ClassVar[str] = "scores"
    algorithm_version: ClassVar[str] = "2"
    algorithm: str = Field("cnn-1", description="cnn-1 or tabular-1; for tests: random, allperfect.")
    cut: float = Field(0.68, ge=0.0, le=1.0, description="Least score of a real detection: 1 % of artefacts pass.")

    def critical_values(self) -> dict[str, Any]:
        """As for every process, with the digest of the weights: new weights make new scores."""
        from seechange_assets.realbogus.network import weights_digest
        from seechange_assets.realbogus.scores import LEARNED

        weights = {"weights": weights_digest(self.algorithm)} if self.algorithm in LEARNED else {}
        return super().critical_values() | weights


@data_product(ScoresParameters)
def scores(cutouts: Cutouts, measurements: Measurements, parameters: ScoresParameters) -> Scores:
    """Real/bogus score in [0, 1] of each measurement."""
    from seechange_assets.realbogus.scores import score

    return score(cutouts, measurements, **parameters.arguments())
