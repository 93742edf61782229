"""Layers of parameters: YAML files over the defaults in the code, later over earlier.

The usual order is default, field profile, site, experiment: ``config/default.yaml`` first, then the files of
``SEECHANGE_CONFIG`` as they are listed. A layer sets whole parameters: a list or mapping takes the place of the
one before it. Every value remembers the file and line it comes from.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from seechange_assets.errors import ParameterError
from seechange_assets.parameters import Parameters, unknown_name

#: Where a value comes from that no file sets.
IN_CODE = "default"


@dataclass(frozen=True, slots=True)
class Setting:
    """A value that a file gives a parameter, and where: ``file:line``."""

    value: Any
    origin: str


#: ``{process: {parameter: setting}}``.
Layers = dict[str, dict[str, Setting]]


@dataclass(frozen=True, slots=True)
class EffectiveValue:
    """One parameter as it is in force."""

    process: str
    parameter: str
    value: Any
    default: Any
    origin: str
    is_critical: bool
    description: str


def load_layers(paths: Sequence[Path]) -> Layers:
    """Merge YAML files, later over earlier, parameter by parameter.

    Raises
    ------
    ParameterError
        For a file that cannot be read, is no mapping of sections to parameters, or names one twice.
    """
    merged: Layers = {}
    for path in paths:
        for section, values in _read(path).items():
            merged.setdefault(section, {}).update(values)
    return merged


def check_sections(layers: Layers, models: Mapping[str, type[Parameters]]) -> None:
    """Refuse a section of no process.

    Raises
    ------
    ParameterError
        With the nearest valid name.
    """
    for section, values in layers.items():
        if section not in models:
            origin = next((setting.origin for setting in values.values()), "configuration")
            raise ParameterError(unknown_name(section, sorted(models), origin))


def parameters_of(model: type[Parameters], settings: Mapping[str, Setting] | None) -> Parameters:
    """The parameters of a process: its defaults and what the layers set.

    Raises
    ------
    ParameterError
        For an unknown name or an impossible value, with the file and line.
    """
    given = settings or {}
    origins = {name: setting.origin for name, setting in given.items()}
    return model.from_overrides({name: setting.value for name, setting in given.items()}, origins=origins)


def effective_values(parameters: Parameters, settings: Mapping[str, Setting] | None) -> Iterator[EffectiveValue]:
    """Every parameter of a process with its value, default and origin."""
    values, defaults = parameters.model_dump(mode="json"), type(parameters)().model_dump(mode="json")
    for name, field in type(parameters).model_fields.items():
        setting = (settings or {}).get(name)
        yield EffectiveValue(
            process=parameters.process,
            parameter=name,
            value=values[name],
            default=defaults[name],
            origin=setting.origin if setting else IN_CODE,
            is_critical=parameters.is_critical(name),
            description=field.description or "",
        )


def _read(path: Path) -> Layers:
    try:
        root = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParameterError(f"cannot read the configuration {path}: {error}") from error
    if root is None:
        return {}
    return {
        section: {
            name: Setting(value, f"{path}:{line}")
            for name, value, line in _items(node, f"{path}: section {section!r} must map parameters to values")
        }
        for section, node, _ in _items(root, f"{path}: expected sections of parameters", deep=False)
    }


def _items(node: yaml.Node, complaint: str, *, deep: bool = True) -> Iterator[tuple[str, Any, int]]:
    """(key, value or node, line) of a mapping, merge keys (``<<``) resolved; no key twice.

    A value is built by the rules of YAML's safe loader.
    """
    if node.tag == "tag:yaml.org,2002:null":
        return
    if not isinstance(node, yaml.MappingNode):
        found = "a list" if isinstance(node, yaml.SequenceNode) else f"{node.value!r:.80}"
        raise ParameterError(f"{complaint}, found {found}")
    written = [key.value for key, _ in node.value]
    twice = next((key for key in written if written.count(key) > 1), None)
    if twice is not None:
        raise ParameterError(f"{complaint}: {twice!r} stands there twice")
    loader = yaml.SafeLoader("")
    loader.flatten_mapping(node)
    try:
        for key, value in node.value:
            built = loader.construct_object(value, deep=True) if deep else value
            yield str(key.value), built, key.start_mark.line + 1
    except yaml.YAMLError as error:
        raise ParameterError(f"{complaint}: {error}") from error
