"""Security and brokers of an installation."""

import sys

import pytest

from resources.alert_brokers import alert_stream
from resources.alert_stream import AlertStream, Message
from resources.hopskotch import HopskotchStream
from resources.settings import Settings
from seechange_assets.errors import ServiceUnavailable


def test_security_of_the_broker_comes_from_the_environment_and_is_never_shown():
    variables = {
        "SEECHANGE_KAFKA_SERVERS": "broker:9093", "SEECHANGE_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "SEECHANGE_KAFKA_SASL_MECHANISM": "SCRAM-SHA-512", "SEECHANGE_KAFKA_USERNAME": "ls4",
        "SEECHANGE_KAFKA_PASSWORD": "hunter2", "SEECHANGE_KAFKA_CA_FILE": "/etc/ssl/ca.pem",
    }  # fmt: skip
    settings = Settings.from_environment(variables)
    stream = alert_stream(settings)
    told = stream.configuration()
    assert {name: told[name] for name in ("security.protocol", "sasl.mechanism", "sasl.username")} == {
        "security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-512", "sasl.username": "ls4",
    }  # fmt: skip
    assert (told["sasl.password"], told["ssl.ca.location"]) == ("hunter2", "/etc/ssl/ca.pem")
    assert "hunter2" not in repr(settings) + repr(stream) + str(settings.model_dump())
    login = {"sasl.mechanism": "PLAIN", "sasl.username": "u", "sasl.password": "hunter2"}
    unreachable = AlertStream("127.0.0.1:9", security={"security.protocol": "SASL_PLAINTEXT", **login})
    with pytest.raises(ServiceUnavailable) as refused:
        unreachable.publish([Message("t", "k", b"", {})])
    assert "hunter2" not in str(refused.value)


def test_hopskotch_needs_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "hop", None)
    with pytest.raises(ServiceUnavailable, match=r"seechange-dagster\[hop\]"):
        HopskotchStream(username="u", password="p").publish([Message("t", "k", b"", {})])
    stream = alert_stream(Settings.from_environment({"SEECHANGE_HOP_USERNAME": "u", "SEECHANGE_HOP_PASSWORD": "p"}))
    assert set(stream._other_brokers) == {"hopskotch"}
