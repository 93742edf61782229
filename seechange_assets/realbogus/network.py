"""Small networks in numpy: what they see, and their forward passes.

The convolutional one: three 3x3 convolutions with ReLU and 2x2 maxima, one hidden layer joined by
measured features. The tabular one: two hidden layers on those features alone.
Trained with torch (`realbogus.train`); evaluating in numpy gives the same numbers without the two
seconds that importing torch costs every process.
"""

import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import Cutouts, Measurements

FloatArray = NDArray[np.float32]

PACKAGE = "seechange_assets.realbogus"
VIEW_PX = 33  # side of the stamps' centre that the network sees
CHUNK = 64
MAD_TO_SIGMA = 1.4826
FEATURES = (
    "snr", "chi2", "elongation", "fwhm_px", "dipole_score", "trail_score", "cosmic_ray_score",
    "negative_fraction", "negative_flux_fraction", "distance_px",
)  # fmt: skip


def network_input(cutouts: Cutouts, measurements: Measurements) -> tuple[FloatArray, FloatArray]:
    """Stamps ``(n, 3, 33, 33)`` and features ``(n, 10)`` of each measurement.

    Stamps (new, ref, sub) are in units of the noise of ``sub`` (1.4826 MAD of the whole stamp), compressed
    by asinh; flagged and missing pixels are 0. A negative detection is shown with its sign changed and new
    and reference exchanged: a source that vanished looks like one that appeared.
    """
    row = np.asarray(measurements.table["detection"], np.int64)
    known = [
        np.where((flags[row] == 0) & np.isfinite(stamps[row]), stamps[row], 0.0).astype(np.float32)
        for stamps, flags in (
            (cutouts.new, cutouts.new_flags),
            (cutouts.ref, cutouts.ref_flags),
            (cutouts.sub, cutouts.sub_flags),
        )
    ]
    negative = (np.asarray(measurements.table["score"]) < 0)[:, None, None]
    new, ref = np.where(negative, known[1], known[0]), np.where(negative, known[0], known[1])
    stamps = np.stack([new, ref, np.where(negative, -known[2], known[2])], axis=1)
    in_noise = stamps / _noise(known[2])[:, None, None, None]
    return _view(np.asarray(in_noise, np.float32)), _features(measurements)


def _noise(stamps: FloatArray) -> FloatArray:
    """Robust sigma of each stamp from its unmasked pixels; 1 where nothing is left."""
    values = np.where(stamps == 0, np.nan, stamps).reshape(len(stamps), -1)
    values[np.isnan(values).all(axis=1)] = 0.0
    sigma = MAD_TO_SIGMA * np.nanmedian(np.abs(values - np.nanmedian(values, axis=1, keepdims=True)), axis=1)
    return np.where(sigma > 0, sigma, 1.0).astype(np.float32)


def _view(stamps: FloatArray) -> FloatArray:
    """Centre of the stamps, filled up with 0 where they are smaller than the view."""
    view = np.zeros((*stamps.shape[:2], VIEW_PX, VIEW_PX), np.float32)
    size = min(stamps.shape[-1], VIEW_PX)
    low, start = (stamps.shape[-1] - size) // 2, (VIEW_PX - size) // 2
    cut, place = slice(low, low + size), slice(start, start + size)
    view[:, :, place, place] = np.arcsinh(stamps[:, :, cut, cut])
    return view


def _features(measurements: Measurements) -> FloatArray:
    """Measured values on scales of order one; what was not measured is 0."""
    table = measurements.table
    sign = np.where(np.asarray(table["score"]) < 0, -1.0, 1.0)
    # A vanished source is a positive one here. Ratios to nothing (all pixels around it flagged) count as not measured.
    values = {name: np.asarray(table[name], np.float64) for name in FEATURES} | {"snr": np.asarray(table["snr"]) * sign}
    columns = [np.arcsinh(np.nan_to_num(values[name], posinf=0.0, neginf=0.0)) for name in FEATURES]
    return np.stack(columns, axis=1).astype(np.float32) if len(table) else np.zeros((0, len(FEATURES)), np.float32)


@cache
def load_weights(name: str) -> Mapping[str, FloatArray]:
    """Weights shipped with the package, by the name of the algorithm (numpy archive, no pickle)."""
    with files(PACKAGE).joinpath(f"{name}.npz").open("rb") as stream:
        archive = np.load(stream, allow_pickle=False)
        return {key: np.array(archive[key], np.float32) for key in archive.files}


@cache
def weights_digest(name: str) -> str:
    """First 16 digits of the SHA-256 of the weights' file: it belongs to the recipe of every score."""
    return hashlib.sha256(files(PACKAGE).joinpath(f"{name}.npz").read_bytes()).hexdigest()[:16]


def evaluate(weights: Mapping[str, FloatArray], stamps: FloatArray, features: FloatArray) -> NDArray[np.float64]:
    """Probability of being real, ``(n,)``, of stamps and features by the convolutional network."""
    return _in_blocks(lambda *block: _forward(weights, *block), stamps, features)


def evaluate_features(weights: Mapping[str, FloatArray], features: FloatArray) -> NDArray[np.float64]:
    """Probability of being real, ``(n,)``, by the tabular network."""
    return _in_blocks(lambda block: _forward_features(weights, block), features)


def _in_blocks(function: Callable[..., NDArray[np.float64]], *arrays: FloatArray) -> NDArray[np.float64]:
    """Blocks of a fixed number of rows, the last one filled up: a score does not depend on its company."""
    n = len(arrays[0])
    scores = np.empty(n)
    for first in range(0, n, CHUNK):
        part = slice(first, min(first + CHUNK, n))
        count = part.stop - first
        blocks = [np.zeros((CHUNK, *array.shape[1:]), np.float32) for array in arrays]
        for block, array in zip(blocks, arrays, strict=True):
            block[:count] = array[part]
        scores[part] = function(*blocks)[:count]
    return scores


def _forward_features(weights: Mapping[str, FloatArray], features: FloatArray) -> NDArray[np.float64]:
    hidden = (features - weights["features.mean"]) / weights["features.scale"]
    for layer in ("first", "hidden"):
        hidden = np.maximum(hidden @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"], 0)
    return _probability(weights, hidden)


def _forward(weights: Mapping[str, FloatArray], block: FloatArray, features: FloatArray) -> NDArray[np.float64]:
    maps = np.ascontiguousarray(block.transpose(0, 2, 3, 1))
    for layer in ("conv1", "conv2", "conv3"):
        maps = _halved(_convolved(maps, weights[f"{layer}.weight"], weights[f"{layer}.bias"]))
    scaled = (features - weights["features.mean"]) / weights["features.scale"]
    # The hidden layer was trained on channel-first maps.
    joined = np.concatenate([maps.transpose(0, 3, 1, 2).reshape(len(maps), -1), scaled], axis=1)
    hidden = np.maximum(joined @ weights["hidden.weight"].T + weights["hidden.bias"], 0)
    return _probability(weights, hidden)


def _probability(weights: Mapping[str, FloatArray], hidden: FloatArray) -> NDArray[np.float64]:
    logit = (hidden @ weights["output.weight"].T + weights["output.bias"])[:, 0].astype(np.float64)
    return 1 / (1 + np.exp(-np.clip(logit, -60, 60)))


def _convolved(maps: FloatArray, weight: FloatArray, bias: FloatArray) -> FloatArray:
    """3x3 convolution with zero padding and ReLU, channel last: one matrix product over shifted copies."""
    n, ny, nx, channels = maps.shape
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)))
    columns = np.concatenate([padded[:, j : j + ny, i : i + nx] for j in range(3) for i in range(3)], axis=3)
    kernel = weight.transpose(2, 3, 1, 0).reshape(9 * channels, -1)
    result = columns.reshape(-1, 9 * channels) @ kernel
    result += bias
    return np.maximum(result, 0, out=result).reshape(n, ny, nx, -1)


def _halved(maps: FloatArray) -> FloatArray:
    """2x2 maxima; an odd last row or column is left out, as torch does."""
    ny, nx = maps.shape[1] // 2 * 2, maps.shape[2] // 2 * 2
    even = maps[:, :ny, :nx]
    rows = np.maximum(even[:, ::2], even[:, 1::2])
    return np.maximum(rows[:, :, ::2], rows[:, :, 1::2])
