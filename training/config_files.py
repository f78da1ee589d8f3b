"""Training configs on disk: TOML read strictly and written, single values changed, the configs we ship."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from training.config import TrainingConfig
from training.errors import ConfigError

_ENDING = ".toml"
_KINDS: dict[str, type] = get_type_hints(TrainingConfig)


def read_config(path: Path, changes: Iterable[str] = ()) -> TrainingConfig:
    """A config from a TOML file. changes: `section.field=value`, as in `--set`.

    Raises ConfigError naming the file, the section and the field: one that is unknown, of another type, out
    of range, or in contradiction with another.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the training config {path} cannot be read: {error}") from None
    return parse_config(text, changes, str(path))


def parse_config(text: str, changes: Iterable[str] = (), source: str = "config") -> TrainingConfig:
    """As `read_config`, from TOML text. source: what error messages call it."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not TOML: {error}") from None
    for change in changes:
        _apply(values, change)
    problems = [
        f"there is no section [{name}]{_nearest(name, _KINDS)}" for name in values if name not in _KINDS
    ]
    sections: dict[str, Any] = {}
    for name, kind in _KINDS.items():
        chosen = values.get(name, {})
        if not isinstance(chosen, dict):
            problems.append(f"[{name}] must be a section, not a value")
            continue
        try:
            sections[name] = kind(**chosen)
        except ValidationError as error:
            problems += [_explain(name, problem) for problem in error.errors(include_url=False)]
    if problems:
        raise ConfigError("\n".join(f"{source}: {problem}" for problem in problems))
    try:
        return TrainingConfig(**sections)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def change_config(config: TrainingConfig, changes: Iterable[str]) -> TrainingConfig:
    """The config with `section.field=value` applied. Raises ConfigError like `read_config`."""
    return parse_config(to_toml(config), changes, "config")


def _apply(values: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    section, dot, field = name.strip().partition(".")
    if not (section and dot and field and equals):
        raise ConfigError(f"--set {change!r} is not section.field=value")
    if section not in _KINDS:
        raise ConfigError(f"--set {change!r}: there is no section [{section}]{_nearest(section, _KINDS)}")
    if field not in _field_names(section):
        raise ConfigError(f"--set {change!r}: {_unknown(section, field)}")
    chosen = values.setdefault(section, {})
    if not text.strip():
        chosen.pop(field, None)  # Back to the default.
        return
    try:
        chosen[field] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        chosen[field] = text.strip()  # A bare word or a path.


def _explain(section: str, problem: ErrorDetails) -> str:
    """One problem that pydantic found, as a person would say it."""
    field, *rest = (str(part) for part in problem["loc"])
    if problem["type"] == "unexpected_keyword_argument":
        return _unknown(section, field)
    if problem["type"] == "missing":
        return f"[{section}].{field} is missing"
    place = "".join(f"[{part}]" for part in rest)
    message = problem["msg"].removeprefix("Input ").replace("should", "must")
    return f"[{section}].{field}{place}: {message}, not {problem['input']!r}"


def _unknown(section: str, field: str) -> str:
    return f"there is no field [{section}].{field}{_nearest(field, _field_names(section))}"


def _field_names(section: str) -> list[str]:
    return [field.name for field in fields(_KINDS[section])]


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"


def to_toml(config: TrainingConfig) -> str:
    """Every field with its value, absent ones left out; the same config gives the same bytes."""
    lines = []
    for section in fields(config):
        chosen = getattr(config, section.name)
        assert is_dataclass(chosen)
        lines.append(f"[{section.name}]")
        for field in fields(chosen):
            value = getattr(chosen, field.name)
            if value is not None:
                lines.append(f"{field.name} = {_toml_value(value)}")
        lines.append("")
    return "\n".join(lines)


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        # A JSON string is a TOML string, but for DEL, which TOML wants escaped.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return f"[{', '.join(_toml_value(item) for item in value)}]"
    raise TypeError(f"{type(value).__name__} has no place in a training config")


def shipped_configs() -> Mapping[str, str]:
    """The TOML text of every config that ships with us, by name, such as `msrvtt-9k-vit-b-32`."""
    folder = resources.files("training") / "configs"
    found = {
        entry.name.removesuffix(_ENDING): entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(_ENDING)
    }
    return dict(sorted(found.items()))


def find_config(name: str, changes: Iterable[str] = ()) -> TrainingConfig:
    """A config by the path of a TOML file or the name of a shipped one. Raises ConfigError."""
    if name.endswith(_ENDING) or Path(name).is_file():
        return read_config(Path(name), changes)
    shipped = shipped_configs()
    if name not in shipped:
        raise ConfigError(f"{name!r} is neither a TOML file nor a config we ship{_nearest(name, shipped)}")
    return parse_config(shipped[name], changes, name)
