"""The compose file of a cluster is valid, and its parts find each other. It was not run here: no Docker."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings
from tests.test_compose import violations

FOLDER = Path(__file__).resolve().parents[1] / "docker" / "cluster"
TEXT = (FOLDER / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = sorted(set(SERVICES) - {"proxy", "postgres"})


def test_the_compose_file_is_valid() -> None:
    assert violations(COMPOSE) == []
    assert violations(yaml.safe_load(TEXT.replace("replicas: 2", "replica: 2", 1))), "the schema is read"


def test_everything_belongs_to_one_profile() -> None:
    assert {tuple(service["profiles"]) for service in SERVICES.values()} == {("cluster",)}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_what_a_service_waits_for_and_mounts_is_there(name: str) -> None:
    service = SERVICES[name]
    for other, how in service.get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"} and "healthcheck" in SERVICES[other]
    for mount in service["volumes"]:
        if mount["type"] == "volume":
            assert mount["source"] in COMPOSE["volumes"]
        elif not mount["source"].startswith("${"):
            assert (FOLDER / mount["source"]).exists()
    assert set(service["networks"]) <= set(COMPOSE["networks"])


@pytest.mark.parametrize("name", OURS)
def test_ours_share_index_and_media_and_keep_what_is_derived_to_themselves(name: str) -> None:
    service = SERVICES[name]
    environment = service["environment"]
    assert {key for key in environment if key.startswith("XCLIP_")} <= {
        f"XCLIP_{field.upper()}" for field in Settings.model_fields
    }
    settings = Settings(index=environment["XCLIP_INDEX"], media=Path("/media"), cache=Path("/cache"))
    assert "password" not in str(settings.index_address)
    mounts = {mount["target"]: mount["source"] for mount in service["volumes"]}
    assert mounts["/media"] == "media"
    in_memory = [place.partition(":")[0] for place in service["tmpfs"]]
    assert ("/cache" in mounts) != ("/cache" in in_memory)
    if "/cache" in mounts:
        others = [SERVICES[other]["volumes"] for other in OURS if other != name]
        assert all(mount["source"] != mounts["/cache"] for volumes in others for mount in volumes)


def test_the_proxy_asks_each_api_whether_it_is_ready() -> None:
    text = (FOLDER / "Caddyfile").read_text(encoding="utf-8")
    (upstreams,) = re.findall(r"\{\$UPSTREAMS:([^}]*)\}", text)
    assert [name.partition(":")[0] for name in upstreams.split()] == ["api-1", "api-2"]
    assert "health_uri /readyz" in text and "lb_policy cookie" in text


def test_only_the_proxy_can_be_reached_from_outside() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["proxy"]
    assert SERVICES["proxy"]["networks"] == ["web"]
    assert all(SERVICES[name]["networks"] == ["inside"] for name in ("postgres", "ray-head", "ray-worker"))
