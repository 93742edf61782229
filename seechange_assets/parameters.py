"""Parameters of a process: one frozen model each, defaults in code, YAML only overrides.

A field is *critical* when it can change a product; critical values enter the
provenance id. Declare the others (verbosity, paths, worker counts) with
``non_critical(...)``. `seechange_assets.layers` reads the files.
"""

import difflib
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import pydantic

from seechange_assets.errors import ParameterError

Field = pydantic.Field


def non_critical(default: Any, **kwargs: Any) -> Any:
    """A field that cannot change a product: it stays out of the provenance id."""
    return pydantic.Field(default, json_schema_extra={"critical": False}, **kwargs)


class Parameters(pydantic.BaseModel):
    """Base of every process's parameters.

    Class attributes
    ----------------
    process : str
        Name of the asset, and of the section in the YAML files.
    algorithm_version : str
        Raised by hand when the code of the process changes its output.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    process: ClassVar[str] = ""
    algorithm_version: ClassVar[str] = "1"

    def critical_values(self) -> dict[str, Any]:
        """JSON-ready values of the fields that enter the provenance id."""
        values = self.model_dump(mode="json")
        return {name: values[name] for name in sorted(values) if self.is_critical(name)}

    def arguments(self) -> dict[str, Any]:
        """All fields as keyword arguments of the algorithm of the same names."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def arguments_without(self, *names: str) -> dict[str, Any]:
        """As `arguments`, without those that choose inputs and are nothing to the algorithm."""
        return {name: value for name, value in self.arguments().items() if name not in names}

    @classmethod
    def is_critical(cls, name: str) -> bool:
        """Whether a field enters the provenance id."""
        extra = cls.model_fields[name].json_schema_extra
        return not (isinstance(extra, dict) and extra.get("critical") is False)

    @classmethod
    def from_overrides(
        cls,
        overrides: Mapping[str, Any] | None,
        source: str = "configuration",
        origins: Mapping[str, str] | None = None,
    ) -> Self:
        """Build from the overrides of a YAML section.

        Parameters
        ----------
        source : str
            What an error names as the place of the fault.
        origins : mapping, optional
            Parameter -> its place, where that is known better.

        Raises
        ------
        ParameterError
            For an unknown name (with the nearest valid one) or an impossible value or type.
        """
        overrides, origins = dict(overrides or {}), origins or {}
        for name, value in overrides.items():
            cls._check_name(name, value, origins.get(name, source))
        try:
            # As JSON: the strict rules there take a list for a tuple and 5 for 5.0, but neither "5" nor true.
            return cls.model_validate_json(json.dumps(overrides, default=str), strict=True)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]
            path = [str(part) for part in first["loc"]]
            place = origins.get(path[0], source) if path else source
            where, found = ".".join([cls.process, *path]), f"{first['input']!r:.200}"
            raise ParameterError(f"{place}: {where}: {first['msg']} (got {found})") from error

    @classmethod
    def restored(cls, critical: Mapping[str, Any]) -> Self:
        """The parameters of a recipe in the database; defaults where this code has other names or limits."""
        known = {name: value for name, value in critical.items() if name in cls.model_fields}
        try:
            return cls.model_validate_json(json.dumps(known))
        except pydantic.ValidationError:
            return cls()

    @classmethod
    def _check_name(cls, name: str, value: Any, source: str) -> None:
        """The name, and those in a group of parameters, must be fields."""
        if name not in cls.model_fields:
            _refuse(cls.process, name, cls, source)
        group = cls.model_fields[name].annotation
        if isinstance(group, type) and issubclass(group, pydantic.BaseModel) and isinstance(value, Mapping):
            for inner in value:
                if inner not in group.model_fields:
                    _refuse(f"{cls.process}.{name}", inner, group, source)


def _refuse(prefix: str, name: str, model: type[pydantic.BaseModel], source: str) -> None:
    valid = [f"{prefix}.{field}" for field in model.model_fields]
    raise ParameterError(unknown_name(f"{prefix}.{name}", valid, source))


class FieldParameters(Parameters):
    """Parameters with a second branch for the crowded fields of the Galaxy.

    There the values in ``galactic`` take the place of the others. Rule and branches belong to the recipe, so there
    is one provenance id; which branch an image took is recorded in its product (``field_kind``).
    """

    galactic: dict[str, Any] = Field(default_factory=dict, description="Values that differ in galactic fields.")

    @pydantic.model_validator(mode="after")
    def _galactic_values_are_valid(self) -> Self:
        if "galactic" in self.galactic:
            raise ValueError("a branch has no branches")
        self._branch("galactic")
        return self

    @classmethod
    def _check_name(cls, name: str, value: Any, source: str) -> None:
        super()._check_name(name, value, source)
        if name != "galactic" or not isinstance(value, Mapping):
            return
        for inner in value:
            if inner not in cls.model_fields:
                _refuse(f"{cls.process}.galactic", inner, cls, source)
        cls.from_overrides({k: v for k, v in value.items() if k != "galactic"}, f"{source}: in galactic fields")

    def arguments(self, field_kind: str = "extragalactic") -> dict[str, Any]:
        """The fields of a branch as keyword arguments of the algorithm."""
        branch = self._branch(field_kind)
        return {name: getattr(branch, name) for name in type(self).model_fields if name not in self._rule()}

    def _branch(self, field_kind: str) -> Self:
        if field_kind != "galactic" or not self.galactic:
            return self
        return type(self)(**(self.model_dump() | self.galactic | {"galactic": {}}))

    @classmethod
    def _rule(cls) -> set[str]:
        """Fields that choose the branch and are no arguments of the algorithm."""
        return {"galactic"}


def unknown_name(name: str, valid: list[str], source: str) -> str:
    """One line that names the unknown parameter and the nearest valid one."""
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.0)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{source}: unknown parameter {name!r}{hint}"
