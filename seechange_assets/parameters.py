"""Parameters of a process: one frozen model each, defaults in code, YAML only overrides.

A field is *critical* when it can change a product; critical values enter the
provenance id. Declare the others (verbosity, paths, worker counts) with
``non_critical(...)``.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import pydantic
import yaml

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

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", validate_default=True)

    process: ClassVar[str] = ""
    algorithm_version: ClassVar[str] = "1"

    def critical_values(self) -> dict[str, Any]:
        """JSON-ready values of the fields that enter the provenance id."""
        values = self.model_dump(mode="json")
        return {name: values[name] for name in sorted(values) if self._is_critical(name)}

    def arguments(self) -> dict[str, Any]:
        """All fields as keyword arguments of the algorithm of the same names."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def arguments_without(self, *names: str) -> dict[str, Any]:
        """As `arguments`, without those that choose inputs and are nothing to the algorithm."""
        return {name: value for name, value in self.arguments().items() if name not in names}

    @classmethod
    def _is_critical(cls, name: str) -> bool:
        extra = cls.model_fields[name].json_schema_extra
        return not (isinstance(extra, dict) and extra.get("critical") is False)

    @classmethod
    def from_overrides(cls, overrides: Mapping[str, Any] | None, source: str = "configuration") -> Self:
        """Build from the overrides of a YAML section.

        Raises
        ------
        ParameterError
            For an unknown name (with the nearest valid one) or an impossible value.
        """
        overrides = dict(overrides or {})
        for name in overrides:
            if name not in cls.model_fields:
                raise ParameterError(
                    unknown_name(f"{cls.process}.{name}", [f"{cls.process}.{n}" for n in cls.model_fields], source)
                )
        try:
            return cls(**overrides)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join([cls.process, *(str(part) for part in first["loc"])])
            raise ParameterError(f"{source}: {where}: {first['msg']} (got {first['input']!r})") from error


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


def load_layers(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Merge YAML files, later over earlier, section by section.

    Returns
    -------
    dict
        ``{process: {parameter: value}}``.
    """
    merged: dict[str, dict[str, Any]] = {}
    for path in paths:
        try:
            layer = yaml.safe_load(path.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ParameterError(f"cannot read the configuration {path}: {error}") from error
        if not isinstance(layer, Mapping):
            raise ParameterError(f"{path}: expected sections of parameters, found a {type(layer).__name__}")
        for section, values in layer.items():
            if not isinstance(values, Mapping):
                raise ParameterError(f"{path}: section {section!r} must map parameters to values")
            merged.setdefault(section, {}).update(values)
    return merged
