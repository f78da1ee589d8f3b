"""docs/http-api.md and docs/operations.md say what is there: endpoints, fields, errors, settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from service.app import create_app
from service.errors import ERROR_CLASSES
from service.schemas.search import SearchRequest
from service.settings import Settings

DOCS = Path(__file__).resolve().parents[3] / "docs"


def rows(heading: str, page: str = "http-api.md") -> list[list[str]]:
    """Cells of the first table below a heading, without its head."""
    text = (DOCS / page).read_text(encoding="utf-8")
    table = re.search(rf"^#+ {heading}$.*?((?:^\|[^\n]*\n)+)", text, re.MULTILINE | re.DOTALL)
    assert table is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()[2:]]


def test_every_endpoint_is_documented() -> None:
    document = create_app(Settings(index=Path("nowhere"))).openapi()
    there = {
        f"{method.upper()} {re.sub(r'{[a-z]*_id}', '{id}', path)}"
        for path, methods in document["paths"].items()
        for method in methods
    }
    assert {cells[0].strip("`") for cells in rows("HTTP API")} == there


def test_every_error_is_documented() -> None:
    documented = {(int(status), kind.strip("`")) for status, kind, _ in rows("Errors")}
    assert documented == {(error.status, error.kind) for error in ERROR_CLASSES}


@pytest.mark.parametrize("field", SearchRequest.model_fields)
def test_every_field_of_a_search_is_documented_with_its_default(field: str) -> None:
    documented = {cells[0].strip("`"): cells[1].strip("`") for cells in rows("Search")}
    info = SearchRequest.model_fields[field]
    field = info.alias or field
    default = "required" if info.is_required() else str(info.default).lower().replace("none", "null")
    assert documented[field] == default


def as_written(default: Any) -> str:
    """A default as the value of an environment variable."""
    if default in (None, (), ""):
        return "unset"
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else str(default)


def test_every_setting_is_documented_with_its_default() -> None:
    documented = {cells[0].strip("`"): cells[1:] for cells in rows("Settings", "operations.md")}
    assert set(documented) == {f"XCLIP_{name.upper()}" for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        default, meaning = documented[f"XCLIP_{name.upper()}"]
        assert default == as_written(field.default)
        assert meaning == (field.description or "").rstrip(".")
