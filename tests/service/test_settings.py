"""Settings: command line over environment over defaults."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from service import server
from service.auth.keys import add_key
from service.http.middleware import is_loopback
from service.settings import Environment, ServiceSettings, WorkerSettings
from xclip_search.serve import app


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("XCLIP_")]:
        monkeypatch.delenv(name)


def test_the_command_line_goes_over_the_environment_and_that_over_the_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Environment.read().port == 8000
    monkeypatch.setenv("XCLIP_PORT", "9000")
    monkeypatch.setenv("XCLIP_UPLOAD_LIMIT_BYTES", "77")
    monkeypatch.setenv("XCLIP_DEVICE", "")
    assert Environment.read(port=None).port == 9000
    assert Environment.read(port=7000).port == 7000
    settings = ServiceSettings.from_environment(Environment.read(), Path("x"))
    assert settings.upload_limit_bytes == 77 and settings.device == "auto"


def test_allowed_roots_are_resolved_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    monkeypatch.setenv("XCLIP_ALLOWED_ROOTS", f"{tmp_path / 'a'}:{tmp_path / 'b'}:")
    assert Environment.read().allowed_roots == (tmp_path / "a", tmp_path / "a")
    with pytest.raises(ValidationError, match="is not a folder"):
        Environment.read(allowed_roots=(tmp_path / "missing",))


def test_defaults_of_the_dataclasses_are_those_of_the_environment() -> None:
    for settings in (ServiceSettings, WorkerSettings):
        made = settings.from_environment(Environment.read(), Path("x"))
        assert made == settings(Path("x"))
        own = {"index_directory", "model_spec", "poll_seconds", "lease_seconds", "parent_pid"}
        assert {field.name for field in fields(settings)} - own <= set(Environment.model_fields)


@pytest.mark.parametrize("port", ["-1", "70000", "http"])
def test_a_value_out_of_range_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("XCLIP_PORT", port)
    with pytest.raises(ValidationError, match="port"):
        Environment.read()


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_without_an_index_or_a_model_the_command_says_what_to_do(command: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [command])
    assert result.exit_code == 2 and "--index" in result.stderr
    result = CliRunner().invoke(app, [command, "--index", str(tmp_path / "missing")])
    assert result.exit_code == 2 and "--model" in result.stderr
    result = CliRunner().invoke(app, [command, "--index", str(tmp_path), "--decode-timeout", "-1"])
    assert result.exit_code == 2 and "decode_timeout_seconds" in result.stderr


def test_only_addresses_of_this_machine_are_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", ""))


def test_other_machines_are_not_served_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[tuple[ServiceSettings, str]] = []

    def run_server(settings: ServiceSettings, host: str, port: int) -> int:
        served.append((settings, host))
        return 0

    monkeypatch.setattr(server, "run_server", run_server)
    command = ["serve", "--index", str(tmp_path), "--model", "demo", "--host"]
    result = CliRunner().invoke(app, [*command, "0.0.0.0"])
    assert result.exit_code == 2 and "keys add" in result.stderr and "--allow-no-keys" in result.stderr
    assert not served
    assert CliRunner().invoke(app, [*command, "127.0.0.1"]).exit_code == 0
    result = CliRunner().invoke(app, [*command, "0.0.0.0", "--allow-no-keys"])
    assert result.exit_code == 0 and "warning" in result.stderr
    add_key(tmp_path / "keys.json", "me", "read")
    result = CliRunner().invoke(app, [*command, "0.0.0.0"])
    assert result.exit_code == 0 and not result.stderr
    assert [host for _, host in served] == ["127.0.0.1", "0.0.0.0", "0.0.0.0"]
    (tmp_path / "keys.json").chmod(0o666)
    assert CliRunner().invoke(app, [*command, "127.0.0.1"]).exit_code == 1
