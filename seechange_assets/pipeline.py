"""The pipeline on one page, and the recipes that follow from its parameters; nothing of Dagster is needed.

What a process reads is in its own signature, and its provenance follows from there.
"""

from pathlib import Path

from resources.settings import Settings
from seechange_assets.acquire import exposure, masters
from seechange_assets.calibrate import background, image, psf, sources, wcs, zp
from seechange_assets.discover import cutouts, detections, diff, measurements, reference, scores
from seechange_assets.instruments.base import get_instrument
from seechange_assets.layers import Layers, check_sections, load_layers, parameters_of
from seechange_assets.process import PARAMETER_MODELS, DataProduct
from seechange_assets.provenance import Recipes
from seechange_assets.publish import alerts, associations, forced_photometry

#: The pipeline: phase (and group of the lineage page) -> its assets, in order.
PHASES: dict[str, list[DataProduct]] = {
    "acquire": [
        exposure.exposure,
        masters.master_bias,
        masters.master_dark,
        masters.master_flat,
        masters.master_fringe,
    ],
    "calibrate": [image.image, background.background, sources.sources, psf.psf, wcs.wcs, zp.zp],
    "discover": [
        reference.reference,
        diff.diff,
        detections.detections,
        cutouts.cutouts,
        measurements.measurements,
        scores.scores,
    ],
    "publish": [associations.associations, forced_photometry.forced_photometry, alerts.alerts],
}
CONFIG = Path(__file__).parent / "config"


def configured_layers(settings: Settings) -> Layers:
    """What the YAML files of these settings say, with the file and line of each value.

    Raises
    ------
    ParameterError
        For a file that cannot be read or a section of no process, with the nearest valid name.
    """
    layers = load_layers([CONFIG / "default.yaml", *settings.config])
    check_sections(layers, {name: model for name, model in PARAMETER_MODELS.items() if name != "exposure"})
    return layers


def build_recipes(settings: Settings) -> Recipes:
    """Parameters of every process from defaults and YAML, and the provenance that follows.

    Raises
    ------
    ParameterError
        For an unknown section or parameter, with the nearest valid name.
    """
    layers = configured_layers(settings)
    instrument = get_instrument(settings.instrument)
    upstreams = {product.name: product.upstreams for phase in PHASES.values() for product in phase}
    # Masters are made of exposures, but of a night's: to Dagster, every new exposure would make all of them stale.
    upstreams |= {master.name: ("exposure", *master.upstreams) for master in PHASES["acquire"][1:]}
    parameters = {name: parameters_of(PARAMETER_MODELS[name], layers.get(name)) for name in upstreams}
    camera = {"instrument": instrument.name, "constants": instrument.constants()}
    parameters["exposure"] = exposure.ExposureParameters(**camera)
    return Recipes(parameters, upstreams)
