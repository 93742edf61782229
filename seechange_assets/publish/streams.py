"""Streams of alerts: who is told what, where, and in which form."""

import string
from collections.abc import Mapping
from typing import Literal

import pydantic

from seechange_assets.alert_wire import WireFormat
from seechange_assets.names import checked_name
from seechange_assets.parameters import Field

_EXAMPLE = {"instrument": "ls4", "night": "20261122", "year": "2026", "month": "11", "day": "22"}


class StreamParameters(pydantic.BaseModel):
    """One stream: its alerts, its topics, its form on the wire."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    topic: str = Field(
        "{instrument}-alerts-{night}", description="Topic, with {instrument}, {night} or {year}, {month}, {day}."
    )
    backfill_topic: str = Field(
        "{instrument}-backfill-{night}", description="Topic of what is processed again or late, never the live one."
    )
    packet_schema: Literal["ls4.v1_0.alert", "ls4.v0_2.alert"] = Field(
        "ls4.v1_0.alert", description="Schema of the packets."
    )
    wire_format: WireFormat = Field(
        "bare",
        description="bare (one Avro datum), confluent (behind Confluent's header) or container (an Avro file each).",
    )
    schema_id: int = Field(
        0, ge=0, lt=2**32, description="Number of the schema in the header of wire format confluent."
    )
    min_score: float | None = Field(
        None, ge=0, le=1, description="Lowest real/bogus score that is told; empty tells all that were kept."
    )
    via: Literal["kafka", "hopskotch"] = Field(
        "kafka", description="Kafka broker of this installation, or SCiMMA's HOPSKOTCH (needs the extra `hop`)."
    )
    enabled: bool = Field(True, description="Whether anything is committed for this stream.")

    @pydantic.field_validator("topic", "backfill_topic")
    @classmethod
    def _topic_is_a_name(cls, value: str) -> str:
        unknown = {name for _, name, _, _ in string.Formatter().parse(value) if name is not None} - set(_EXAMPLE)
        if unknown:
            raise ValueError(f"unknown field {min(unknown)!r}: expected one of {', '.join(_EXAMPLE)}")
        checked_name(value.format(**_EXAMPLE), "topic")
        return value


def checked_streams(streams: Mapping[str, StreamParameters]) -> None:
    """No two streams share a topic, and no backfill goes to a live one.

    Raises
    ------
    ValueError
        Naming the topic and the streams.
    """
    taken: dict[str, str] = {}
    for name, stream in streams.items():
        checked_name(name, "stream")
        if len(name) > 32:
            raise ValueError(f"the name of the stream {name!r} is longer than 32 characters")
        for pattern in (stream.topic, stream.backfill_topic):
            topic = topic_name(pattern, _EXAMPLE["instrument"], _EXAMPLE["night"])
            if topic in taken:
                raise ValueError(f"streams {taken[topic]!r} and {name!r} both write the topic {pattern!r}")
            taken[topic] = name


def topic_name(pattern: str, instrument: str, night: str) -> str:
    """Topic of a night (``YYYYMMDD`` or ``YYYY-MM-DD``)."""
    digits = night.replace("-", "")
    fields = {"instrument": instrument, "night": night, "year": digits[:4], "month": digits[4:6], "day": digits[6:8]}
    return checked_name(pattern.format(**fields), "topic")
