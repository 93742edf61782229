"""One identity: the provenance id of a process is the code version of its asset.

id = base32(sha256(canonical JSON of {process, algorithm version, critical
parameters, upstream provenance ids}))[:20]. It is known when the definitions
load, so Dagster, the database rows and the file names all carry the same id.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from seechange_assets.errors import ParameterError
from seechange_assets.parameters import Parameters, unknown_name

ID_LENGTH = 20
SHORT_LENGTH = 10
#: The process whose recipe a reference set pins.
REFERENCE = "reference"


@dataclass(frozen=True, slots=True)
class Provenance:
    """The recipe of one process: what made a product, and from which recipes it was fed."""

    process: str
    algorithm_version: str
    parameters: Mapping[str, Any]
    upstream_ids: tuple[str, ...]

    @property
    def id(self) -> str:
        """Twenty base32 characters, equal exactly when the recipes are equal."""
        recipe = {
            "process": self.process,
            "algorithm_version": self.algorithm_version,
            "parameters": canonical(dict(self.parameters)),
            "upstreams": sorted(set(self.upstream_ids)),
        }
        told = json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return base64.b32encode(hashlib.sha256(told.encode()).digest()).decode()[:ID_LENGTH].lower()

    @property
    def short_id(self) -> str:
        """The part that stands in file names."""
        return self.id[:SHORT_LENGTH]


@dataclass(frozen=True, slots=True)
class StoredProvenance:
    """A recipe as the database tells it, of this or an earlier configuration."""

    id: str
    process: str
    algorithm_version: str
    parameters: Mapping[str, Any]
    upstream_ids: tuple[str, ...]

    @property
    def short_id(self) -> str:
        """The part that stands in file names."""
        return self.id[:SHORT_LENGTH]


def canonical(value: Any) -> Any:
    """The value with one way to write each number: 5.0 is 5 and -0.0 is 0, as they compare equal."""
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


class Recipes(Mapping[str, Provenance | StoredProvenance]):
    """Every process's parameters and provenance for one loaded configuration.

    Parameters
    ----------
    parameters : mapping of process name to Parameters
    upstreams : mapping of process name to the names of the processes it reads
    reference : StoredProvenance, optional
        The recipe that the reference set in use was made by. It stands in for that of ``reference``, so what is
        changed here makes no reference stale. See `pinned`.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameters],
        upstreams: Mapping[str, tuple[str, ...]],
        reference: StoredProvenance | None = None,
    ) -> None:
        self._parameters = dict(parameters)
        self._upstreams = {name: tuple(upstreams.get(name, ())) for name in parameters}
        self._reference_set = reference
        self._provenances: dict[str, Provenance | StoredProvenance] = {}
        self._set_recipes: Mapping[str, StoredProvenance] | None = None
        for name in parameters:
            self._resolve(name)

    def _resolve(self, name: str) -> Provenance | StoredProvenance:
        if name not in self._provenances:
            if name not in self._parameters:
                raise ParameterError(unknown_name(name, list(self._parameters), "recipes"))
            parameters = self._parameters[name]
            made = Provenance(
                process=name,
                algorithm_version=parameters.algorithm_version,
                parameters=parameters.critical_values(),
                upstream_ids=tuple(self._resolve(parent).id for parent in self._upstreams[name]),
            )
            pinned = self._reference_set if name == REFERENCE else None
            self._provenances[name] = pinned or made
        return self._provenances[name]

    def __getitem__(self, name: str) -> Provenance | StoredProvenance:
        return self._provenances[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._provenances)

    def __len__(self) -> int:
        return len(self._provenances)

    def parameters(self, process: str) -> Any:
        """The parameter model of a process."""
        return self._parameters[process]

    def upstreams(self, process: str) -> tuple[str, ...]:
        """Names of the processes that feed `process` directly."""
        return self._upstreams[process]

    def descendants(self, process: str) -> tuple[str, ...]:
        """Every process that is made, directly or not, from `process`."""
        found, growing = {process}, True
        while growing:
            more = {name for name in self if name not in found and found & set(self._upstreams[name])}
            found, growing = found | more, bool(more)
        return tuple(name for name in self if name in found - {process})

    def pinned(self, set_recipe: Mapping[str, StoredProvenance]) -> "Recipes":
        """These recipes with the references of a set that exists.

        Parameters
        ----------
        set_recipe : the recipe of ``reference`` in that set and of every process it was fed by.
        """
        if set_recipe[REFERENCE].id == self[REFERENCE].id:
            return self
        pinned = Recipes(self._parameters, self._upstreams, set_recipe[REFERENCE])
        pinned._set_recipes = set_recipe
        return pinned

    @cached_property
    def references(self) -> "Recipes | None":
        """The recipes by which references and their images are made; None if this code cannot make them any more."""
        if self._set_recipes is None:
            return self
        parameters = dict(self._parameters)
        for name in self._set_recipes.keys() & parameters.keys():
            parameters[name] = parameters[name].restored(self._set_recipes[name].parameters)
        again = Recipes(parameters, self._upstreams)
        return again if again[REFERENCE].id == self._set_recipes[REFERENCE].id else None
