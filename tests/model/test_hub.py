"""Publishing on, and fetching from, a Hub that runs here: huggingface_hub's own requests, none replaced."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from typer.testing import CliRunner

import xclip_search
from model import CheckpointError, SpecError, XClip, XClipConfig
from model.checkpoints.hub import download, publish
from model.errors import HubError
from tests.support.servers.hub_server import Hub, running_hub

# huggingface_hub's own way of calling its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

FILES = ("config.json", "model.safetensors")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running Hub, which huggingface_hub takes for the real one; no user is logged in."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    # The other way to upload, Xet, is a protocol of its own in a compiled library.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    disable_progress_bars()
    with running_hub() as running:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, running.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        yield running
    enable_progress_bars()


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_TOKEN", "hf_may_write")
    return "hf_may_write"


def saved(directory: Path, seed: int = 3) -> XClip:
    clip = dict(XClipConfig.tiny().clip)
    clip["text_cfg"] = {**clip["text_cfg"], "vocab_size": 600}
    torch.manual_seed(seed)
    network = XClip(XClipConfig.tiny(clip=clip)).eval()
    network.save(directory)
    return network


def push(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(xclip_search.app, ["push", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_what_is_pushed_loads_back_with_the_same_fingerprint(hub, writer, tmp_path):
    network = saved(tmp_path / "mine")
    status, output = push(tmp_path / "mine", "me/films", "--message", "The first")
    assert status == 0, output
    assert f"fingerprint {network.fingerprint}" in output
    repository = hub.repositories["me/films"]
    files = repository.commits[repository.branches["main"]]
    assert sorted(files) == [".gitattributes", "README.md", "config.json", "model.safetensors"]
    assert files["model.safetensors"] == ((tmp_path / "mine" / "model.safetensors").read_bytes(), True)
    assert repository.messages == ["initial commit", "The first"]
    assert not repository.private
    assert XClip.load("hf-hub:me/films", device="cpu").fingerprint == network.fingerprint
    # The commit that was made, whatever comes after it.
    pinned = f"hf-hub:me/films@{repository.branches['main']}"
    assert f"and always as {pinned}" in output
    saved(tmp_path / "other", seed=4)
    assert push(tmp_path / "other", "me/films")[0] == 0
    assert XClip.load(pinned, device="cpu").fingerprint == network.fingerprint
    assert XClip.load("hf-hub:me/films", device="cpu").fingerprint != network.fingerprint


def test_weights_and_config_change_in_one_commit(hub, writer, tmp_path):
    saved(tmp_path / "mine")
    push(tmp_path / "mine", "me/films")
    commits = [request for request in hub.requests if "/commit/" in request]
    assert commits == ["POST /api/models/me/films/commit/main"]
    assert sum(request.startswith("PUT /lfs/") for request in hub.requests) == 1


def test_a_branch_is_made_and_main_stays_as_it_was(hub, writer, tmp_path):
    first, second = saved(tmp_path / "first"), saved(tmp_path / "second", seed=5)
    push(tmp_path / "first", "me/films")
    for _ in range(2):  # the second time the branch is there
        status, output = push(tmp_path / "second", "me/films", "--revision", "longer-training")
        assert status == 0, output
    assert XClip.load("hf-hub:me/films", device="cpu").fingerprint == first.fingerprint
    assert XClip.load("hf-hub:me/films@longer-training", device="cpu").fingerprint == second.fingerprint
    with pytest.raises(SpecError, match="hf-hub:me/films@nothing cannot be fetched: it has no such revision"):
        XClip.load("hf-hub:me/films@nothing", device="cpu")


def test_a_private_repository_opens_for_its_owner_only(hub, writer, tmp_path, monkeypatch):
    network = saved(tmp_path / "mine")
    assert push(tmp_path / "mine", "me/secret", "--private")[0] == 0
    assert hub.repositories["me/secret"].private
    assert XClip.load("hf-hub:me/secret", device="cpu").fingerprint == network.fingerprint
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache of somebody else"))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(SpecError, match="no such repository, or it is private: log in with `hf auth login`"):
        XClip.load("hf-hub:me/secret", device="cpu")


def test_what_is_to_be_private_is_not_put_where_it_is_public(hub, writer, tmp_path):
    saved(tmp_path / "mine")
    push(tmp_path / "mine", "me/open")
    before = dict(hub.repositories["me/open"].branches)
    status, output = push(tmp_path / "mine", "me/open", "--private")
    assert status == 1
    assert "me/open exists and is public" in output
    assert hub.repositories["me/open"].branches == before


def test_only_the_model_and_its_card_leave_the_machine(hub, writer, tmp_path):
    saved(tmp_path / "mine")
    (tmp_path / "mine" / "notes.txt").write_text("my own")
    (tmp_path / "mine" / "README.md").write_text("---\nlicense: mit\n---\n\n# As I wrote it\n")
    assert push(tmp_path / "mine", "me/films")[0] == 0
    repository = hub.repositories["me/films"]
    files = repository.commits[repository.branches["main"]]
    assert "notes.txt" not in files
    assert files["README.md"] == ((tmp_path / "mine" / "README.md").read_bytes(), False)


# What goes wrong is one line


def test_without_a_token_nothing_is_sent(hub, tmp_path):
    saved(tmp_path / "mine")
    status, output = push(tmp_path / "mine", "me/films")
    assert status == 1
    assert output == "error: publishing needs a token: log in with `hf auth login` or set HF_TOKEN\n"
    assert hub.requests == []


def test_a_token_that_is_not_known_is_said_and_not_shown(hub, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_secret")
    saved(tmp_path / "mine")
    status, output = push(tmp_path / "mine", "me/films")
    assert status == 1
    assert output == (
        "error: me/films cannot be published: the Hub does not accept the token: "
        "log in with `hf auth login` or set HF_TOKEN\n"
    )
    assert "hf_wrong_secret" not in output + caplog.text


def test_a_token_that_may_only_read_is_refused_in_the_hubs_words(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_may_read")
    saved(tmp_path / "mine")
    status, output = push(tmp_path / "mine", "me/films")
    assert status == 1
    assert output.count("\n") == 1
    assert "permission is refused to this token" in output
    assert "You don't have the rights" in output
    assert "hf_may_read" not in output


def test_a_token_that_the_hub_says_back_is_not_shown(hub, tmp_path, monkeypatch):
    hub.tokens["hf_echo"] = "read"
    monkeypatch.setattr(
        "tests.support.servers.hub_server.Handler.require_write",
        lambda handler: (_ for _ in ()).throw(
            sys.modules["tests.support.servers.hub_server"].Refused(
                400, message=f"bad {handler.headers['Authorization']}"
            )
        ),
    )
    with pytest.raises(HubError, match=r"bad Bearer \(token\)") as error:
        publish({"a.txt": b"a"}, "me/films", api=HfApi(token="hf_echo"))
    assert "hf_echo" not in str(error.value)


def test_a_hub_that_fails_in_the_middle_leaves_no_commit(hub, writer, tmp_path):
    saved(tmp_path / "mine")
    hub.broken_path = "/lfs/"
    status, output = push(tmp_path / "mine", "me/films")
    assert status == 1
    assert "me/films cannot be published: the Hub answered 501" in output
    assert output.count("\n") == 1
    assert hub.repositories["me/films"].messages == ["initial commit"]


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address on this machine at which nothing answers."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{reserved.getsockname()[1]}"


def test_without_a_network_the_host_is_named(nowhere, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubError, match=r"^me/films cannot be published: 127\.0\.0\.1 cannot be reached$"):
        publish({"a.txt": b"a"}, "me/films", api=HfApi(endpoint=nowhere, token="hf_secret"))
    with pytest.raises(
        SpecError, match=r"^hf-hub:me/films cannot be fetched: 127\.0\.0\.1 cannot be reached$"
    ):
        download("me/films", FILES, endpoint=nowhere)


def test_a_set_offline_mode_is_named(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SpecError, match="set to stay offline"):
        download("me/films", FILES)


@pytest.mark.parametrize(
    "name", ["films", "me/films/more", "me/fi lms", "me/..", "", "https://hf.co/me/films"]
)
def test_a_name_that_is_none_is_wrong_use(name, hub, writer, tmp_path):
    saved(tmp_path / "mine")
    status, output = push(tmp_path / "mine", name)
    assert status == 2
    assert "OWNER/NAME" in output
    assert hub.requests == []


def test_a_directory_that_holds_no_model_is_not_published(hub, writer, tmp_path):
    (tmp_path / "empty").mkdir()
    assert push(tmp_path / "empty", "me/films")[0] == 1
    assert push(tmp_path / "absent", "me/films")[0] == 2
    saved(tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    status, output = push(tmp_path / "torn", "me/films")
    assert status == 1
    assert "model.safetensors is not a checkpoint that can be read safely" in output
    assert hub.requests == []


def test_a_repository_without_our_files_is_named(hub, writer):
    publish({"notes.txt": b"nothing"}, "me/films")
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        XClip.load("hf-hub:me/films", device="cpu")


def test_a_dry_run_prints_the_card_and_sends_nothing(hub, tmp_path):
    network = saved(tmp_path / "mine")
    status, output = push(tmp_path / "mine", "me/films", "--dry-run", "--license", "cc-by-4.0")
    assert status == 0
    assert "license: cc-by-4.0" in output
    assert network.fingerprint in output
    assert hub.requests == []


@pytest.mark.slow
def test_the_commands_find_the_hub_by_its_own_settings(hub, tmp_path):
    """As a user has it: other processes, HF_ENDPOINT and HF_TOKEN in the environment."""
    network = saved(tmp_path / "mine")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))},
        **{"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"},
    }

    def run(*arguments: object, token: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "xclip_search", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env={**environment, **({"HF_TOKEN": token} if token else {})},
        )

    pushed = run("push", tmp_path / "mine", "me/films", token="hf_may_write")
    assert pushed.returncode == 0, pushed.stderr
    assert "hf_may_write" not in pushed.stdout + pushed.stderr
    fetched = run("convert", "hf-hub:me/films", tmp_path / "fetched")
    assert fetched.returncode == 0, fetched.stderr
    assert network.fingerprint in fetched.stdout
    for name in FILES:
        one, other = (
            hashlib.sha256((tmp_path / folder / name).read_bytes()) for folder in ("mine", "fetched")
        )
        assert one.hexdigest() == other.hexdigest()
    assert json.loads((tmp_path / "fetched" / "config.json").read_text())["format"] == "xclip-search/1"
    refused = run("push", tmp_path / "mine", "me/films", token="hf_wrong")
    assert refused.returncode == 1
    assert "does not accept the token" in refused.stderr
    assert "Traceback" not in refused.stderr
