"""Dagster's IO manager: every product to the archive and Postgres, hand-over in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg

from io_managers.store import ProductStore
from seechange_assets.errors import SeeChangeError
from seechange_assets.partitions import Partition
from seechange_assets.run_failures import as_failure


class ArchiveIOManager(dg.IOManager):
    """Store outputs; give inputs from memory within a run, else from the archive.

    Within one process the products of the partition in work stay in memory, read-only, until the
    last one is stored or a step of another partition or run begins.
    """

    def __init__(self, store: ProductStore) -> None:
        self._store = store
        self._in_work: tuple[str, Partition] | None = None
        self._memory: dict[str, Any] = {}

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Save a product and attach its key numbers to the materialization."""
        product, partition = context.asset_key.path[-1], Partition.of(context)
        with self._recorded(product, partition, context.step_context):
            numbers = self._store.save(product, partition, obj)
        self._begin(context.run_id, partition)
        if self._is_last(product):
            self._forget()
        else:
            self._memory[product] = obj
        shown = {name: _readable(value) for name, value in numbers.items() if value is not None}
        context.add_output_metadata({**shown, "file": self._store.path(product, partition)})

    def load_input(self, context: dg.InputContext) -> Any:
        """The product of this partition, made a moment ago or read back."""
        product, partition = context.asset_key.path[-1], Partition.of(context)
        self._begin(context.step_context.run_id, partition)
        if product not in self._memory:
            with self._recorded(context.step_context.step.key, partition, context.step_context):
                self._memory[product] = self._store.load(product, partition)
        return self._memory[product]

    @contextmanager
    def _recorded(self, step: str, partition: Partition, context: Any) -> Iterator[None]:
        """Leave a row that says why when a step fails on its way in or out."""
        try:
            yield
        except Exception as error:
            self._store.report(step, partition, outcome="failed", error=error, run_id=context.run_id)
            if isinstance(error, SeeChangeError):
                raise as_failure(error, context.instance, context.run_id) from error
            raise

    def _begin(self, run_id: str, partition: Partition) -> None:
        if self._in_work != (run_id, partition):
            self._forget()
            self._in_work = (run_id, partition)

    def _is_last(self, product: str) -> bool:
        """Whether nothing is made of a product, so that no step of its partition comes after it."""
        recipes = self._store.recipes
        return not any(product in recipes.upstreams(name) for name in recipes)

    def _forget(self) -> None:
        """A warm worker must not carry the products of one CCD through the first steps of the next."""
        self._memory.clear()
        self._in_work = None


def _readable(value: Any) -> Any:
    """Floats with the digits a person reads (the rows keep all of them); small ones keep four."""
    if not isinstance(value, float):
        return value
    return round(value, 5) if abs(value) >= 0.01 else float(f"{value:.4g}")
