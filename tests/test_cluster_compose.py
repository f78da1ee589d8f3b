"""The compose file of a cluster is valid, and its parts find each other; docker/cluster/verify.py runs it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings
from tests.test_compose import DOCKERFILE, violations

FOLDER = Path(__file__).resolve().parents[1] / "docker" / "cluster"
TEXT = (FOLDER / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = sorted(set(SERVICES) - {"proxy", "postgres"})


def test_the_compose_file_is_valid() -> None:
    assert violations(COMPOSE) == []
    assert violations(yaml.safe_load(TEXT.replace("replicas: 2", "replica: 2", 1))), "the schema is read"


def test_everything_but_the_jobs_belongs_to_one_profile() -> None:
    others = {name for name, service in SERVICES.items() if service["profiles"] != ["cluster"]}
    assert others == {"admin"} and SERVICES["admin"]["profiles"] == ["admin"]


def test_the_image_of_ours_is_built_once() -> None:
    assert [name for name in SERVICES if "build" in SERVICES[name]] == ["api-1"]
    assert {SERVICES[name]["image"] for name in OURS} == {"${IMAGE:-xclip-search}:cpu"}


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


@pytest.mark.parametrize("name", OURS)
def test_every_volume_of_ours_lies_on_a_folder_that_the_image_gives_to_its_user(name: str) -> None:
    """A new volume takes owner and mode of the folder that it covers; where there is none it is root's."""
    (folders,) = re.findall(
        r"install -d -o \$\{USER_ID\} -g \$\{GROUP_ID\} -m 0700 ([\w /]+)$", DOCKERFILE, re.M
    )
    targets = {mount["target"] for mount in SERVICES[name]["volumes"] if mount["type"] == "volume"}
    assert targets <= set(folders.split())


def test_only_the_apis_see_the_keys_and_only_admin_changes_them() -> None:
    seen = {
        name: mount.get("read_only", False)
        for name in OURS
        for mount in SERVICES[name]["volumes"]
        if mount["target"] == "/keys"
    }
    assert seen == {"api-1": True, "api-2": True, "admin": False}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_no_service_takes_more_processors_than_small_machines_have(name: str) -> None:
    """Docker starts no container whose limit is beyond the processors of the machine."""
    limit = SERVICES[name]["deploy"]["resources"]["limits"]["cpus"]
    assert int(re.sub(r"\$\{\w+:-(\d+)\}", r"\1", limit)) <= 2
    threads = SERVICES[name].get("environment", {}).get("OMP_NUM_THREADS")
    assert threads in (None, limit)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_what_is_written_in_memory_is_limited_and_never_executed(name: str) -> None:
    for mount in SERVICES[name]["tmpfs"]:
        options = mount.partition(":")[2]
        assert {"noexec", "nosuid", "nodev"} <= set(options.split(",")) and "size=" in options


def test_postgres_gets_the_signal_to_stop() -> None:
    """An init that stays root may not signal a process of another user without the capability KILL."""
    assert SERVICES["postgres"]["cap_drop"] == ["ALL"] and "KILL" not in SERVICES["postgres"]["cap_add"]
    assert SERVICES["postgres"]["init"] is False


def test_the_proxy_asks_each_api_whether_it_is_ready() -> None:
    text = (FOLDER / "Caddyfile").read_text(encoding="utf-8")
    named = set(re.findall(r"\{\$UPSTREAMS:([^}]*)\}", text))
    assert [[api.partition(":")[0] for api in upstreams.split()] for upstreams in named] == [
        ["api-1", "api-2"]
    ]
    assert "health_uri /readyz" in text


def test_only_the_proxy_can_be_reached_from_outside() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["proxy"]
    assert SERVICES["proxy"]["networks"] == ["web"]
    members = {
        network: {name for name in SERVICES if network in SERVICES[name]["networks"]}
        for network in COMPOSE["networks"]
    }
    assert members["web"] == {"proxy", "api-1", "api-2"}
    assert members["ray"] == {"ray-head", "ray-worker", "postgres"}, "whoever reaches Ray runs programs on it"
