"""`xclip-search reindex` as a user meets it, and commands that a reindexing overtakes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import xclip_search.index
from indexer.ingest.encoding import index_facts
from indexer.ingest.pipeline import IndexEvent, IndexingPipeline
from indexer.ingest.synchronisation import Progress
from indexer.maintenance.reindexing import reindex
from indexer.maintenance.verification import verify
from indexer.media.sampling import Sampling
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.generations import generations
from model import XClip, XClipConfig
from tests.support.video_files import write_coloured_video
from xclip_search import app

pytestmark = pytest.mark.timeout(300)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def add(index: Path, *paths: Path, **options: object) -> Result:
    given = [text for name, value in options.items() for text in (f"--{name}", value)]
    return run("index", *paths, "--index", index, "--workers", 1, "--batch-size", 1, *given)


def facts(index: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("info", "--index", index, "--json").stdout)
    return found


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    colours = [(200, 20, 20), (20, 200, 20), (20, 20, 200), (200, 200, 20)]
    return [write_coloured_video(folder / f"{n}.mp4", colour, 1) for n, colour in enumerate(colours)]


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another network than `model_directory`, of another size and with fewer frames."""
    torch.manual_seed(1)
    directory = tmp_path_factory.mktemp("other")
    config = XClipConfig.tiny(num_frames=5)
    XClip(config).eval().save(directory)
    return directory


@pytest.fixture
def index(tmp_path: Path, model_directory: Path, videos: list[Path]) -> Path:
    assert add(tmp_path / "index", *videos[:2], model=model_directory).exit_code == 0
    return tmp_path / "index"


@pytest.mark.slow
def test_there_and_back_hides_what_was_added_in_between_and_says_so_before(
    index: Path, other_model: Path, videos: list[Path], tmp_path: Path
) -> None:
    before = facts(index)
    done = run("reindex", "--index", index, "--model", other_model, "--workers", 1)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("generation 2 is current now: 2 videos encoded (2 segments)")
    now = facts(index)
    assert (now["num_frames"], now["num_videos"]) == (5, 2) and now["model_spec"] == str(other_model)
    assert now["fingerprint"] in done.stdout and before["fingerprint"] in done.stdout
    assert (now["generation"], now["other_generations"]) == (2, [1])
    again = run("reindex", "--index", index)
    assert again.exit_code == 0 and "nothing to do" in again.stdout
    assert "1 added (1 segments)" in add(index, videos[2]).stdout

    report = tmp_path / "report.json"
    refused = run("reindex", "--index", index, "--rollback")
    assert refused.exit_code == 2 and facts(index)["generation"] == 2
    assert "1 videos that it does not have will not be found any more" in refused.stderr
    assert "--yes" in refused.stderr
    back = run("reindex", "--index", index, "--rollback", "--yes", "--json", "--report", report)
    assert back.exit_code == 0, back.output
    done = json.loads(back.stdout)
    assert done == json.loads(report.read_text())
    assert (done["generation"], done["num_hidden"], done["num_kept"], done["switched"]) == (1, 1, 2, True)
    assert facts(index)["fingerprint"] == before["fingerprint"] == done["fingerprint"]
    answer = json.loads(run("search", "blue", "--index", index, "--json").stdout)
    assert {result["title"] for result in answer["results"]} == {"0", "1"}

    discarded = run("reindex", "--index", index, "--discard-old", "--json")
    assert discarded.exit_code == 0 and json.loads(discarded.stdout)["discarded"] == [2]
    assert generations(index) == [1] and verify(index).is_clean


@pytest.mark.slow
def test_a_file_that_is_gone_is_listed_and_the_status_is_3(
    index: Path, videos: list[Path], tmp_path: Path
) -> None:
    mine = tmp_path / "mine.mp4"
    mine.write_bytes(videos[3].read_bytes())
    assert add(index, mine).exit_code == 0
    mine.unlink()
    cut = ("--max-segment-seconds", 7, "--workers", 1)
    refused = run("reindex", "--index", index, *cut, "--discard-old")
    assert refused.exit_code == 3 and not refused.stdout
    assert "its file is not there" in refused.stderr and "nothing was switched" in refused.stderr
    assert generations(index) == [1, 2] and facts(index)["num_videos"] == 3
    done = run("reindex", "--index", index, *cut, "--allow-missing")
    assert done.exit_code == 3 and "2 were there already" in done.stdout
    assert facts(index)["num_videos"] == 2
    assert run("reindex", "--index", index, "--rollback").exit_code == 0
    assert facts(index)["num_videos"] == 3


def test_wrong_use_is_one_line_and_status_2(index: Path, tmp_path: Path) -> None:
    for arguments, reason in (
        (("--index", tmp_path / "none", "--model", "demo"), "there is no index"),
        (("--index", index, "--rollback"), "no former generation"),
        (("--index", index, "--rollback", "--model", "demo"), "no model"),
        (("--index", index, "--rollback", "--discard-old"), "then run --discard-old"),
        (("--index", index, "--report", tmp_path / "no" / "r.json"), "no folder"),
        (("--index", index, "--frames-per-second", -1), "frames_per_second"),
        (("--index", index, "--model", "nothing-of-this-name"), "nothing-of-this-name"),
    ):
        result = run("reindex", *arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert reason in result.stderr and result.stderr.count("\n") == 1, (arguments, result.stderr)
    assert generations(index) == [1]
    assert not (tmp_path / "none").exists()


@pytest.fixture
def overtaken(monkeypatch: pytest.MonkeyPatch, index: Path, other_model: Path) -> Iterator[Callable[[], int]]:
    """The index is encoded again when a running `index` has stored its first video. Gives how often."""
    real, num_times = xclip_search.index.sync_progress, 0

    @contextmanager
    def progress() -> Iterator[Progress]:
        with real() as shown:

            def overtake(event: IndexEvent) -> None:
                nonlocal num_times
                shown.on_event(event)
                if num_times == 0:
                    num_times += 1
                    reindex_with(index, other_model)

            yield replace(shown, on_event=overtake)

    monkeypatch.setattr(xclip_search.index, "sync_progress", progress)
    return lambda: num_times


def reindex_with(index: Path, spec: Path) -> None:
    model = XClip.load(str(spec))
    sampling = Sampling(model.config.num_frames)
    facts = index_facts(model, str(spec), sampling)
    reindex(index, facts, lambda catalog: IndexingPipeline(catalog, model))


def test_a_running_index_command_goes_on_with_the_new_model(
    overtaken: Callable[[], int], index: Path, other_model: Path, videos: list[Path]
) -> None:
    result = add(index, *videos)
    assert overtaken() == 1
    assert result.exit_code == 0, result.output
    assert "the index was reindexed meanwhile" in result.stderr
    assert (facts(index)["num_videos"], facts(index)["model_spec"]) == (4, str(other_model))
    assert verify(index).is_clean
    with Catalog.open_generation(index, 1) as former:
        assert former.num_videos < 4, "nothing went to the former generation after the switch"


@pytest.mark.slow
def test_a_running_index_command_with_a_model_of_its_own_ends_and_says_so(
    overtaken: Callable[[], int], index: Path, model_directory: Path, videos: list[Path]
) -> None:
    result = add(index, *videos, model=model_directory)
    assert overtaken() == 1
    assert result.exit_code == 2, result.output
    assert "holds features of fingerprint" in result.stderr and facts(index)["fingerprint"] in result.stderr
    assert facts(index)["num_videos"] == 2
