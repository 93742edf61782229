"""How an alert is shown on a terminal."""

from seechange_assets.cli.alerts import one_line


def alert(**source):
    told = {
        "ra": 150.1, "dec": -2.2, "band": "r", "psfFlux": 1234.56, "snr": 12.34, "reliability": 0.876, "visit": "ls4_1",
    }  # fmt: skip
    return {"diaObject": {"name": "SC2026a"}, "diaSource": told | source}


def test_one_line_tells_name_place_flux_and_score():
    assert one_line(alert()).split() == [
        "SC2026a", "150.10000", "-2.20000", "r", "1234.6", "nJy", "S/N", "12.3", "score", "0.88", "ls4_1",
    ]  # fmt: skip


def test_what_is_null_is_a_dash_of_the_same_width():
    line = one_line(alert(psfFlux=None, snr=None, reliability=None, band=None))
    assert line.split()[3:] == ["-", "-", "nJy", "S/N", "-", "score", "-", "ls4_1"]
    assert len(line) == len(one_line(alert()))
