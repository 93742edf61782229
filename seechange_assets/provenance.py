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
from typing import Any

from seechange_assets.errors import ParameterError
from seechange_assets.parameters import Parameters, unknown_name

ID_LENGTH = 20
SHORT_LENGTH = 10


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
            "parameters": dict(self.parameters),
            "upstreams": sorted(self.upstream_ids),
        }
        canonical = json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return base64.b32encode(hashlib.sha256(canonical.encode()).digest()).decode()[:ID_LENGTH].lower()

    @property
    def short_id(self) -> str:
        """The part that stands in file names."""
        return self.id[:SHORT_LENGTH]


class Recipes(Mapping[str, Provenance]):
    """Every process's parameters and provenance for one loaded configuration.

    Parameters
    ----------
    parameters : mapping of process name to Parameters
    upstreams : mapping of process name to the names of the processes it reads
    """

    def __init__(self, parameters: Mapping[str, Parameters], upstreams: Mapping[str, tuple[str, ...]]) -> None:
        self._parameters = dict(parameters)
        self._upstreams = {name: tuple(upstreams.get(name, ())) for name in parameters}
        self._provenances: dict[str, Provenance] = {}
        for name in parameters:
            self._resolve(name)

    def _resolve(self, name: str) -> Provenance:
        if name not in self._provenances:
            if name not in self._parameters:
                raise ParameterError(unknown_name(name, list(self._parameters), "recipes"))
            parameters = self._parameters[name]
            self._provenances[name] = Provenance(
                process=name,
                algorithm_version=parameters.algorithm_version,
                parameters=parameters.critical_values(),
                upstream_ids=tuple(self._resolve(parent).id for parent in self._upstreams[name]),
            )
        return self._provenances[name]

    def __getitem__(self, name: str) -> Provenance:
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
