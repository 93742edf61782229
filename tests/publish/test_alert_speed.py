"""Ten thousand alerts within their budget."""

import pytest

from tests.publish.many_alerts import cost_of_alerts


@pytest.mark.slow
def test_ten_thousand_alerts_take_twenty_seconds(short_home, record_property):
    """Core-seconds of everything, one after the other on one core: on two it is no slower, whatever else runs."""
    building, sending = cost_of_alerts(10_000, short_home)
    total = sum(cost.here + cost.services for cost in (building, sending))
    record_property("seconds", f"{building}, {sending}")
    assert total < 20.0, (building, sending)
