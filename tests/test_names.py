"""The allow-list refuses whatever could leave its folder, end a key or break a topic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seechange_assets.errors import InvalidName, ParameterError
from seechange_assets.names import checked_name, checked_night

HOSTILE = [
    "../x", "a/b", "", ".", "..", "a\nb", "a\n", 'a"b', "a'b", "a,b", "a|b",
    "a" * 300, "a" * 81, "ä", "a b", "a\x00", None, 7,
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(name):
    with pytest.raises(InvalidName, match="is not allowed"):
        checked_name(name)


@given(st.from_regex(r"[A-Za-z0-9_.-]{1,80}", fullmatch=True))
def test_allowed_names_pass_unchanged(name):
    if set(name) != {"."}:
        assert checked_name(name) == name


def test_a_night_is_a_date():
    assert checked_night("2026-11-22") == checked_night("20261122") == "2026-11-22"
    for text in ("22.11.2026", "2026-13-01", "tonight", "", "2026-11-22T00:00"):
        with pytest.raises(ParameterError, match="is no night: expected YYYY-MM-DD"):
            checked_night(text)
