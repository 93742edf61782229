"""Security and brokers of an installation."""

import inspect
import sys

import pytest

from resources.alert_brokers import alert_stream
from resources.alert_stream import AlertStream, Message, listen
from resources.hopskotch import HopskotchStream
from resources.settings import Settings
from seechange_assets.errors import ServiceUnavailable
from tests.publish.nights import night, outbox
from tests.publish.tls import TlsBroker, make_certificate


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


def test_alerts_travel_over_tls_with_certificates_on_both_sides(database, short_home, tmp_path):
    """Two handshakes: nobody else's authority is believed, and a client without a certificate is not let in."""
    server, server_key = make_certificate(tmp_path, "server")
    client, client_key = make_certificate(tmp_path, "client")
    variables = {
        "SEECHANGE_KAFKA_SECURITY_PROTOCOL": "SSL", "SEECHANGE_KAFKA_CA_FILE": str(server),
        "SEECHANGE_KAFKA_CERTIFICATE_FILE": str(client), "SEECHANGE_KAFKA_KEY_FILE": str(client_key),
    }  # fmt: skip
    stranger = {name: variables[name] for name in ("SEECHANGE_KAFKA_SECURITY_PROTOCOL", "SEECHANGE_KAFKA_CA_FILE")}
    night(database, date="20260501")
    with TlsBroker(short_home, server, server_key, client) as broker:
        at = {"SEECHANGE_KAFKA_SERVERS": broker.servers}
        for refused in (variables | {"SEECHANGE_KAFKA_CA_FILE": str(client)}, stranger):
            with pytest.raises(ServiceUnavailable, match="3 alerts stay in the outbox"):
                alert_stream(Settings.from_environment(refused | at)).relay(database)
        assert [row.sent_at for row in outbox(database)] == [None] * 3
        settings = Settings.from_environment(variables | at)
        assert alert_stream(settings).relay(database) == 3
        told = {"from_beginning": True, "timeout_s": 15.0, "maximum": 3, "security": settings.kafka_options}
        heard = {alert["alertId"] for alert in listen(broker.servers, "ls4-alerts-20260501", **told)}
        assert heard == {str(row.alert_id) for row in outbox(database)}
        assert broker.n_handshakes >= 2


def test_hopskotch_asks_its_client_for_what_it_has():
    """Only where the extra is installed: names and arguments are those of hop-client."""
    hop = pytest.importorskip("hop")
    auth = pytest.importorskip("hop.auth")
    assert {"auth"} <= set(inspect.signature(hop.Stream.__init__).parameters)
    assert list(inspect.signature(auth.Auth.__init__).parameters)[1:3] == ["user", "password"]
    writer = pytest.importorskip("hop.io").Producer
    assert {"packed_message", "headers", "delivery_callback"} <= set(inspect.signature(writer.write_raw).parameters)
