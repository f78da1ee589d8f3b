"""The guide's examples are requests that an application answers, with answers of the shape that it shows."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import openapi_text
from tests.support.servers.service_fakes import Service, add_video, running

DOCS = Path(__file__).resolve().parents[3] / "docs"
ADDRESS = "http://127.0.0.1:8000"
EXAMPLES = re.findall(
    r"^```console\n\$ (curl [^\n]*)\n(.*?)^```", (DOCS / "http-api.md").read_text(), re.MULTILINE | re.DOTALL
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("corpus")
    (root / "beach.mp4").write_bytes(b"a film of a beach")
    (root / "photo.jpg").write_bytes(b"a picture of a beach")
    directory = tmp_path_factory.mktemp("index")
    with running(directory, allowed_roots=(root,), url_ingest=True) as service:
        add_video(service.catalog, "valley", metadata={"year": 2024})
        add_video(service.catalog, "beach", metadata={"year": 2024})
        yield service


def send(service: Service, command: str) -> httpx.Response:
    """What curl would send. Raises on options that no example uses so far."""
    (root,) = service.settings.allowed_roots
    words = shlex.split(command.replace("/corpus/", f"{root}/"))
    assert words[:2] == ["curl", "-s"]
    method, url, headers, body = "GET", "", {}, None
    form: dict[str, str] = {}
    files: dict[str, tuple[str, bytes]] = {}
    parameters: dict[str, str] = {}
    rest = iter(words[2:])
    for word in rest:
        if word == "-X":
            method = next(rest)
        elif word == "-H":
            name, value = next(rest).split(": ", 1)
            headers[name] = value
        elif word == "--json":
            body = next(rest).encode()
            headers["Content-Type"] = "application/json"
            method = "POST" if method == "GET" else method
        elif word == "-F":
            name, value = next(rest).split("=", 1)
            method = "POST"
            if value.startswith("@"):
                files[name] = (value[1:], (root / value[1:]).read_bytes())
            else:
                form[name] = value
        elif word == "--data-urlencode":
            name, value = next(rest).split("=", 1)
            parameters[name] = value
        elif word != "-G":
            assert word.startswith(ADDRESS), word
            url = word.removeprefix(ADDRESS)
    if files:
        return service.client.request(method, url, headers=headers, data=form, files=files)
    if parameters:
        return service.client.request(method, url, headers=headers, params=parameters)
    return service.client.request(method, url, headers=headers, content=body)


def kind(value: Any) -> type:
    """JSON has one kind of number."""
    return float if type(value) is int else type(value)


def assert_same_shape(shown: Any, found: Any, place: str) -> None:
    """Same members, and of the same types; of lists the first elements, where both have one."""
    if shown is None or found is None:
        return  # Null in one of them says nothing about the other's type.
    assert kind(shown) is kind(found), place
    if isinstance(shown, dict) and not place.endswith(".metadata"):
        assert shown.keys() == found.keys(), place
        for name, value in shown.items():
            assert_same_shape(value, found[name], f"{place}.{name}")
    if isinstance(shown, list) and shown and found:
        assert_same_shape(shown[0], found[0], f"{place}[0]")


@pytest.mark.parametrize(("command", "shown"), EXAMPLES, ids=[command[:70] for command, _ in EXAMPLES])
def test_an_example_works_and_shows_what_is_answered(service: Service, command: str, shown: str) -> None:
    response = send(service, command)
    expected = json.loads(shown) if shown.strip() else None
    if expected is not None and "status" in expected:
        assert response.status_code == expected["status"]
        assert response.json() == expected, "errors are shown as they are"
        return
    assert response.is_success, response.text
    if expected is not None:
        assert_same_shape(expected, response.json(), "answer")


def test_the_guide_has_an_example_of_most_endpoints() -> None:
    assert len(EXAMPLES) >= 12


def test_the_openapi_document_on_disk_is_the_application_s() -> None:
    stored = (DOCS / "openapi.json").read_text(encoding="utf-8")
    message = "the API has changed: run  make openapi  and commit it"
    # Not compared as a whole by pytest, whose diff of such texts takes minutes.
    assert (json.loads(stored) == json.loads(openapi_text())) is True, message


def test_every_answer_of_the_api_is_described() -> None:
    document = json.loads(openapi_text())
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where = f"{method.upper()} {path}"
            assert operation["summary"] and operation["description"], where
            responses = operation["responses"]
            assert any(status.startswith("2") for status in responses), where
            for status, response in responses.items():
                assert response["description"], f"{where} {status}"
                if status not in ("204", "304", "307"):
                    assert response.get("content"), f"{where} {status}"
            for parameter in operation.get("parameters", []):
                is_plain = parameter.get("description") or parameter["in"] == "path"
                assert is_plain, f"{where} {parameter['name']}"
