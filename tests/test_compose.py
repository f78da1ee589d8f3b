"""The image and the compose file keep what docs/deployment.md promises."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from service.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
# The Compose Specification's schema; Apache License 2.0, see the LICENSE next to it.
SCHEMA = Path(__file__).parent / "third_party" / "compose_spec" / "compose-spec.json"
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
OURS = sorted(set(SERVICES) - {"proxy"})

specification = importlib.util.spec_from_file_location("runtime_lock", ROOT / "docker" / "runtime_lock.py")
assert specification is not None
assert specification.loader is not None
runtime_lock: Any = importlib.util.module_from_spec(specification)
specification.loader.exec_module(runtime_lock)


def settings_named_in(text: str) -> set[str]:
    return set(re.findall(r"\bXCLIP_[A-Z_]+[A-Z]\b", text))


def mounts(name: str) -> dict[str, dict[str, Any]]:
    return {mount["target"]: mount for mount in SERVICES[name]["volumes"]}


def seconds(duration: str) -> float:
    assert duration.endswith("s")
    return float(duration[:-1])


def violations(content: dict[str, Any]) -> list[str]:
    validator = Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(content)]


def with_settings(text: str, settings: dict[str, str]) -> str:
    """`text` as Compose reads it with `settings` from `.env`; it uses ${NAME:-default} alone."""
    replaced = re.sub(r"\$\{([A-Z_]+):-([^}]*)\}", lambda found: settings.get(found[1]) or found[2], text)
    assert "${" not in replaced
    return replaced


@pytest.mark.parametrize(
    "settings", [{}, {"API_CPUS": "1", "WORKER_MEMORY": "12g", "HTTP_PORT": "80", "HTTPS_PORT": "443"}]
)
def test_the_compose_file_is_valid_before_and_after_its_settings_are_filled_in(
    settings: dict[str, str],
) -> None:
    assert violations(COMPOSE) == []
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert violations(yaml.safe_load(with_settings(text, settings))) == []


def test_the_schema_knows_a_misspelt_key_and_a_wrong_type() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert violations(yaml.safe_load(text.replace("read_only: true", "readonly: true", 1)))
    assert violations(yaml.safe_load(text.replace("pids: 512", "pids: [512]", 1)))


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert not {"privileged", "pid", "ipc", "network_mode", "devices", "user"} & set(service)
    limits = service["deploy"]["resources"]["limits"]
    assert set(limits) == {"cpus", "memory", "pids"}
    for mount in service["tmpfs"]:
        assert {"noexec", "nosuid", "nodev"} <= set(mount.partition(":")[2].split(","))
        assert "size=" in mount


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_folder_of_the_host_is_labelled_for_selinux_and_never_made(name: str) -> None:
    """`z`: several containers share it. Without a label SELinux lets none of them read it."""
    for mount in SERVICES[name]["volumes"]:
        if mount["type"] == "bind":
            assert mount["bind"] == {"create_host_path": False, "selinux": "z"}


@pytest.mark.parametrize("name", OURS)
def test_no_capability_comes_back(name: str) -> None:
    assert "cap_add" not in SERVICES[name]


def test_the_proxy_may_bind_ports_and_nothing_more() -> None:
    assert SERVICES["proxy"]["cap_add"] == ["NET_BIND_SERVICE"]


def test_only_the_proxy_has_ports_and_they_are_on_the_loopback_address() -> None:
    assert [name for name in SERVICES if "ports" in SERVICES[name]] == ["proxy"]
    for port in SERVICES["proxy"]["ports"]:
        assert port.startswith("${PUBLISH_ADDRESS:-127.0.0.1}:")
    assert "\nPUBLISH_ADDRESS=127.0.0.1\n" in EXAMPLE


@pytest.mark.parametrize("name", OURS)
def test_videos_are_only_read_and_only_admin_changes_keys(name: str) -> None:
    mounted = mounts(name)
    assert mounted["/videos"]["read_only"] is True
    if "/keys" in mounted:
        assert name == "admin" or mounted["/keys"]["read_only"] is True


def test_the_worker_gets_no_keys_and_no_way_to_the_proxy() -> None:
    for name in ("worker", "worker-gpu", "index", "index-gpu", "reindex", "reindex-gpu"):
        assert "/keys" not in mounts(name)
        assert "web" not in SERVICES[name]["networks"]


@pytest.mark.parametrize("name", ["api", "api-gpu", "worker", "worker-gpu", "proxy"])
def test_what_serves_starts_again_and_has_time_to_end(name: str) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"
    least = {
        "api": sum(getattr(Settings(), field) for field in DRAINING),
        "worker": Settings().worker_grace_seconds,
        "proxy": 15.0,  # grace_period in docker/Caddyfile
    }[name.removesuffix("-gpu")]
    assert seconds(SERVICES[name]["stop_grace_period"]) > least


DRAINING = ("drain_delay_seconds", "drain_timeout_seconds")


def test_the_worker_waits_for_the_api_and_runs_apart() -> None:
    for suffix in ("", "-gpu"):
        assert SERVICES[f"worker{suffix}"]["depends_on"] == {f"api{suffix}": {"condition": "service_healthy"}}
        assert SERVICES[f"api{suffix}"]["environment"]["XCLIP_START_WORKER"] == "false"


def test_what_listens_has_a_health_check_and_nothing_has_to_switch_one_off() -> None:
    # `docker compose up --wait` fails on a service that disables the health check of its image.
    checked = {name for name, service in SERVICES.items() if "healthcheck" in service}
    assert checked == {"api", "api-gpu", "proxy"}
    assert not re.search(r"^HEALTHCHECK", DOCKERFILE, flags=re.MULTILINE)


@pytest.mark.parametrize(("status", "exit_status"), [(200, 0), (503, 1)])
def test_the_health_check_of_the_api_is_whether_it_is_ready(status: int, exit_status: int) -> None:
    asked: list[str] = []

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    kind, python, *arguments = SERVICES["api"]["healthcheck"]["test"]
    assert (kind, python) == ("CMD", "python")
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        here = [argument.replace(" 8000,", f" {server.server_port},") for argument in arguments]
        assert here != arguments
        assert subprocess.run([sys.executable, *here], check=False, timeout=60).returncode == exit_status
    assert asked == ["/readyz"]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_the_gpu_variants_differ_in_image_device_and_profile_alone(name: str) -> None:
    if not name.endswith("-gpu"):
        assert "reservations" not in SERVICES[name]["deploy"]["resources"]
        return
    ours, twin = dict(SERVICES[name]), dict(SERVICES[name.removesuffix("-gpu")])
    assert ours["image"].endswith(":gpu")
    assert ours["build"] == {**twin["build"], "target": "gpu"}
    (device,) = ours["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert ours["deploy"]["resources"]["limits"] == twin["deploy"]["resources"]["limits"]
    for key in ("image", "build", "deploy", "profiles", "networks", "depends_on"):
        ours.pop(key, None)
        twin.pop(key, None)
    assert ours == twin


def test_one_profile_starts_one_api_one_worker_and_the_proxy() -> None:
    for profile, suffix in (("cpu", ""), ("gpu", "-gpu")):
        started = {name for name, service in SERVICES.items() if profile in service["profiles"]}
        assert started == {f"api{suffix}", f"worker{suffix}", "proxy"}
    assert "\nCOMPOSE_PROFILES=cpu\n" in EXAMPLE


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_admin_runs_in_the_image_that_the_services_of_the_profile_run_in(profile: str) -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    services = yaml.safe_load(with_settings(text, {"COMPOSE_PROFILES": profile}))["services"]
    api = services["api" if profile == "cpu" else "api-gpu"]
    assert services["admin"]["image"] == api["image"] == f"xclip-search:{profile}"
    assert services["admin"]["build"] == api["build"]


@pytest.mark.parametrize("name", ["index", "index-gpu", "reindex", "reindex-gpu"])
def test_a_job_decodes_with_as_many_processes_as_it_has_processors(name: str) -> None:
    limit = SERVICES[name]["deploy"]["resources"]["limits"]["cpus"]
    entrypoint = SERVICES[name]["entrypoint"]
    assert entrypoint[entrypoint.index("--workers") + 1] == limit
    assert SERVICES[name]["environment"]["OMP_NUM_THREADS"] == limit


@pytest.mark.parametrize(
    "path", ["docker-compose.yml", ".env.example", "docker/Dockerfile", "docs/deployment.md"]
)
def test_every_setting_named_is_one_of_the_service(path: str) -> None:
    named = settings_named_in((ROOT / path).read_text(encoding="utf-8"))
    known = {f"XCLIP_{field.upper()}" for field in Settings.model_fields}
    assert named
    assert named <= known


def test_settings_of_the_example_are_valid_and_those_of_compose_have_a_line_there() -> None:
    values: dict[str, str] = {}
    for line in EXAMPLE.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            values[name] = value
    ours = {name.removeprefix("XCLIP_").lower(): value for name, value in values.items()}
    Settings(**{name: value for name, value in ours.items() if name in Settings.model_fields})
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    interpolated = dict(re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", text))
    assert set(interpolated) - set(values) == {"IMAGE", "CADDY_IMAGE"}
    assert {name: values[name] for name in interpolated if name in values} == {
        name: default for name, default in interpolated.items() if name in values
    }


def test_the_dockerfile_has_the_targets_and_ends_as_nobody_with_rights() -> None:
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", DOCKERFILE, flags=re.MULTILINE)
    names = [name for _, name in stages if name]
    assert {SERVICES[name]["build"]["target"] for name in OURS if name != "admin"} == {"cpu", "gpu"}
    assert {"cpu", "gpu"} <= set(names)
    assert stages[-1] == ("cpu", "")
    assert {source for source, _ in stages} - set(names) == {"${PYTHON_IMAGE}"}
    user = re.findall(r"^USER (.*)$", DOCKERFILE, flags=re.MULTILINE)
    assert user == ["${USER_ID}:${GROUP_ID}"]
    assert re.search(r"^ARG USER_ID=[1-9]\d{4}$", DOCKERFILE, flags=re.MULTILINE)


def test_packages_come_from_the_locks_with_their_hashes() -> None:
    statements = DOCKERFILE.replace("\\\n", " ")
    installs = re.findall(r"pip .*?install (.*)", statements)
    assert len(installs) == 4
    for arguments in installs:
        assert "--require-hashes" in arguments or "--no-index" in arguments
    for lock in ("requirements.lock", "requirements-gpu.lock", "docker/build-requirements.lock"):
        assert Path(lock).name in DOCKERFILE
        text = (ROOT / lock).read_text(encoding="utf-8")
        assert "--hash=sha256:" in text
        assert "://" not in text


def test_the_script_that_checks_an_image_imports_only_names_that_are_there() -> None:
    script = (ROOT / "docker" / "verify.sh").read_text(encoding="utf-8")
    programs = re.findall(r"<<'PYTHON'[^\n]*\n(.*?)\nPYTHON\n", script, flags=re.DOTALL)
    imports = [
        node
        for program in programs
        for node in ast.walk(ast.parse(program))
        if isinstance(node, ast.ImportFrom) and node.module == "xclip_search"
    ]
    assert imports
    for node in imports:
        for alias in node.names:
            assert hasattr(importlib.import_module("xclip_search"), alias.name), alias.name


def test_everything_that_the_dockerfile_copies_is_there_and_let_through() -> None:
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_through = {rule[1:].rstrip("/") for rule in rules if rule.startswith("!")}
    copied: set[str] = set()
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, flags=re.MULTILINE):
        copied.update(shlex.split(line)[:-1])
    assert copied
    assert copied == let_through
    for path in copied:
        assert (ROOT / path).exists()


def test_nothing_else_goes_to_the_builder() -> None:
    rules = [
        rule
        for rule in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if rule and not rule.startswith("#")
    ]
    # Everything is shut out first, so data, an index, keys, .env and .git need no rule of their own.
    assert rules[0] == "*"
    assert not {"!.env", "!.git", "!tests", "!docs"} & set(rules)
    assert rules[-2:] == ["**/__pycache__", "**/*.py[co]"]


@pytest.mark.parametrize(("lock", "extra"), [("requirements.lock", "cpu"), ("requirements-gpu.lock", "gpu")])
def test_an_image_gets_what_the_service_needs_and_no_tools_of_development(lock: str, extra: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    chosen = runtime_lock.select(text, "xclip-search", pyproject, [extra, "fast", "parquet", "otel"])
    names = set(re.findall(r"^([a-z0-9._-]+)==", chosen, flags=re.MULTILINE))
    assert {
        "torch",
        f"faiss-{extra}",
        "fastapi",
        "starlette",
        "pyarrow",
        "opentelemetry-sdk",
        "numpy",
    } <= names
    assert not names & {"pytest", "mypy", "ruff", "hypothesis", "tensorboard", "matplotlib", "schemathesis"}
    for block in re.split(r"^(?=[a-z0-9])", chosen, flags=re.MULTILINE)[1:]:
        assert block in text
        assert "--hash=sha256:" in block


def test_with_every_extra_the_selection_is_the_whole_lock() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = ["cpu", "train", "fast", "hf", "parquet", "otel", "mcp", "postgres", "remote", "ray", "dev"]
    assert runtime_lock.select(text, "xclip-search", pyproject, extras) == text


def test_a_dependency_that_is_not_in_the_lock_is_an_error() -> None:
    pyproject = '[project]\nname = "p"\ndependencies = ["here", "gone>=1"]\n'
    with pytest.raises(ValueError, match="gone"):
        runtime_lock.select("here==1 \\\n    --hash=sha256:00\n    # via p\n", "p", pyproject, [])


def test_only_what_is_asked_for_is_selected_over_several_steps() -> None:
    lock = (
        "a==1 \\\n    --hash=sha256:0a\n    # via p (pyproject.toml)\n"
        "b==1 \\\n    --hash=sha256:0b\n    # via\n    #   a\n    #   x\n"
        "C.c==1 ; python_version < '3.12' \\\n    --hash=sha256:0c\n    # via b\n"
        "x==1 \\\n    --hash=sha256:0d\n    # via p (pyproject.toml)\n"
        "y==1 \\\n    --hash=sha256:0e\n    # via x\n"
    )
    pyproject = '[project]\nname="p"\ndependencies=["A>=1"]\n[project.optional-dependencies]\nmore=["x"]\n'
    chosen = runtime_lock.select(lock, "p", pyproject, [])
    assert re.findall(r"^(\S+)==", chosen, flags=re.MULTILINE) == ["a", "b", "C.c"]
    assert runtime_lock.select(lock, "p", pyproject, ["more"]) == lock
