"""Settings: command line over environment over defaults."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import ValidationError
from typer.testing import CliRunner

from indexer.store import store
from service import server
from service.auth.keys import add_key, read_keys
from service.http.middleware import is_loopback
from service.settings import Settings, WorkerSettings
from xclip_search.serve import app


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("XCLIP_")]:
        monkeypatch.delenv(name)


def test_the_command_line_goes_over_the_environment_and_that_over_the_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Settings().port == 8000
    monkeypatch.setenv("XCLIP_PORT", "9000")
    monkeypatch.setenv("XCLIP_UPLOAD_LIMIT_BYTES", "77")
    monkeypatch.setenv("XCLIP_DEVICE", "")
    assert Settings().port == 9000
    assert Settings(port=7000).port == 7000
    assert Settings().upload_limit_bytes == 77 and Settings().device == "auto"


def test_allowed_roots_are_resolved_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    monkeypatch.setenv("XCLIP_ALLOWED_ROOTS", f"{tmp_path / 'a'}:{tmp_path / 'b'}:")
    assert Settings().allowed_roots == (tmp_path / "a", tmp_path / "a")
    with pytest.raises(ValidationError, match="is not a folder"):
        Settings(allowed_roots=(tmp_path / "missing",))


def test_settings_are_frozen_and_a_name_that_is_none_is_an_error() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="prot"):
        Settings(prot=8000)  # type: ignore[call-arg]


FIELDS = {
    "host": "host",
    "port": "port",
    "device": "device",
    "runtime": "runtime",
    "upload_limit": "upload_limit_bytes",
    "decode_timeout": "decode_timeout_seconds",
    "max_hours": "max_video_seconds",
    "grace": "worker_grace_seconds",
    "threads": "num_search_threads",
}


def test_an_option_shows_the_default_of_its_setting() -> None:
    group: Any = typer.main.get_command(app)
    options = {option.name: option.show_default for option in group.commands["serve"].params}
    for option, field in FIELDS.items():
        default = Settings.model_fields[field].default
        if option == "max_hours":
            default /= 3600
        shown = f"{default >> 30} GiB" if option == "upload_limit" else f"{default}".removesuffix(".0")
        assert options[option] == shown, option


@pytest.mark.parametrize("port", ["-1", "70000", "http"])
def test_a_value_out_of_range_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("XCLIP_PORT", port)
    with pytest.raises(ValidationError, match="port"):
        Settings()


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
    served: list[Settings] = []

    def run_server(settings: Settings) -> int:
        served.append(settings)
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
    assert [settings.host for settings in served] == ["127.0.0.1", "0.0.0.0", "0.0.0.0"]
    (tmp_path / "keys.json").chmod(0o666)
    assert CliRunner().invoke(app, [*command, "127.0.0.1"]).exit_code == 1


def test_the_commands_that_are_named_can_be_pasted_into_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address of a database has characters that a shell would take for its own."""
    monkeypatch.setattr(store, "store_exists", lambda address: False)
    monkeypatch.setenv("XCLIP_MEDIA", "/media")
    keys_file = tmp_path / "my keys.json"
    address = "postgresql://xclip@db/videos?schema=films"
    options = ["serve", "--index", address, "--keys-file", str(keys_file), "--host", "0.0.0.0"]

    without_model = CliRunner().invoke(app, options).stderr
    command = shlex.split(without_model.partition("Make one with: ")[2].partition(";")[0])
    assert command[:4] == ["xclip-search", "index", "VIDEOS", "--index"] and "&" in command[4]

    without_key = CliRunner().invoke(app, [*options, "--model", "demo"]).stderr
    command = shlex.split(without_key.partition("Make one: ")[2].partition("; or confirm")[0])
    assert command[0] == "xclip-search" and CliRunner().invoke(app, command[1:]).exit_code == 0
    assert [key.name for key in read_keys(keys_file)] == ["NAME"]


# What Kubernetes puts into the environment of every container in a namespace with a Service named xclip

SERVICE_LINKS = {
    "XCLIP_PORT": "tcp://10.0.0.1:80",
    "XCLIP_SERVICE_HOST": "10.0.0.1",
    "XCLIP_SERVICE_PORT": "80",
    "XCLIP_SERVICE_PORT_HTTP": "80",
    "XCLIP_PORT_80_TCP": "tcp://10.0.0.1:80",
    "XCLIP_PORT_80_TCP_PROTO": "tcp",
    "XCLIP_PORT_80_TCP_PORT": "80",
    "XCLIP_PORT_80_TCP_ADDR": "10.0.0.1",
}


def test_a_service_named_xclip_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SERVICE_LINKS.items():
        monkeypatch.setenv(name, value)
    assert Settings() == Settings(port=8000)
    assert Settings(port=9000).port == 9000
    for value in ("udp://10.0.0.1:53", "tcp://[fd00::1]:8000", "sctp://10.0.0.1:1"):
        monkeypatch.setenv("XCLIP_PORT", value)
        assert Settings().port == 8000


def test_the_server_warns_of_it_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XCLIP_PORT", SERVICE_LINKS["XCLIP_PORT"])
    monkeypatch.setattr(server, "start_logging", lambda *_: None)

    def listen_on(host: str, port: int) -> None:
        raise OSError(98, "Address already in use")

    monkeypatch.setattr(server, "listen_on", listen_on)
    assert server.run_server(Settings(index=tmp_path)) == 1
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "XCLIP_PORT=tcp://10.0.0.1:80" in warning and "the port is 8000" in warning
    assert "enableServiceLinks: false" in warning


OF_THE_SERVER = {
    "XCLIP_PORT": "http",
    "XCLIP_ROOT_PATH": "/videos",
    "XCLIP_CORS_ORIGINS": "*",
    "XCLIP_SESSION_SECONDS": "never",
    "XCLIP_ALLOWED_ROOTS": "/nowhere/at/all",
    "XCLIP_NUM_SEARCH_THREADS": "0",
    "XCLIP_TRACING": "perhaps",
}


def test_a_worker_does_not_read_the_settings_of_the_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    worked: list[WorkerSettings] = []

    def run_worker(settings: WorkerSettings) -> int:
        worked.append(settings)
        return 0

    monkeypatch.setattr("service.ingest.worker_process.run_worker", run_worker)
    for name, value in OF_THE_SERVER.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XCLIP_LEASE_SECONDS", "7")
    command = ["worker", "--index", str(tmp_path), "--model", "demo"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert worked[0].lease_seconds == 7
    result = CliRunner().invoke(app, ["serve", *command[1:]])
    assert result.exit_code == 2 and all(name[6:].lower() in result.output for name in OF_THE_SERVER)
    monkeypatch.setenv("XCLIP_LEASE_SECONDS", "0")
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and "lease_seconds" in result.output


def test_the_commands_of_keys_read_where_the_keys_are_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {**OF_THE_SERVER, "XCLIP_LEASE_SECONDS": "0", "XCLIP_URL_PORTS": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XCLIP_KEYS_FILE", str(tmp_path / "keys.json"))
    result = CliRunner().invoke(app, ["keys", "add", "--name", "me", "--scope", "read"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "keys.json").exists()
