"""Fixtures of all tests: real clips where they are, GPU tests that cannot be skipped by mistake."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from indexer.store.sqlite import connections
from tests.support.postgres import PostgresServer, find_programs, running_server
from tests.support.servers.browser import Browser, find_browser
from tests.support.stores import KINDS, StoreFactory

# No example has a deadline: on a busy machine a quick one takes longer than the 200 ms of the default.
hypothesis.settings.register_profile("without-deadlines", deadline=None)
hypothesis.settings.load_profile("without-deadlines")

# What all tests import are a million objects: to go through them each time that a tenth of a million was made
# is a tenth of the time of a run.
gc.set_threshold(20_000, 10, 10)

REPOSITORY = Path(__file__).resolve().parents[1]

if "PYTEST_XDIST_WORKER" in os.environ:
    # One test process for each core: threads of their own would only stand in each other's way. Set before
    # torch is imported, and inherited by the processes that tests start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _wait_for_no_disk(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "fsync", lambda descriptor: None)
    patch.setattr(connections, "SYNCHRONOUS", "OFF")


@pytest.fixture(scope="session", autouse=True)
def quick_disk() -> Iterator[pytest.MonkeyPatch]:
    """Nothing here pulls a plug, and what a process wrote outlives it: waiting for the disk shows nothing."""
    with pytest.MonkeyPatch.context() as patch:
        _wait_for_no_disk(patch)
        yield patch


@pytest.fixture
def slow_disk(quick_disk: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that asks what is waited for has it as users have it."""
    quick_disk.undo()
    yield
    _wait_for_no_disk(quick_disk)


@pytest.fixture(scope="session")
def clips_directory() -> Path:
    """Real clips with captions.json, named by XCLIP_TEST_CLIPS or next to the repository; else a skip."""
    named = os.environ.get("XCLIP_TEST_CLIPS")
    directory = Path(named) if named else REPOSITORY.parent / "shared" / "clips"
    if not (directory / "captions.json").is_file():
        if named:
            pytest.fail(f"XCLIP_TEST_CLIPS names {directory}, where there is no captions.json")
        pytest.skip(f"no real clips in {directory}; XCLIP_TEST_CLIPS names another folder")
    return directory


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of the least size, with the same random weights each time."""
    import torch

    from model import XClip, XClipConfig

    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("model")
    XClip(XClipConfig.tiny()).eval().save(directory)
    return directory


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server of this test process's own; skipped where PostgreSQL is not installed, unless
    XCLIP_TEST_NEED_POSTGRES=1 demands it: then it fails."""
    programs = find_programs()
    if programs is None:
        if os.environ.get("XCLIP_TEST_NEED_POSTGRES") == "1":
            pytest.fail("XCLIP_TEST_NEED_POSTGRES=1, but there is no PostgreSQL 15 or later")
        pytest.skip("there is no PostgreSQL 15 or later on this machine (Debian: apt install postgresql)")
    with running_server(programs) as server:
        yield server


@pytest.fixture(scope="module")
def own_postgres(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A PostgreSQL of a file's own, to be stopped while the others go on with theirs."""
    with running_server(postgres.programs) as server:
        yield server


@pytest.fixture
def store_factory(store_kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[StoreFactory]:
    """Makes stores, of each kind in turn: a test that asks for it runs once for each."""
    folder = tmp_path / "stores"
    folder.mkdir()
    server: PostgresServer | None = None
    if store_kind == "postgres":
        server = request.getfixturevalue("postgres")
    factory = StoreFactory(store_kind, folder, lambda: server.address(folder=folder) if server else "")
    yield factory
    factory.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of stores run with each kind, those marked `store(kind)` with one alone."""
    if "store_kind" in metafunc.fixturenames:
        only = metafunc.definition.get_closest_marker("store")
        metafunc.parametrize("store_kind", KINDS if only is None else only.args)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A headless Chromium with an empty page; at the end, nothing went wrong in it."""
    program = find_browser()
    if program is None:
        pytest.skip("there is no Chromium on this machine")
    with Browser(program, tmp_path / "profile") as browser:
        yield browser
        assert not browser.problems


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A `gpu` test without a GPU is skipped, unless XCLIP_TEST_NEED_GPU=1 demands one: then it fails."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        if os.environ.get("XCLIP_TEST_NEED_GPU") == "1":
            pytest.fail("XCLIP_TEST_NEED_GPU=1, but torch sees no CUDA device")
        pytest.skip("torch sees no CUDA device")


def _schedule_as_usual() -> None:
    """Undo what an encoder did: SVT-AV1, run by root, leaves its caller with real-time priority.

    Every later test would inherit it, and threads that wait for each other by spinning never yield.
    """
    if hasattr(os, "sched_setscheduler") and os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    _schedule_as_usual()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    _schedule_as_usual()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """Undo what a command did that ran in this process: two threads of torch, which wait for each other by
    spinning, on processors that other tests use too, made all that came after it ten times as slow."""
    torch = sys.modules.get("torch")
    before = None if torch is None else torch.get_num_threads()
    result = yield
    if torch is not None and torch.get_num_threads() != before:
        torch.set_num_threads(before)
    return result


LONGEST = (
    "training/demo/test_model.py",
    "indexer/maintenance/test_reindexing.py",
    "indexer/postgres/test_writers.py",
    "indexer/postgres/test_broken_connections.py",
    "training/evaluation/test_evaluation.py",
    "indexer/maintenance/test_export.py",
    "service/ingest/test_worker.py",
    "test_end_to_end.py",
    "model/kernels/test_numba_attention.py",
    "model/kernels/test_tower_kernels.py",
    "model/kernels/test_triton_attention.py",
    "model/test_runtimes.py",
    "model/test_goldens.py",
    "console/test_watch.py",
    "training/test_trainer.py",
    "model/test_quick_start.py",
    "training/test_gather.py",
    "service/test_database_away.py",
    "service/test_ending_while_loading.py",
    "service/routes/test_api_fuzzing.py",
)
"""Files that take more than five seconds: begun last, one would run alone while the other cores wait."""


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist begins with the files above, not with those of most tests: many tests are quick ones."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(optionalhook=True, wrapper=True)
def pytest_xdist_auto_num_workers() -> Iterator[int]:
    """One more than pytest-xdist finds cores: tests wait for processes and for timeouts."""
    found = yield
    return found if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else found + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {REPOSITORY / "tests" / name: rank for rank, name in enumerate(LONGEST)}
    assert all(path.is_file() for path in ranks)
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))
