"""A product read back is the product, and its file depends on nothing but it."""

import dataclasses
import hashlib

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from io_managers.fits_codec import read_product, write_product
from seechange_assets.content import content_hash, freeze, leaves
from seechange_assets.errors import ArchiveError
from seechange_assets.products import Background, Image, ImageInfo, Psf, Sources

INFO = ImageInfo(
    "ls4_20261122T031502", "07", "ls4", "f1", "g", 61366.1, 45.0, float("nan"),
    "t", "p", 1.5, 5.0, 6e4, 1.0, "CRVAL1  = 1.0", ("flat",),
)  # fmt: skip


def make_sources(n: int) -> Sources:
    rng = np.random.default_rng(3)
    table = Table(
        {
            "x": rng.normal(size=n),
            "flux_aper": rng.normal(size=(n, 4)).astype(np.float32),
            "image_flags": np.arange(n, dtype=np.uint16),
            "is_star": np.arange(n) % 2 == 0,
            "kind": np.array(["point", "", "streak"] * n)[:n].astype("U8"),
        }
    )
    table["x"].unit = "pix"
    return Sources(table, (1.0, 2.0, 3.0, 5.0), float("nan"))


def products():
    rng = np.random.default_rng(4)
    data = rng.normal(size=(20, 30)).astype(np.float32)
    data[3, 4] = np.nan
    yield Image(INFO, data, rng.integers(0, 65535, (20, 30)).astype(np.uint16), {"bias": "n/abc"})
    yield Background(data[:2, :3], data[:2, :3], 10, (20, 30), 1.0, 2.0)
    yield make_sources(5)
    yield make_sources(0)
    yield Psf(rng.normal(size=(6, 9, 9)), 2, 2, (20, 30), 3.3, "pixels", 40, 1.01, Table({"flux_psf": [1.0, np.nan]}))


def assert_same(a, b):
    for (name_a, value_a), (name_b, value_b) in zip(leaves(a), leaves(b), strict=True):
        assert name_a == name_b
        if isinstance(value_a, np.ndarray):
            assert value_a.dtype.kind == value_b.dtype.kind, name_a
            assert value_b.dtype.isnative
            np.testing.assert_array_equal(value_a, value_b, err_msg=name_a)
        elif isinstance(value_a, float) and np.isnan(value_a):
            assert np.isnan(value_b)
        else:
            assert value_a == value_b, name_a
            assert type(value_a) is type(value_b)


@pytest.mark.parametrize("product", list(products()), ids=lambda p: type(p).__name__)
def test_round_trip_is_exact(product, tmp_path):
    write_product(product, tmp_path / "a.fits", {"PROVENAN": "x"})
    back = read_product(tmp_path / "a.fits")
    assert_same(product, back)
    assert content_hash(product) == content_hash(back)
    write_product(back, tmp_path / "b.fits", {"PROVENAN": "x"})
    digests = {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("a.fits", "b.fits")}
    assert len(digests) == 1


def test_arrays_that_are_not_wanted_come_back_empty(tmp_path):
    image = next(products())
    write_product(image, tmp_path / "a.fits", {})
    back = read_product(tmp_path / "a.fits", without=("data",))
    assert (back.data.shape, back.data.dtype) == ((0, 0), np.float32)
    assert_same(dataclasses.replace(image, data=back.data), back)


def test_mapped_images_stay_in_the_file(tmp_path):
    image = next(products())
    write_product(image, tmp_path / "a.fits", {})
    back = read_product(tmp_path / "a.fits", mapped=True)
    assert isinstance(back.data, np.memmap)
    assert not back.data.flags.writeable
    np.testing.assert_array_equal(back.data, image.data)
    assert_same(image, dataclasses.replace(back, data=image.data))


@pytest.mark.parametrize("product", list(products()), ids=lambda p: type(p).__name__)
def test_files_pass_the_fits_checks(product, tmp_path):
    write_product(product, tmp_path / "a.fits", {})
    with fits.open(tmp_path / "a.fits", checksum=True) as hdus:
        hdus.verify("exception")
        assert all("CHECKSUM" in hdu.header for hdu in hdus)


def test_arrays_come_back_read_only(tmp_path):
    write_product(next(products()), tmp_path / "a.fits", {})
    with pytest.raises(ValueError, match="read-only"):
        read_product(tmp_path / "a.fits").data[0, 0] = 1


def test_frozen_arrays_cannot_change():
    product = freeze(make_sources(3))
    with pytest.raises(ValueError, match="read-only"):
        product.table["x"][0] = 1


def test_content_hash_sees_every_change():
    image = next(products())
    changed = image.data.copy()
    changed[0, 0] += 1
    variants = [
        image,
        dataclasses.replace(image, data=changed),
        dataclasses.replace(image, info=dataclasses.replace(INFO, gain=1.6)),
        dataclasses.replace(image, masters={}),
    ]
    assert len({content_hash(v) for v in variants}) == len(variants)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"not FITS at all", lambda b: b""])
def test_damaged_files_are_named(damage, tmp_path):
    path = tmp_path / "a.fits"
    write_product(next(products()), path, {})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArchiveError, match=r"a\.fits"):
        read_product(path)
