"""What every process makes of a fixed input, in a few numbers, with its algorithm version: the table beside this file.

The input is the simulated survey of this folder. An array's fingerprint is its median and, about it, a sum with
random signs, judged relative to the root sum square: a change of the content moves it, the last bits of another
machine do not.

Update the table with ``UPDATE_ALGORITHM_VERSIONS=1 python -m pytest tests/pipeline/test_algorithm_versions.py``.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from seechange_assets.content import leaves

TABLE = Path(__file__).with_name("algorithm_versions.json")
#: Rounding on another machine stays below this, relative to the root sum square of an array.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Entry:
    """One process: its version, its critical parameters as a digest, and what it made."""

    version: str
    parameters: str
    numbers: dict[str, list[float]]


def read_table() -> dict[str, Entry]:
    return {process: Entry(**told) for process, told in json.loads(TABLE.read_text()).items()} if TABLE.exists() else {}


def write_table(entries: dict[str, Entry]) -> None:
    TABLE.write_text(json.dumps({name: asdict(entry) for name, entry in entries.items()}, indent=1) + "\n")


def entry_of(recipe: Any, product: Any) -> Entry:
    told = json.dumps(dict(recipe.parameters), sort_keys=True)
    numbers = {
        name: number for name, value in leaves(_by_place(product)) if (number := fingerprint(name, value)) is not None
    }
    return Entry(recipe.algorithm_version, hashlib.sha256(told.encode()).hexdigest()[:12], numbers)


def _by_place(product: Any) -> Any:
    """A product whose rows follow objects, by their places: ids of objects depend on the last digits of a machine."""
    table = getattr(product, "table", None)
    if table is None or not {"object_id", "x", "y"} <= set(table.colnames):
        return product
    return replace(product, table=table[np.lexsort((table["y"], table["x"]))])


def fingerprint(name: str, value: Any) -> list[float] | None:
    """(how many numbers, median, root sum square and sum with random signs about it); None for what is no number."""
    if isinstance(value, (bool, int, float, np.generic)):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        return None
    flat = np.asarray(value, np.float64).ravel()
    flat = np.where(np.isfinite(flat), flat, -999.0)
    median = float(np.median(flat)) if flat.size else 0.0
    flat = flat - median
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], flat.size)
    return [flat.size, *(float(f"{n:.8g}") for n in (median, np.sqrt(np.sum(flat**2)), np.sum(signs * flat)))]


def differs(a: Entry, b: Entry) -> bool:
    """Whether two outputs differ by more than rounding."""
    if a.numbers.keys() != b.numbers.keys():
        return True
    for name, (size, median, norm, total) in a.numbers.items():
        size_b, median_b, norm_b, total_b = b.numbers[name]
        scale = max(norm, norm_b, abs(median) * size**0.5 * 1e-2)  # the last term: numbers that are all alike
        moved = max(abs(norm - norm_b), abs(total - total_b), abs(median - median_b) * size**0.5)
        if size != size_b or moved > TOLERANCE * scale:
            return True
    return False


def judge(process: str, upstreams: tuple[str, ...], old: dict[str, Entry], new: dict[str, Entry]) -> str:
    """``same``, ``raise`` (the code changed its output and kept its version) or ``update`` (the table is behind)."""
    if process not in old:
        return "update"
    was, now = old[process], new[process]
    same_recipe = (was.version, was.parameters) == (now.version, now.parameters)
    if not differs(was, now):
        return "same" if same_recipe else "update"
    known = [name for name in upstreams if name in new]
    input_changed = any(name not in old or differs(old[name], new[name]) for name in known)
    return "update" if input_changed or not same_recipe else "raise"
