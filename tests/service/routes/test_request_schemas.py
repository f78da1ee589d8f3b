"""What the OpenAPI document allows is accepted, and what it forbids is refused: by the rules themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema_rs import Draft202012Validator  # With schemathesis; reads patterns as ECMA 262 does.
from pydantic import TypeAdapter, ValidationError

from indexer.errors import InvalidQueryError
from indexer.store.filters import MAX_VALUES, parse_filter
from service.app import create_app
from service.schemas.fields import QueryText, Title, VideoId
from service.schemas.search import SearchRequest
from service.settings import Settings

COMPONENTS: dict[str, Any] = create_app(Settings(index=Path("nowhere"))).openapi()["components"]

SCALARS = [1, -2.5, "text", True, None, "2026-01-31", "2026-01-31T12:00:00Z", [], {}, ["a"]]
CONDITIONS = [
    *SCALARS,
    *({operator: value} for operator in ("eq", "gt", "lte", "exists", "in", "like") for value in SCALARS),
    *({"in": value} for value in ([1], ["a", "b"], [None], [True, 1, "a"], [[1]], [1] * MAX_VALUES)),
    {"in": [1] * (MAX_VALUES + 1)},
    {"gt": 1, "lte": 2},
    {"gt": "a", "lt": "b"},
    {"gt": 1, "lt": "b"},
    {"eq": 1, "gt": 0},
    {"eq": "x" * 1000},
    {"eq": "x" * 1001},
]
FIELDS = ["id", "title", "duration_seconds", "added_at", "content_sha256", "metadata.a", "metadata.a.b c.é"]


def validator(schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": COMPONENTS}, validate_formats=True)


FILTER = validator({"$ref": "#/components/schemas/Filter"})


def is_filter(value: object) -> bool:
    try:
        parse_filter(value)
    except InvalidQueryError:
        return False
    return True


@pytest.mark.parametrize("field", FIELDS)
def test_the_schema_of_a_filter_allows_the_conditions_that_are_accepted(field: str) -> None:
    for condition in CONDITIONS:
        assert FILTER.is_valid({field: condition}) == is_filter({field: condition}), condition


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        {"and": []},
        {"and": [{"id": "a"}, {"or": [{"not": {"id": "a"}}]}]},
        {"or": {"id": "a"}},
        {"not": [{"id": "a"}]},
        {"not": {}},
        {"metadata": 1},
        {"metadata.": 1},
        {"metadata.a.": 1},
        {"metadata..a": 1},
        {'metadata.a"': 1},
        {"metadata.a\\": 1},
        {"metadata.a\n": 1},
        {"colour": 1},
        {"id": "a", "title": None, "metadata.x": 1},
    ],
)
def test_the_schema_of_a_filter_allows_the_forms_that_are_accepted(value: object) -> None:
    assert FILTER.is_valid(value) == is_filter(value)


TEXTS = st.text(st.sampled_from(list(" \t\n\x00\x1c\x85\xa0\u2028./\\?#%aé\U0001f3ac\x7f\"'")), max_size=6)


def accepts(rule: Any, text: str) -> bool:
    try:
        TypeAdapter(rule).validate_python(text)
    except ValidationError:
        return False
    return True


@settings(deadline=None)
@given(TEXTS)
@example("x" * 200).via("the longest id")
@example("x" * 201)
@example("x" * 500).via("the longest title")
@example("x" * 501)
@example("x" * 2000).via("the longest query")
@example("x" * 2001)
@example("x\n")
def test_the_schemas_of_texts_allow_the_texts_that_are_accepted(text: str) -> None:
    for rule in (QueryText, Title, VideoId):
        schema = TypeAdapter(rule).json_schema()
        assert validator(schema).is_valid(text) == accepts(rule, text), (rule, text)


ABSENT = object()


def test_the_schema_of_a_search_allows_the_fields_together_that_are_accepted() -> None:
    schema = validator({"$ref": "#/components/schemas/SearchRequest"})
    for query in (ABSENT, None, "a"):
        for queries in (ABSENT, None, ["a"], []):
            for offset in (ABSENT, 0, 1, 1.0, 1.5):
                fields = {"query": query, "queries": queries, "offset": offset}
                body = {name: value for name, value in fields.items() if value is not ABSENT}
                try:
                    SearchRequest.model_validate(body)
                except ValidationError:
                    assert not schema.is_valid(body), body
                else:
                    assert schema.is_valid(body), body
