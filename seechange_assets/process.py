"""A plain function from products to a product, declared as a process of the pipeline; nothing of Dagster is needed.

So the recipes in force are known to commands that compare rows and recipes before Dagster could be imported.
`seechange_assets.data_product` makes the asset of it.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seechange_assets.assess.checks import ProductCheck
from seechange_assets.parameters import Parameters
from seechange_assets.ports import is_resource

#: Arguments that are no products: handed over by name.
GIVEN = ("parameters", "partition", "is_backfill", "recipes", "store")
#: Process name -> model of its parameters, filled as the phases are imported.
PARAMETER_MODELS: dict[str, type[Parameters]] = {}


@dataclass(frozen=True)
class DataProduct:
    """One process, and the asset that it makes.

    Attributes
    ----------
    function : callable or None
        Products, ``parameters``, ``partition``, ``is_backfill`` and resources in, product out. None where no run
        makes the asset.
    deps : sequence of str
        Assets the function finds by itself (through the store), not by argument.
    checks : sequence of ProductCheck
        Rules on the product, run in the same step; a failed blocking rule stops what follows.
    may_wait : bool
        An `InputNotReady` leaves the partition waiting instead of failed: nothing is materialized, nothing downstream
        runs, and a row says what is waited for.
    """

    name: str
    description: str
    function: Callable[..., Any] | None = None
    deps: Sequence[str] = ()
    checks: Sequence[ProductCheck] = ()
    may_wait: bool = False

    @property
    def wanted(self) -> Mapping[str, inspect.Parameter]:
        """The function's arguments."""
        return inspect.signature(self.function).parameters if self.function else {}

    @property
    def upstreams(self) -> tuple[str, ...]:
        """Names of the assets it is made of."""
        inputs = [p.name for p in self.wanted.values() if p.name not in GIVEN and not is_resource(p.annotation)]
        return tuple(sorted({*inputs, *map(str, self.deps)}))

    def asset(self) -> Any:
        """The asset as Dagster knows it, without code version, partitions and group."""
        from seechange_assets.data_product import asset_of

        return asset_of(self)


def data_product(
    parameters: type[Parameters],
    *,
    deps: Sequence[str] = (),
    checks: Sequence[ProductCheck] = (),
    may_wait: bool = False,
) -> Callable[[Callable[..., Any]], DataProduct]:
    """Declare a function as the process of the same name.

    Parameters
    ----------
    parameters : the model of the process; its ``process`` equals the function's name.
    deps, checks, may_wait : see `DataProduct`.
    """

    def decorate(function: Callable[..., Any]) -> DataProduct:
        PARAMETER_MODELS[parameters.process] = parameters
        return DataProduct(function.__name__, inspect.getdoc(function) or "", function, deps, checks, may_wait)

    return decorate
