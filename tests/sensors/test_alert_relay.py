"""The relay sends what is left and takes a broker that is down for no failure."""

import dagster as dg
import pytest

from seechange_assets.errors import ServiceUnavailable
from sensors.alert_relay import MAX_ALERTS, alert_relay


class Stream:
    def __init__(self, answer):
        self.answer = answer

    def relay(self, database, limit):
        assert limit == MAX_ALERTS
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [(0, "empty"), (7, "7 alerts delivered"), (ServiceUnavailable("no broker"), "wait in the outbox: no broker")],
)
def test_a_tick_says_what_happened(answer, said):
    context = dg.build_sensor_context(resources={"database": object(), "stream": Stream(answer)})
    assert said in alert_relay(context).skip_message
