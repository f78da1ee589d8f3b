"""The OpenAPI document: FastAPI's, with the schemas of the bodies that the endpoints read themselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from service.schemas import AddVideoRequest, Problem, SearchRequest, SessionRequest

BODY_MODELS = (SearchRequest, AddVideoRequest, SessionRequest, Problem)


def install_openapi(app: FastAPI) -> None:
    """Make `app.openapi` answer the whole document, made once."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            from importlib.metadata import version

            document = get_openapi(
                title=app.title, version=version("xclip-search"), summary=app.summary, routes=app.routes
            )
            _, extra = models_json_schema(
                [(model, "validation") for model in BODY_MODELS], ref_template="#/components/schemas/{model}"
            )
            document.setdefault("components", {}).setdefault("schemas", {}).update(extra["$defs"])
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
