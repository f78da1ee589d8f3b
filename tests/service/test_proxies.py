"""Behind a proxy: origins, prefixes and other origins' pages, by requests as nginx, Apache, Caddy and Traefik
make them. The proxies themselves are in tests/service/proxies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from service.app import ROUTERS
from service.auth.access import COOKIE
from service.auth.keys import add_key
from service.http.middleware import split_port
from service.settings import OWN_PATHS, Settings, parse_prefix
from tests.service.routes.test_errors import check_problem
from tests.support.servers.service_fakes import Service, add_video, running

PROXY = "testclient"
"""What Starlette's test client calls itself: trusted by name where a test wants it to be a proxy."""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A server on port 8000 that trusts no proxy."""
    with running(tmp_path / "index") as service:
        service.client.base_url = service.client.base_url.copy_with(host="127.0.0.1", port=8000)
        add_video(service.catalog, "known")
        yield service


@pytest.fixture
def behind_proxy(tmp_path: Path) -> Iterator[Service]:
    """The same behind a proxy that is trusted."""
    with running(tmp_path / "behind", trusted_proxies=PROXY) as service:
        service.client.base_url = service.client.base_url.copy_with(host="127.0.0.1", port=8000)
        add_video(service.catalog, "known")
        yield service


def may_change(service: Service, **headers: str) -> bool:
    response = service.client.post(
        "/search",
        json={"query": "x"},
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )
    if response.status_code == 403:
        check_problem(response, 403)
        return False
    assert response.status_code == 200
    return True


SAME = [
    # Origin, Host
    ("http://127.0.0.1:8000", "127.0.0.1:8000"),
    ("https://search.test", "search.test:443"),
    ("http://search.test", "search.test:80"),
    ("http://search.test:80", "search.test"),
    ("https://search.test", "search.test"),
    ("https://search.test", "search.test:80"),  # $host:$server_port behind a balancer that ends TLS
    ("https://Search.Test", "search.test"),
    ("http://[::1]:8000", "[::1]:8000"),
    ("http://search.test:8080", "search.test"),  # nginx's Host $host, at a port that is not 80
    ("https://search.test:8443", "search.test"),
]
OTHER = [
    ("http://evil.test", "search.test"),
    ("http://search.test:8080", "search.test:9090"),
    ("http://search.test.evil.test", "search.test"),
    ("http://search.test:8080", "search.test:80"),
    ("null", "search.test"),
    ("null", ""),
    ("http://", ""),
    ("https://search.test@evil.test", "search.test"),
]


@pytest.fixture
def any_name(tmp_path: Path) -> Iterator[Service]:
    with running(tmp_path / "index", allowed_hosts=("search.test",)) as service:
        service.client.base_url = service.client.base_url.copy_with(port=8000)
        yield service


@pytest.mark.parametrize(("origin", "host"), SAME)
def test_a_page_of_ours_may_change_whatever_a_proxy_made_of_the_port(
    any_name: Service, origin: str, host: str
) -> None:
    assert may_change(any_name, Origin=origin, Host=host)


@pytest.mark.parametrize(("origin", "host"), [(origin, host) for origin, host in OTHER if host])
def test_a_page_of_others_may_not(any_name: Service, origin: str, host: str) -> None:
    assert not may_change(any_name, Origin=origin, Host=host)


def test_what_the_browser_knows_goes_before_what_the_names_say(service: Service) -> None:
    own = {"Origin": "http://127.0.0.1:8000"}
    assert may_change(service, Sec_Fetch_Site="same-origin", Origin="http://elsewhere.test:1")
    assert not may_change(service, Sec_Fetch_Site="cross-site", **own)
    assert not may_change(service, Sec_Fetch_Site="same-site", **own)


def test_a_host_without_a_port_at_port_80_itself_lost_none(tmp_path: Path) -> None:
    with running(tmp_path / "index") as service:
        service.client.base_url = service.client.base_url.copy_with(host="127.0.0.1", port=80)
        assert may_change(service, Origin="http://localhost", Host="localhost")
        assert not may_change(service, Origin="http://localhost:3000", Host="localhost")


def test_the_refusal_names_both_names_and_what_to_set(service: Service) -> None:
    headers = {"Origin": "http://search.test", "Host": "127.0.0.1:8000"}
    detail = service.client.post("/search", json={"query": "x"}, headers=headers).json()["detail"]
    assert "a page at http://search.test, but calls this server 127.0.0.1:8000" in detail
    assert "proxy_set_header Host $http_host" in detail and "ProxyPreserveHost On" in detail
    headers["Origin"] = "http://<script>"
    problem = service.client.post("/search", json={"query": "x"}, headers=headers).json()
    assert "<" not in problem["detail"]
    detail = service.client.get("/videos", headers={"Host": "search.test:81"}).json()["detail"]
    assert "search.test:81: add it to XCLIP_ALLOWED_HOSTS" in detail


def test_the_name_that_apache_saw_counts_from_a_trusted_proxy_alone(
    service: Service, behind_proxy: Service
) -> None:
    headers = {
        "Origin": "http://search.test:8080",
        "Host": "127.0.0.1:8000",  # ProxyPreserveHost is off by default
        "X_Forwarded_Host": "search.test:8080, inner.test",
    }
    assert may_change(behind_proxy, **headers)
    assert not may_change(service, **headers)
    # A name that was made to point here must not pass for another by that header.
    response = behind_proxy.client.get(
        "/videos", headers={"Host": "evil.test", "X-Forwarded-Host": "localhost"}
    )
    check_problem(response, 421)


@pytest.mark.parametrize(
    ("host", "parts"),
    [
        ("a:80", ("a", 80)),
        ("a.:8080", ("a", 8080)),
        ("[::1]", ("::1", None)),
        ("[::1]:443", ("::1", 443)),
        ("a:", ("a", None)),
        ("a:x", ("a", None)),
        ("", ("", None)),
    ],
)
def test_names_are_parted_from_their_ports(host: str, parts: tuple[str, int | None]) -> None:
    assert split_port(host) == parts


# Prefixes


def check_addresses(client: TestClient, before: str, prefix: str) -> None:
    """All addresses in answers begin with `prefix`, where requests need `before`."""
    answer = client.post(f"{before}/search", json={"query": "x"}).json()
    video = client.get(f"{before}/videos/known").json()
    (listed,) = client.get(f"{before}/videos").json()["videos"]
    for item in (*answer["results"], video, listed):
        for name in ("thumbnail_url", "media_url", "preview_url"):
            assert item[name].startswith(f"{prefix}/videos/known/"), item[name]
    upload = client.post(f"{before}/videos", files={"file": ("a.mp4", b"x")})
    assert upload.status_code == 202 and upload.headers["location"].startswith(f"{prefix}/jobs/")
    document = client.get(f"{before}/openapi.json").json()
    assert document.get("servers") == ([{"url": prefix}] if prefix else None)
    assert client.get(f"{before}/docs").status_code == 200
    moved = client.get(f"{before}/videos/?limit=3", follow_redirects=False)
    assert (moved.status_code, moved.headers["location"]) == (307, f"{prefix}/videos?limit=3")


@pytest.mark.parametrize("before", ["", "/xclip"], ids=["stripped", "not stripped"])
def test_below_a_prefix_that_is_set_every_address_has_it(tmp_path: Path, before: str) -> None:
    with running(tmp_path / "index", root_path="/xclip/") as service:
        add_video(service.catalog, "known")
        check_addresses(service.client, before, "/xclip")
        assert service.client.get(f"{before}/").status_code == 200


def test_the_bare_prefix_leads_to_the_page(tmp_path: Path) -> None:
    with running(tmp_path / "index", root_path="/xclip") as service:
        response = service.client.get("/xclip", follow_redirects=False)
        assert (response.status_code, response.headers["location"]) == (307, "/xclip/")
        assert service.client.get("/xclip").status_code == 200
        check_problem(service.client.get("/xclipper/"), 404)


@pytest.mark.parametrize("before", ["", "/a/b"], ids=["stripped", "not stripped"])
def test_a_trusted_proxy_says_the_prefix(behind_proxy: Service, before: str) -> None:
    behind_proxy.client.headers["X-Forwarded-Prefix"] = "/a/b"
    check_addresses(behind_proxy.client, before, "/a/b")


def test_the_prefixes_of_two_proxies_follow_each_other(behind_proxy: Service) -> None:
    behind_proxy.client.headers["X-Forwarded-Prefix"] = "/outer, /inner/"
    check_addresses(behind_proxy.client, "", "/outer/inner")


def test_a_prefix_that_is_called_as_a_path_of_ours_works_where_the_proxy_says_it(
    behind_proxy: Service,
) -> None:
    behind_proxy.client.headers["X-Forwarded-Prefix"] = "/videos"
    check_addresses(behind_proxy.client, "", "/videos")


@pytest.mark.parametrize(
    "value", ["//evil.test", "/a/../b", "https://evil.test", "/a b", "/a?b", "", "/", "/\xe9"]
)
def test_what_is_no_prefix_is_passed_over(behind_proxy: Service, value: str) -> None:
    headers = {"X-Forwarded-Prefix": value.encode("latin-1")}
    video = behind_proxy.client.get("/videos/known", headers=headers).json()
    if value == "//evil.test":
        assert video["media_url"] == "/evil.test/videos/known/media"  # One slash: a path of ours.
    else:
        assert video["media_url"] == "/videos/known/media"


def test_a_client_says_no_prefix(service: Service) -> None:
    service.client.headers["X-Forwarded-Prefix"] = "/xclip"
    check_addresses(service.client, "", "")


def test_a_probe_and_a_refused_search_are_known_below_a_prefix_too(tmp_path: Path) -> None:
    with running(tmp_path / "index", root_path="/xclip", max_waiting_searches=0) as service:
        for path in ("/healthz", "/xclip/healthz", "/readyz", "/xclip/readyz"):
            assert service.client.get(path, headers={"Host": "10.0.0.7"}).status_code == 200
            assert service.client.get(path, headers={"Host": "any.name.test"}).status_code == 200


def test_the_cookie_of_a_session_is_for_the_prefix_alone(tmp_path: Path) -> None:
    secret = add_key(tmp_path / "keys.json", "me", "write")
    with running(tmp_path / "index", keys_file=tmp_path / "keys.json", root_path="/xclip") as service:
        response = service.client.post("/xclip/session", json={"key": secret})
        assert "Path=/xclip;" in response.headers["set-cookie"] + ";"
        assert service.client.get("/xclip/videos").status_code == 200
        check_problem(service.client.get("/videos"), 401)
        assert "Path=/xclip;" in service.client.delete("/xclip/session").headers["set-cookie"] + ";"


def test_the_prefix_of_the_settings_is_a_path_that_is_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XCLIP_ROOT_PATH", "xclip/")
    assert Settings().root_path == "/xclip"
    assert Settings(root_path="/").root_path == ""
    assert Settings(root_path="/tools/x-clip_1.0~/").root_path == "/tools/x-clip_1.0~"
    for wrong in ("/videos", "/search/x", "https://a/b", "/a//b", "/..", "/a b", "/a%20b"):
        with pytest.raises(ValidationError, match="root_path"):
            Settings(root_path=wrong)


def test_the_first_parts_of_our_paths_are_listed() -> None:
    firsts = {route.path.split("/")[1] for router in ROUTERS for route in router.routes}  # type: ignore[attr-defined]
    assert firsts - {""} == OWN_PATHS
    with pytest.raises(ValueError, match="as /xclip"):
        parse_prefix("/.")


# Pages of other origins

APP = "https://app.test:8443"


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[tuple[Service, str]]:
    """A server with a key that pages of APP may use, and the key."""
    secret = add_key(tmp_path / "keys.json", "me", "write")
    settings: dict[str, Any] = {"keys_file": tmp_path / "keys.json", "cors_origins": (APP,)}
    with running(tmp_path / "index", **settings) as service:
        add_video(service.catalog, "known")
        yield service, secret


FROM_APP = {"Origin": APP, "Sec-Fetch-Site": "cross-site"}


def test_a_page_of_a_named_origin_reads_and_changes_with_a_key(shared: tuple[Service, str]) -> None:
    service, secret = shared
    for key in ({"Authorization": f"Bearer {secret}"}, {"X-API-Key": secret}):
        headers = {**FROM_APP, **key}
        response = service.client.post("/search", json={"query": "x"}, headers=headers)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == APP
        assert "access-control-allow-credentials" not in response.headers
        assert "X-Request-ID" in response.headers["access-control-expose-headers"]
        assert "Location" in response.headers["access-control-expose-headers"]
        assert "Origin" in response.headers["vary"]
    assert service.client.delete("/videos/known", headers=headers).status_code == 204


def test_a_cookie_that_the_browser_added_by_itself_does_not_count(shared: tuple[Service, str]) -> None:
    service, secret = shared
    assert service.client.post("/session", json={"key": secret}).status_code == 204
    assert service.client.cookies[COOKIE]
    assert service.client.get("/videos").status_code == 200
    for site in ("cross-site", "same-site"):
        headers = {"Origin": APP, "Sec-Fetch-Site": site}
        check_problem(service.client.get("/videos", headers=headers), 401)
        response = service.client.delete("/videos/known", headers=headers)
        check_problem(response, 401)
        assert response.headers["access-control-allow-origin"] == APP  # The page can read why.
    check_problem(
        service.client.post("/session", json={"key": secret}, headers={"Origin": "https://app.test"}), 403
    )


def test_a_preflight_is_answered_for_named_origins_alone(shared: tuple[Service, str]) -> None:
    service, _ = shared
    asked = {
        "Origin": APP,
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "authorization, content-type, x-api-key, range",
    }
    response = service.client.options("/videos/known", headers=asked)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == APP
    assert "PATCH" in response.headers["access-control-allow-methods"]
    allowed = response.headers["access-control-allow-headers"].lower()
    assert all(name in allowed for name in ("authorization", "x-api-key", "content-type", "range"))
    assert "access-control-allow-credentials" not in response.headers
    other = service.client.options("/videos/known", headers={**asked, "Origin": "https://evil.test"})
    assert other.status_code == 400 and "access-control-allow-origin" not in other.headers


def test_without_the_setting_no_other_origin_may_anything(service: Service) -> None:
    response = service.client.get("/videos", headers={"Origin": APP})
    assert "access-control-allow-origin" not in response.headers
    assert not may_change(service, **{name.replace("-", "_"): value for name, value in FROM_APP.items()})
    asked = {"Origin": APP, "Access-Control-Request-Method": "POST"}
    assert service.client.options("/search", headers=asked).status_code == 405


def test_origins_are_named_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XCLIP_CORS_ORIGINS", "https://App.test/, http://localhost:3000")
    assert Settings().cors_origins == ("https://app.test", "http://localhost:3000")
    for wrong in ("*", "null", "app.test", "https://*.test", "https://a.test/path", "ftp://a.test"):
        with pytest.raises(ValidationError, match="is not an origin"):
            Settings(cors_origins=(wrong,))
