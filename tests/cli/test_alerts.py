"""How an alert is shown, saved and read by others."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from resources.alert_stream import AlertStream, Message
from seechange_assets.alert_pictures import triplet
from seechange_assets.cli.alerts import one_line, save_alert, show
from seechange_assets.cli.main import build_app
from seechange_assets.errors import InvalidName
from seechange_assets.publish.packets import SCHEMA_FOLDER, build_packet
from seechange_assets.publish.stamps import fits_stamp
from tests.publish.test_packets import CONTEXT, source, target


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


def test_what_comes_over_the_network_neither_drives_the_terminal_nor_names_a_file(tmp_path):
    shown = one_line(alert(visit="\x1b[2J\u202e"))
    assert shown.isprintable()
    with pytest.raises(InvalidName):
        save_alert(alert() | {"alertId": "../../etc/passwd"}, tmp_path)


def stamped(value=5.0):
    pixels = np.full((41, 41), np.nan, np.float32)
    pixels[10:30, 20] = value
    stamp = fits_stamp(pixels, {"BUNIT": "adu"})
    return alert() | {"alertId": "a1"} | dict.fromkeys(("cutoutScience", "cutoutTemplate", "cutoutDifference"), stamp)


def test_an_alert_is_saved_with_its_stamps_and_a_picture(tmp_path, capsys):
    show(stamped(), tmp_path, pictures=True, as_json=False)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"a1.json", "a1.png"} | {f"a1.cutout{n}.fits" for n in ("Science", "Template", "Difference")}
    assert json.loads((tmp_path / "a1.json").read_text())["diaSource"]["snr"] == 12.34
    picture = Image.open(tmp_path / "a1.png")
    assert picture.size == (4 * (3 * 41 + 2), 4 * 41)
    show(stamped(), None, pictures=True, as_json=False)
    assert "▀" in capsys.readouterr().out


def test_stamps_of_old_packets_are_pictures_too():
    raw = np.eye(41, dtype=">f4").tobytes()
    assert triplet({"cutoutScience": raw, "cutoutTemplate": None}).shape == (41, 41)
    with pytest.raises(ValueError, match="neither FITS"):
        triplet({"cutoutScience": b"123"})


def test_listen_filters_and_stops(settings, monkeypatch):
    """Over a real broker, as a user does it; a wrong filter is one line and exit code 1."""
    told = [build_packet(CONTEXT, source(n, snr=float(n)), target()) for n in range(1, 6)]
    headers = {"schema": "ls4.v1_0.alert", "alert_id": "x", "wire": "bare"}
    messages = [Message("ls4-alerts-20990101", "k", packet, headers) for packet in told]
    assert not any(answer.error for answer in AlertStream(settings.kafka_servers).publish(messages))
    run = partial(CliRunner().invoke, build_app())
    common = ["alerts", "listen", "--topics", "ls4-alerts-20990101", "--from-beginning", "--timeout", "3", "--json"]
    answer = run([*common, "--filter", "snr > 3 and rb > 0.5"])
    assert sorted(json.loads(line)["diaSource"]["snr"] for line in answer.stdout.splitlines()) == [4.0, 5.0]
    assert len(run([*common, "--maximum", "1"]).stdout.splitlines()) == 1
    assert "not allowed" in str(run([*common, "--filter", "open('x')"]).exception)


def test_the_example_needs_only_confluent_kafka_and_fastavro(kafka_servers):
    packet = build_packet(CONTEXT, source(), target())
    AlertStream(kafka_servers).publish([Message("example-1", "k", packet, {})] * 2)
    program = Path(__file__).parents[2] / "examples" / "read_alerts.py"
    imports = [line.split()[1] for line in program.read_text().splitlines() if line.startswith(("import ", "from "))]
    assert set(imports) == {"io", "sys", "fastavro", "confluent_kafka"}
    schema = SCHEMA_FOLDER / "ls4.v1_0.alert.avsc"
    command = [sys.executable, program, kafka_servers, "example-1", schema, "5"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout
    assert said.split() == ["SC2025a", "150.0", "-30.0", "r", "57543.5", "nJy"]
