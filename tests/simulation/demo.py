"""One small simulated survey, made once per test session."""

from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

from seechange_assets.simulation import SimulatedSurvey, simulate_survey

SEED = 11


@lru_cache(maxsize=1)
def demo_survey() -> SimulatedSurvey:
    """Two science exposures of the demo instrument, with calibrations and references. Do not change its files."""
    out = Path(mkdtemp(prefix="demo_survey_"))
    return simulate_survey(out, seed=SEED, exposures=2, ccds=("01", "02"), instrument="demo", streaks=1)
