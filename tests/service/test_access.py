"""Keys and sessions: who gets in, who does not, and that every endpoint says what it needs."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.routing import Route
from typer.testing import CliRunner

from service.app import ROUTERS, create_app
from service.auth import access
from service.auth.access import FailedAttempts, KeyRing, declared_access, network_of
from service.auth.keys import KeysFileError, add_key, read_keys, remove_key
from service.errors import ServiceError, TooManyRequestsError, UnauthorizedError
from service.settings import Settings
from tests.service.routes.test_errors import check_problem
from tests.support.servers.service_fakes import Service, add_video, running
from xclip_search.serve import app as keys_app

READS_BY_POST = {"/search", "/search/media", "/videos/{video_id}/texts"}
OPEN_PATHS = {"/", "/docs", "/page/{name}", "/healthz", "/readyz", "/session"}
SAFE_METHODS = {"GET", "HEAD"}


@pytest.fixture(autouse=True)
def poll_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "POLL_SECONDS", 0.0)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[Service, dict[str, str]]]:
    """A service with a key of each scope, and the keys."""
    path = tmp_path / "keys.json"
    keys = {"read": add_key(path, "reader", "read"), "write": add_key(path, "writer", "write")}
    with running(tmp_path / "index", keys_file=path) as service:
        add_video(service.catalog, "known")
        yield service, keys


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def all_routes() -> list[APIRoute]:
    return [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]


@pytest.mark.parametrize("route", all_routes(), ids=lambda route: f"{min(route.methods)} {route.path}")
def test_every_route_declares_what_it_needs(route: APIRoute) -> None:
    declared = declared_access(route)
    assert declared, "declare OPEN, READ or WRITE"
    if route.path in OPEN_PATHS:
        assert declared == [None]
    elif route.methods <= SAFE_METHODS or route.path in READS_BY_POST:
        assert set(declared) == {"read"}
    else:
        assert "write" in declared and None not in declared


def test_the_application_has_no_routes_besides_those_of_its_routers() -> None:
    app = create_app(Settings(index=Path("nowhere")))
    assert [route.path for route in app.routes if isinstance(route, Route)] == ["/openapi.json"]


def test_without_a_key_only_the_open_endpoints_answer(guarded: tuple[Service, dict[str, str]]) -> None:
    service, _ = guarded
    for path in ("/", "/docs", "/openapi.json", "/page/style.css", "/healthz", "/readyz", "/session"):
        assert service.client.get(path).status_code == 200, path
    for route in all_routes():
        if route.path in OPEN_PATHS:
            continue
        for method in route.methods:
            response = service.client.request(method, route.path.replace("{video_id}", "known"))
            assert response.status_code == 401, (method, route.path)
            assert response.headers["www-authenticate"].startswith("Bearer")
            if method != "HEAD":
                check_problem(response, 401)


def test_a_key_that_reads_may_not_change_and_one_that_writes_may_do_both(
    guarded: tuple[Service, dict[str, str]],
) -> None:
    service, keys = guarded
    for scope in ("read", "write"):
        headers = bearer(keys[scope])
        assert service.client.get("/videos/known", headers=headers).status_code == 200
        assert service.client.post("/search", json={"query": "x"}, headers=headers).status_code == 200
    check_problem(service.client.delete("/videos/known", headers=bearer(keys["read"])), 403)
    assert service.client.delete("/videos/known", headers=bearer(keys["write"])).status_code == 204


@pytest.mark.parametrize("value", ["Bearer", "Bearer ", "Bearer x", "bearer \xe9"])
def test_what_is_no_key_is_refused_even_with_a_valid_session(
    guarded: tuple[Service, dict[str, str]], value: str
) -> None:
    service, keys = guarded
    assert service.client.post("/session", json={"key": keys["write"]}).status_code == 204
    headers = {"Authorization": value.encode("latin-1")}
    check_problem(service.client.get("/videos", headers=headers), 401)


@pytest.mark.parametrize("value", ["", "Basic eDp5", "Negotiate YII=", 'Digest username="x"'])
def test_the_authorization_of_a_proxy_hides_neither_a_session_nor_a_key(
    guarded: tuple[Service, dict[str, str]], value: str
) -> None:
    service, keys = guarded
    headers = {"Authorization": value}
    refused = 403 if value else 401  # At a 401 a browser would forget what it has for the proxy.
    check_problem(service.client.get("/videos", headers=headers), refused)
    check_problem(service.client.post("/session", json={"key": "x"}, headers=headers), refused)
    with_key = {**headers, "X-API-Key": keys["read"]}
    assert service.client.get("/videos", headers=with_key).status_code == 200
    check_problem(service.client.delete("/videos/known", headers=with_key), 403)
    assert service.client.post("/session", json={"key": keys["write"]}, headers=headers).status_code == 204
    assert service.client.get("/videos", headers=headers).status_code == 200
    check_problem(service.client.get("/videos", headers={**headers, "X-API-Key": "wrong"}), refused)


def test_a_browser_logs_in_and_out(guarded: tuple[Service, dict[str, str]]) -> None:
    service, keys = guarded
    assert service.client.get("/session").json() == {"scopes": [], "keys_required": True}
    check_problem(service.client.post("/session", json={"key": "x"}), 401)
    response = service.client.post("/session", json={"key": keys["read"]})
    assert response.status_code == 204
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Secure" not in cookie
    assert keys["read"] not in cookie
    assert service.client.get("/session").json() == {"scopes": ["read"], "keys_required": True}
    assert service.client.get("/videos").status_code == 200
    check_problem(service.client.delete("/videos/known"), 403)
    check_problem(service.client.post("/search", json={}, headers={"Sec-Fetch-Site": "same-site"}), 403)
    assert service.client.delete("/session").status_code == 204
    check_problem(service.client.get("/videos"), 401)


def test_under_https_the_cookie_is_for_https_alone(guarded: tuple[Service, dict[str, str]]) -> None:
    service, keys = guarded
    response = service.client.post("https://testserver/session", json={"key": keys["read"]})
    assert "Secure" in response.headers["set-cookie"]


def test_a_session_ends_with_its_time_with_its_key_and_with_any_change_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.json"
    add_key(path, "me", "write")
    ring = KeyRing(path)
    key = ring.named("me")
    assert key is not None
    value = access.make_session(key, 60)
    assert access.find_session(value, ring) == key
    for position in range(len(value)):
        changed = value[:position] + ("0" if value[position] != "0" else "1") + value[position + 1 :]
        assert access.find_session(changed, ring) is None, position
    for wrong in ("", "::", "me:9:", "me:9999999999999999:x", "me:²:x", "me:1:é"):
        assert access.find_session(wrong, ring) is None
    assert access.find_session(access.make_session(key, -1), ring) is None
    remove_key(path, "me")
    assert access.find_session(value, ring) is None
    add_key(path, "me", "write")
    assert access.find_session(value, ring) is None


def test_a_key_is_known_by_its_hash_and_works_from_the_next_poll_until_it_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    ring = KeyRing(path)
    assert not ring.required and ring.find("x") is None
    secret = add_key(path, "me", "read")
    assert len(secret) >= 43 and secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ring.required
    found = ring.find(secret)
    assert found is not None and (found.name, found.scope) == ("me", "read")
    assert ring.find(secret[:-1]) is None and ring.find(secret + "x") is None
    remove_key(path, "me")
    assert ring.find(secret) is None


def test_the_last_key_that_goes_opens_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    add_key(path, "me", "read")
    ring = KeyRing(path)
    assert ring.required
    remove_key(path, "me")
    assert ring.required
    path.unlink()
    assert ring.required


def test_a_broken_file_of_keys_leaves_the_keys_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = add_key(path, "me", "read")
    ring = KeyRing(path)
    assert ring.find(secret)
    path.write_text("{")
    assert ring.required and ring.find(secret)
    fresh = KeyRing(path)
    assert fresh.required and fresh.find(secret) is None


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"version": 2}', '{"version": 1, "keys": [{"name": "a b"}]}', '{"keys": [], "more": 1}'],
)
def test_what_is_no_file_of_keys_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.touch(mode=0o600)
    path.write_text(text)
    with pytest.raises(KeysFileError):
        read_keys(path)


def test_a_file_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    add_key(path, "me", "read")
    path.chmod(0o620)
    with pytest.raises(KeysFileError, match="chmod 600"):
        read_keys(path)


def test_two_keys_of_one_name_in_a_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    add_key(path, "me", "read")
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "keys": document["keys"] * 2}))
    with pytest.raises(KeysFileError, match="two keys"):
        read_keys(path)


def test_wrong_keys_are_limited_by_address_and_a_right_one_always_gets_in(
    guarded: tuple[Service, dict[str, str]],
) -> None:
    service, keys = guarded
    statuses = [
        service.client.get("/videos", headers=bearer("wrong")).status_code for _ in range(access.BURST + 2)
    ]
    assert statuses == [401] * access.BURST + [429] * 2
    response = service.client.get("/videos", headers=bearer("wrong"))
    check_problem(response, 429)
    assert 0 < int(response.headers["retry-after"]) <= access.SECONDS_PER_ATTEMPT
    assert service.client.get("/videos", headers=bearer(keys["read"])).status_code == 200


def test_clients_have_attempts_of_their_own_and_not_all_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(access, "MAX_ADDRESSES", 3)
    attempts = FailedAttempts()
    for _ in range(access.BURST):
        assert attempts.count("10.0.0.1") == 0
    assert attempts.count("10.0.0.1") > 0 and attempts.count("10.0.0.2") == 0
    for number in range(3, 6):
        attempts.count(f"10.0.0.{number}")
    assert attempts.count("10.0.0.1") == 0


def test_no_header_lets_one_peer_try_more_keys_than_a_proxy_of_some_clients_may(tmp_path: Path) -> None:
    add_key(tmp_path / "keys.json", "me", "read")
    control = access.AccessControl(KeyRing(tmp_path / "keys.json"))

    def try_key(claimed: str, peer: str) -> type[Exception]:
        scope = {"type": "http", "headers": [], "client": (claimed, 1), "state": {"peer": peer}}
        with pytest.raises(ServiceError) as raised:
            control.check_secret(Request(scope), "wrong")
        return raised.type

    number = access.BURST * access.CLIENTS_OF_PEER
    for claimed in range(number):
        assert try_key(f"10.0.{claimed // 250}.{claimed % 250}", "127.0.0.1") is UnauthorizedError
    assert try_key("10.9.9.9", "127.0.0.1") is TooManyRequestsError
    assert try_key("10.9.9.9", "192.0.2.1") is UnauthorizedError


def test_an_ipv6_client_is_known_by_its_network() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:10.0.0.1") == network_of("10.0.0.1")
    assert network_of("testclient") == "testclient"


def test_every_guarded_operation_documents_its_security(guarded: tuple[Service, dict[str, str]]) -> None:
    service, _ = guarded
    document = service.client.get("/openapi.json").json()
    assert set(document["components"]["securitySchemes"]) == {"key", "key_header", "session"}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            is_open = path in OPEN_PATHS
            assert ("security" in operation) != is_open, (method, path)
            if not is_open:
                assert operation["security"] == [{"key": []}, {"key_header": []}, {"session": []}]
                assert {"401", "429"} <= set(operation["responses"])


def test_a_key_for_an_index_that_is_not_there_is_made_and_said_to_be_early(tmp_path: Path) -> None:
    mistyped = tmp_path / "indexx"
    result = CliRunner().invoke(keys_app, ["keys", "add", "-n", "me", "--scope", "read", "-i", str(mistyped)])
    assert result.exit_code == 0 and result.stdout.startswith("xcs_")
    assert f"note: there is no index in {mistyped} yet" in result.stderr


def test_a_keys_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    arguments = ["keys", "add", "-n", "me", "--scope", "read", "-i", str(tmp_path / "file" / "index")]
    result = CliRunner().invoke(keys_app, arguments)
    assert result.exit_code == 1
    assert result.stderr == f"error: {tmp_path / 'file' / 'index'}: Not a directory\n"


def test_keys_are_made_listed_and_removed_from_the_command_line(tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(keys_app, ["keys", *arguments, "--index", str(tmp_path)])
        return result.exit_code, result.stdout, result.stderr

    status, secret, _ = run("add", "--name", "me", "--scope", "write")
    assert status == 0 and KeyRing(tmp_path / "keys.json").find(secret.strip()) is not None
    status, listed, _ = run("list")
    assert status == 0 and listed.startswith("me  write  ") and secret.strip() not in listed
    assert run("add", "--name", "me", "--scope", "read")[0] == 2
    assert run("add", "--name", "a b", "--scope", "read")[0] == 2
    assert run("add", "--name", "b", "--scope", "all")[0] == 2
    assert run("remove", "--name", "you")[0] == 2
    assert run("remove", "--name", "me")[0] == 0
    assert "no keys" in run("list")[2]
