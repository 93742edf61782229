"""How an alert packet travels: bare, behind a Confluent header, or as an Avro container file.

A packet is one Avro datum (*schemaless*). A container file (Avro specification 1.11, "Object Container Files") carries
the writer's schema; its blocks are such data one after the other, so packets go into it as they are.
"""

import hashlib
import io
import struct
from collections.abc import Sequence
from typing import Any, Literal, cast

WireFormat = Literal["bare", "confluent", "container"]
#: First byte of Confluent's wire format; the schema's number in the registry follows, big-endian.
_CONFLUENT_MAGIC = b"\0"


def framed(packet: bytes, wire_format: str, schema_json: str, schema_id: int = 0) -> bytes:
    """A packet as the bytes of a message.

    Parameters
    ----------
    wire_format : ``bare``, ``confluent`` or ``container``.
    schema_json : the complete schema, for a container.
    schema_id : number of the schema in the registry of the consumers, for Confluent's header.
    """
    if wire_format == "confluent":
        return _CONFLUENT_MAGIC + struct.pack(">I", schema_id) + packet
    return container([packet], schema_json) if wire_format == "container" else packet


def unframed(message: bytes, wire_format: str, schema: Any) -> dict[str, Any]:
    """The record in a message, read with the published schema `schema`.

    Raises
    ------
    ValueError
        If the message is not of that format, or no datum of that schema.
    """
    import fastavro

    if wire_format == "container":
        return cast("dict[str, Any]", next(fastavro.reader(io.BytesIO(message), schema)))
    if wire_format == "confluent":
        if message[:1] != _CONFLUENT_MAGIC:
            raise ValueError("a message without Confluent's header")
        message = message[5:]
    return cast("dict[str, Any]", fastavro.schemaless_reader(io.BytesIO(message), schema, None))


def container(packets: Sequence[bytes], schema_json: str) -> bytes:
    """An Avro container file of packets, uncompressed; the same packets give the same bytes."""
    sync = hashlib.md5(b"".join([schema_json.encode(), *packets]), usedforsecurity=False).digest()
    header = {"avro.codec": b"null", "avro.schema": schema_json.encode()}
    parts = [b"Obj\x01", _long(len(header))]
    for key, value in header.items():
        parts += [_long(len(key)), key.encode(), _long(len(value)), value]
    parts += [_long(0), sync]
    for packet in packets:
        parts += [_long(1), _long(len(packet)), packet, sync]
    return b"".join(parts)


def _long(value: int) -> bytes:
    """Avro's variable-length, zig-zag coded integer (not negative here)."""
    value <<= 1
    coded = bytearray()
    while value > 0x7F:
        coded.append(value & 0x7F | 0x80)
        value >>= 7
    coded.append(value)
    return bytes(coded)
