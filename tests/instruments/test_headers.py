"""Shared header parsing."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seechange_assets.instruments.headers import clean_text, exposure_key, field_name, night_of, section_slices
from seechange_assets.names import NAME_PATTERN, checked_name

# 2026-11-22T03:15:02 UTC.
MJD = 61366 + (3 * 3600 + 15 * 60 + 2) / 86400


def test_exposure_key() -> None:
    assert exposure_key("ls4", MJD) == "ls4_20261122T031502"


@given(st.integers(0, 86399))
def test_a_full_second_keeps_its_second(second: int) -> None:
    h, m, s = second // 3600, second // 60 % 60, second % 60
    assert exposure_key("x", 61366 + second / 86400) == f"x_20261122T{h:02d}{m:02d}{s:02d}"


def test_night_is_the_date_it_began() -> None:
    assert night_of(MJD) == "2026-11-21"
    assert night_of(MJD + 0.5) == "2026-11-22"


def test_field_name() -> None:
    assert field_name("cdfs-1", 10, 10) == "cdfs-1"
    assert field_name("../etc", 150.06, 2.23) == "f150.1p2.2"
    assert field_name("", 359.97, -2.23) == "f0.0m2.2"
    assert field_name("", 10.0, -0.01) == "f10.0p0.0"
    assert field_name("", math.nan, math.nan) == "none"


@given(st.text(max_size=200), st.floats(0, 360), st.floats(-90, 90))
def test_names_always_pass_the_allow_list(text: str, ra: float, dec: float) -> None:
    checked_name(field_name(text, ra, dec))
    cleaned = clean_text(text)
    assert cleaned == "" or NAME_PATTERN.fullmatch(cleaned)
    assert set(cleaned) != {"."}


def test_section() -> None:
    assert section_slices("[1:1024,1:4096]") == (slice(0, 4096), slice(0, 1024))


@pytest.mark.parametrize("section", ["", "[1:2]", "[5:2,1:4]", "[0:2,1:4]", "1:2,3:4", "[1:2,1:9999999]", None])
def test_not_a_section(section: str) -> None:
    with pytest.raises(ValueError, match=r"section|ascending"):
        section_slices(section)
