"""`Survey`: every product by exposure and CCD, by id, by tag or provenance, in lists; lazy and read-only."""

import numpy as np
import pytest
import sqlalchemy as sa

from seechange_assets import Survey
from seechange_assets import products as p
from seechange_assets.errors import ParameterError, ProductNotFound
from seechange_assets.partition import Partition
from seechange_assets.survey import StoredProduct, _read_only
from sql.models import ImageRow

CLASSES = {
    "image": p.Image, "background": p.Background, "sources": p.Sources, "psf": p.Psf, "wcs": p.Wcs, "zp": p.ZeroPoint,
    "diff": p.Difference, "detections": p.Detections, "cutouts": p.Cutouts, "measurements": p.Measurements,
    "scores": p.Scores, "associations": p.Associations, "forced_photometry": p.ForcedPhotometry, "alerts": p.Alerts,
}  # fmt: skip


@pytest.fixture
def survey(world) -> Survey:
    with world.as_environment():
        return Survey.open()


@pytest.fixture
def centre(survey, exposure) -> tuple[float, float]:
    """The middle of the CCD on the sky [deg]."""
    ny, nx = survey.image(exposure, "01").data.shape
    ra, dec = survey.wcs(exposure, "01").astropy().all_pix2world((nx - 1) / 2, (ny - 1) / 2, 0)
    return float(ra), float(dec)


def test_every_product_is_its_dataclass_read_only(survey, exposure):
    for name, product_class in CLASSES.items():
        product = getattr(survey, name)(exposure, "01")
        assert type(product) is product_class
    data = survey.image(exposure, "01").data
    with pytest.raises(ValueError, match="read-only"):
        data[0, 0] = 1.0
    for name in ("image", "wcs", "diff"):
        with pytest.raises(ProductNotFound, match=r"no .* of demo_20991231T000000 CCD 01"):
            getattr(survey, name)("demo_20991231T000000", "01")


def test_shared_products(survey):
    (row, *_) = survey.list("reference", ccd="01")
    assert type(survey.reference(row["partition"], "01")) is p.Reference
    night = survey.list("master_bias", ccd="01")["partition"][0]
    assert survey.master("bias", night, "01").data.shape == survey.master("flat", night, "01").data.shape
    with pytest.raises(ProductNotFound):
        survey.reference("nowhere.r", "01")


def test_by_id(survey, exposure):
    found = survey.find("zp", exposure, "01")
    again = survey.by_id(found.id)
    assert (again.product, again.partition, again.ccd, again.id) == ("zp", exposure, "01", found.id)
    assert again.zp == survey.zp(exposure, "01").zp
    with pytest.raises(ProductNotFound, match="there is no product"):
        survey.by_id("00000000-0000-0000-0000-000000000000")


def test_by_tag_and_provenance(world, survey, exposure):
    recipe = world.session.store.recipes["diff"].id
    with world.as_environment():
        for name in (recipe, recipe[:8]):
            assert Survey.open(name).find("diff", exposure, "01").id == survey.find("diff", exposure, "01").id
        with pytest.raises(ProductNotFound, match=r"no tag|no recipe"):
            Survey.open("nobodys")
    with pytest.raises(ProductNotFound, match="names no recipe of 'alerts'"):
        survey.at(recipe).find("alerts", exposure, "01")


def test_lists_filter_by_time_filter_ccd_seeing_and_depth(survey, exposure):
    whole = survey.list("zp")
    assert (np.diff(whole["mjd"]) >= 0).all()
    mine = whole[(whole["exposure"] == exposure) & (whole["ccd"] == "01")]
    assert len(mine) == 1
    (mjd,), (fwhm,), (depth,), (its_filter,) = (mine[c] for c in ("mjd", "fwhm_px", "limiting_magnitude", "filter"))
    cuts = [
        ({"mjd": (mjd - 1e-4, mjd + 1e-4)}, abs(whole["mjd"] - mjd) <= 1e-4),
        ({"mjd": (None, mjd + 1e-4)}, whole["mjd"] <= mjd + 1e-4),
        ({"filter": its_filter}, whole["filter"] == its_filter),
        ({"ccd": "02"}, whole["ccd"] == "02"),
        ({"max_fwhm_px": fwhm}, whole["fwhm_px"] <= fwhm),
        ({"min_limiting_magnitude": depth}, whole["limiting_magnitude"] >= depth),
    ]
    for arguments, expected in cuts:
        found = survey.list("zp", **arguments)
        assert list(found["id"]) == list(whole["id"][expected]), arguments
        assert 0 < len(found) <= len(whole)
    assert len(survey.list("zp", mjd=(mjd + 1000, None))) == 0
    with pytest.raises(ParameterError, match="has no fwhm_px"):
        survey.list("master_bias", max_fwhm_px=3.0)
    with pytest.raises(ParameterError, match=r"'difff'.*'diff'"):
        survey.list("difff")


def test_lists_of_a_region(survey, exposure, centre):
    covering = survey.list("wcs", contains=centre)
    assert exposure in set(covering["exposure"])
    assert set(covering["ccd"]) == {"01"}
    ra, dec = centre
    near = survey.list("diff", cone=(ra, dec, 1 / 60))
    assert set(near["exposure"]) == {exposure}
    assert len(survey.list("wcs", contains=(ra, -dec if abs(dec) > 5 else dec + 40))) == 0
    assert len(survey.list("wcs", cone=((ra + 180) % 360, dec, 1.0))) == 0


def test_lists_of_bad_products(world, survey, exposure):
    row = world.session.store.row("image", Partition(exposure, "02"))
    answer = world.cli("flag", exposure, "--ccd", "02", "--set", "banding", "--json")
    assert answer.code == 0, answer.err
    try:
        bad = survey.list("zp", is_bad=True)
        assert [(r["exposure"], r["ccd"], r["flags"]) for r in bad] == [(exposure, "02", "banding")]
        assert exposure not in {r["exposure"] for r in survey.list("zp", is_bad=False, ccd="02")}
        assert "flags: banding" in repr(survey.find("zp", exposure, "02"))
    finally:
        assert world.cli("flag", exposure, "--ccd", "02", "--clear", "banding").code == 0
    assert len(survey.list("zp", is_bad=True)) == 0
    assert world.session.store.row("image", Partition(exposure, "02")).bitflag == row.bitflag == 0


def test_pixels_are_read_when_they_are_asked_for(survey, exposure, monkeypatch):
    reads = []
    load_row = type(survey._store).load_row
    monkeypatch.setattr(type(survey._store), "load_row", lambda store, row: reads.append(row) or load_row(store, row))
    found = list(survey.each("image", ccd="01"))
    one = next(item for item in found if item.partition == exposure)
    assert isinstance(one, StoredProduct)
    assert one.summary
    assert one.flags == ()
    assert reads == []
    assert one.data.ndim == 2
    assert one.load() is one.load()
    assert len(reads) == 1
    with pytest.raises(AttributeError):
        _ = one.nothing_of_the_kind


def test_nothing_is_written(world, survey, exposure):
    counts, files = world.counts(), world.files().keys()
    survey.image(exposure, "01")
    survey.list("diff")
    assert (world.counts(), world.files().keys()) == (counts, files)
    with survey._store.database.session() as session:
        _read_only(session)
        with pytest.raises(sa.exc.InternalError, match="read-only transaction"):
            session.execute(sa.delete(ImageRow))
        session.rollback()


def test_objects_and_light_curves(survey, exposure, centre):
    found = survey.objects(*centre, radius=600.0)
    assert len(found) > 0
    curve = survey.lightcurve(found["name"][0])
    assert set(curve["kind"]) <= {"detection", "forced", "limit"}
    assert (np.diff(curve["mjd_mid"]) >= 0).all()
    with pytest.raises(ProductNotFound, match="no object"):
        survey.lightcurve("SC1900a")


def test_a_notebook_shows_what_it_is(survey, exposure):
    assert repr(survey).startswith("Survey(demo, ")
    assert "tag current" in survey._repr_html_()
    found = survey.find("zp", exposure, "01")
    assert repr(found) == f"zp of {exposure} CCD 01 ({found.provenance_id[:10]})"
    page = found._repr_html_()
    assert page.startswith("<table>")
    assert "<td>none</td>" in page
    assert found.summary.keys() <= {name.strip() for name in page.replace("<", ">").split(">")}
