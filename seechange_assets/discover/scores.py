"""Real/bogus score of each measurement."""

from typing import ClassVar

from seechange_assets.data_product import data_product
from seechange_assets.parameters import Field, Parameters
from seechange_assets.products import Cutouts, Measurements, Scores


class ScoresParameters(Parameters):
    """Which classifier, and from which score on a detection is real."""

    process: ClassVar[str] = "scores"
    algorithm: str = Field("cnn-1", description="cnn-1, or for tests: random, allperfect.")
    cut: float = Field(0.5, ge=0.0, le=1.0, description="Least score of a real detection.")


@data_product(ScoresParameters)
def scores(cutouts: Cutouts, measurements: Measurements, parameters: ScoresParameters) -> Scores:
    """Real/bogus score in [0, 1] of each measurement."""
    from seechange_assets.realbogus.scores import score

    return score(cutouts, measurements, **parameters.arguments())
