"""The content of a product: its hash, and arrays nobody can change any more."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

# The product made last and its hash: the materialization and its row both need it.
_latest: dict[str, Any] = {"product": None, "hash": ""}


def content_hash(product: Any) -> str:
    """SHA-256 of the arrays and values of a product, whatever its provenance.

    It is the `DataVersion` of the materialization: equal content makes nothing stale.
    """
    if _latest["product"] is not product:
        digest = hashlib.sha256()
        for name, value in leaves(product):
            digest.update(name.encode())
            digest.update(_content(value))
        _latest.update(product=product, hash=digest.hexdigest())
    return str(_latest["hash"])


def freeze(product: Any) -> Any:
    """Make every array of a product read-only, in place, and return the product."""
    for item in dataclasses.fields(product):
        value = getattr(product, item.name)
        if dataclasses.is_dataclass(value):
            freeze(value)
        elif is_table(value):
            for column in value.columns.values():
                column.setflags(write=False)
        elif isinstance(value, np.ndarray):
            value.setflags(write=False)
    return product


def is_table(value: Any) -> bool:
    """Whether a value is an astropy Table (without importing astropy)."""
    return hasattr(value, "colnames")


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every array and plain value inside a product, with its dotted name."""
    if dataclasses.is_dataclass(value):
        for item in dataclasses.fields(value):
            yield from leaves(getattr(value, item.name), f"{name}.{item.name}")
    elif is_table(value):
        for column in value.colnames:
            yield f"{name}.{column}", np.asarray(value[column])
    else:
        yield name, value


def _content(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return json.dumps(value, sort_keys=True, default=str).encode()
    if value.dtype.kind == "U":  # padding depends on the longest string, content does not
        return json.dumps(value.tolist()).encode()
    return np.ascontiguousarray(value).data
