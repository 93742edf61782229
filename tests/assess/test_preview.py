import base64
import dataclasses
import io
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from astropy.table import Table
from PIL import Image as Picture

from seechange_assets import products as p
from seechange_assets.assess.preview import MAX_BYTES, preview_markdown, preview_png

INFO = p.ImageInfo(
    "e1", "01", "demo", "f", "r", 61000.0, 45.0, 1.1, "t", "survey", 1.5, 5.0, 60000.0, 1.0
)  # fmt: skip
WITH_PICTURE = {p.Master, p.Image, p.Background, p.Psf, p.Reference, p.Difference, p.Cutouts}
PRODUCTS = [*WITH_PICTURE, p.Sources, p.Wcs, p.ZeroPoint, p.Detections, p.Measurements, p.Scores, p.Associations,
            p.ForcedPhotometry, p.Alerts, p.SkyCatalog]  # fmt: skip
PIXELS = (400, 200)


def make(kind: type, **given: Any) -> Any:
    """A product with noise in every array and something in every other field."""
    hints = get_type_hints(kind, localns={"Table": Table})
    return kind(
        **{item.name: given.get(item.name, _value(item.name, hints[item.name])) for item in dataclasses.fields(kind)}
    )


def _value(name: str, hint: Any) -> Any:
    rng = np.random.default_rng(1)
    shapes = {"coefficients": (3, 25, 25), "level_mesh": (16, 8), "rms_mesh": (16, 8), "corner": (6, 2)}
    stamps = (6, 41, 41)
    if name in ("new", "ref", "sub"):
        return rng.normal(0, 5, stamps).astype(np.float32)
    if name.endswith("_flags"):
        return np.zeros(stamps, np.uint16)
    if name == "flags":
        return np.zeros(PIXELS, np.uint16)
    if name == "coefficients":
        return np.abs(rng.normal(0, 1, shapes[name]))
    if dataclasses.is_dataclass(hint):
        return INFO if hint is p.ImageInfo else make(hint)
    if name in shapes or hint == p.FloatImage:
        return rng.normal(100, 5, shapes.get(name, PIXELS)).astype(np.float32)
    simple = {float: 1.0, int: 2, str: "x", dict: {}, tuple: (), Table: Table()}
    return (41 if name == "size" else simple.get(hint, ())) if not get_args(hint) else ()


def opened(product: Any) -> np.ndarray:
    """RGB of the preview, row 0 on top."""
    return np.asarray(Picture.open(io.BytesIO(preview_png(product))).convert("RGB")).astype(int)


@pytest.mark.parametrize("kind", sorted(PRODUCTS, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_every_product_has_a_small_picture_or_none(kind):
    product = make(kind)
    markdown = preview_markdown(product)
    assert (markdown is not None) == (kind in WITH_PICTURE)
    if markdown:
        caption, png = markdown.split("\n\n![preview](data:image/png;base64,")
        assert caption.endswith(".")
        content = base64.b64decode(png.removesuffix(")"))
        assert len(content) <= MAX_BYTES
        assert max(Picture.open(io.BytesIO(content)).size) >= 128


@pytest.mark.parametrize("shape", [(4096, 2048), (2048, 4096), (3000, 20), (1, 1), (7, 500)])
@pytest.mark.parametrize("kind", [p.Image, p.Difference])
def test_any_shape_stays_below_the_limit(kind, shape):
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 1, shape).astype(np.float32)
    arrays = {name: noise for name in ("data", "score") if name in kind.__dataclass_fields__}
    product = make(kind, **arrays, flags=np.zeros(shape, np.uint16))
    assert len(preview_png(product)) <= MAX_BYTES


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 1e30])
@pytest.mark.parametrize("kind", sorted(WITH_PICTURE, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
@pytest.mark.filterwarnings("error")
def test_pixels_without_meaning_are_no_error(kind, value):
    product = make(kind)
    broken = {
        name: np.full_like(array, value)
        for name in ("data", "score", "level_mesh", "coefficients", "new", "ref", "sub")
        if (array := getattr(product, name, None)) is not None
    }
    assert len(preview_png(dataclasses.replace(product, **broken))) <= MAX_BYTES


def test_nan_and_defects_are_blue_and_do_not_spoil_the_stretch():
    data = np.random.default_rng(3).normal(100, 5, (128, 128)).astype(np.float32)
    flags = np.zeros(data.shape, np.uint16)
    clean = opened(make(p.Image, data=data, flags=flags))
    spoilt, spoilt_flags = data.copy(), flags.copy()
    spoilt[:, 10], spoilt_flags[:, 10] = 1e6, p.Flag.BAD
    spoilt[20, :], spoilt_flags[20, :] = np.nan, p.Flag.NO_DATA
    seen = opened(make(p.Image, data=spoilt, flags=spoilt_flags))
    blue = seen[..., 2] > seen[..., 0]
    assert blue[:, 20:22].all()
    assert blue[256 - 42 : 256 - 40, :].all()  # y upwards
    assert np.abs(seen - clean)[~blue].max() <= 20  # a grey step is 18


def test_no_cutouts_no_picture():
    stamps = np.empty((0, 41, 41), np.float32)
    flags = np.empty((0, 41, 41), np.uint16)
    empty = p.Cutouts(stamps, stamps, stamps, flags, flags, flags, np.empty((0, 2), np.int32), 41)
    assert preview_markdown(empty) is None


def test_first_detection_comes_on_top_with_its_star_in_new_and_difference():
    stamps = {
        name: np.random.default_rng(4).normal(0, 1, (3, 41, 41)).astype(np.float32) for name in ("new", "ref", "sub")
    }
    for name in ("new", "sub"):
        stamps[name][0, 18:23, 30:33] = 300.0  # off centre: which way is up shows
    picture = opened(make(p.Cutouts, **stamps))[..., 0]
    width = picture.shape[1]
    scale = width // (3 * 41 + 4)
    row, columns = (
        slice(18 * scale, 23 * scale),
        [slice((43 * i + 30) * scale, (43 * i + 33) * scale) for i in range(3)],
    )
    assert picture[row, columns[0]].min() > 200
    assert picture[row, columns[2]].min() > 200
    assert picture[row, columns[1]].max() < 200
    assert picture[45 * scale :, :].mean() < 150


@pytest.mark.parametrize(("value", "shade"), [(40.0, 255), (-40.0, 0)])
def test_a_single_pixel_of_significance_stays_visible_in_a_large_difference(value, shade):
    score = np.random.default_rng(5).normal(0, 1, (2048, 1024)).astype(np.float32)
    score[700, 300] = value
    picture = opened(make(p.Difference, score=score, flags=np.zeros(score.shape, np.uint16)))[..., 0]
    assert (picture == shade).any()
    assert (picture == shade).mean() < 0.01
