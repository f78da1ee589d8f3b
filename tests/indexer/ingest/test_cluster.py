"""Files are encoded by the actors of a Ray cluster: none is lost and none stored twice when actors die."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from indexer.errors import ClusterError, ClusterStalledError, IndexerError, IndexStorageError
from indexer.index import Index
from indexer.ingest import cluster
from indexer.ingest.cluster import ClusterEncoding, ClusterOptions, require_shared_store
from indexer.ingest.manifest import VideoSource
from indexer.ingest.pipeline import IndexEvent
from indexer.ingest.planning import Action, Found
from indexer.ingest.remote_files import RemoteFile
from indexer.ingest.storing import StoredFile
from indexer.ingest.synchronisation import Progress, Synchronisation, SyncReport
from indexer.store.store import open_store
from tests.support.library_stand_in import HEAD, check_sum, counts
from tests.support.postgres import PostgresServer
from tests.support.video_files import write_coloured_video

REPOSITORY = Path(__file__).resolve().parents[3]

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Ray's own.
]


# Without a cluster: what the driver does with the answers of actors.


def action(name: str) -> Action:
    source = VideoSource(Path(f"/films/{name}"))
    return Action(Found(f"file:///films/{name}", 1, 1, source), "encode")


@dataclass
class StandInStore:
    """A store that says its address, and of which number its last change is."""

    sequence: int = 0
    address: str = "postgresql:///videos"
    fingerprint: str = "f" * 64
    model_spec: str = "demo"

    def video_segments(self, video_id: str) -> list[int]:
        return [1, 2]


@dataclass
class StandInActor:
    """Does one file at each exchange, and dies of those that are poison."""

    poison: frozenset[str]
    stored: set[str]
    given: list[Action] = field(default_factory=list)
    is_closed: bool = False

    def do(self, actions: Sequence[Action]) -> list[Any]:
        self.given += actions
        if not self.given:
            return []
        source = self.given[0].file.source
        if source.path.name.startswith("unseen"):
            del self.given[0]
            return [cluster._Absent(str(source.path), "node-2")]
        if source.path.name in self.poison:
            self.given.clear()  # The next one of this name begins with nothing.
            raise ray.exceptions.RayActorError(error_msg="killed by signal 9")
        del self.given[0]
        if source.path.name.startswith("full"):
            raise ray.exceptions.RayTaskError("exchange", "", IndexStorageError("the disk is full"))
        outcome = "unchanged" if source.path.name in self.stored else "added"
        self.stored.add(source.path.name)
        return [StoredFile(IndexEvent(source, outcome, source.path.name), num_segments=1)]


class StandInRay:
    """As much of Ray as the driver uses. Answers are made when they are asked for."""

    def __init__(self, *poison: str, stored: Sequence[str] = ()) -> None:
        self.actors: list[StandInActor] = []
        self.poison, self.stored = frozenset(poison), set(stored)
        self.largest_given = 0

    def remote(self, actor_class: type) -> StandInRay:
        return self

    def options(self, **options: Any) -> Any:
        outer = self

        class Handle:
            def remote(self, *arguments: Any) -> Any:
                actor = StandInActor(outer.poison, outer.stored)
                outer.actors.append(actor)
                return _Handle(actor, outer)

        return Handle()

    def wait(self, answers: list[Any], *, num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return answers[:], []

    def get(self, answer: _Answer) -> list[Any]:
        self.largest_given = max(self.largest_given, len(answer.actor.given) + len(answer.actions))
        return answer.actor.do(answer.actions)

    def kill(self, actor: Any) -> None:
        pass


@dataclass(eq=False)
class _Answer:
    actor: StandInActor
    actions: Sequence[Action]


class _Handle:
    def __init__(self, actor: StandInActor, outer: StandInRay) -> None:
        self._actor = actor
        self.exchange = self.close = self

    def remote(self, actions: Sequence[Action] = ()) -> Any:
        return _Answer(self._actor, tuple(actions))


def run_of(stand_in: StandInRay, names: Sequence[str], num_actors: int = 2) -> dict[str, IndexEvent]:
    """What became of each file, after all are done."""
    run = cluster._Run(stand_in, ClusterOptions(), 4, StandInStore(), [action(name) for name in names])  # type: ignore[arg-type]
    run.start(num_actors)
    events: dict[str, IndexEvent] = {}
    for stored in run.results():
        name = stored.event.source.path.name
        assert name not in events, f"{name} was counted twice"
        events[name] = stored.event
    run.stop()
    return events


def test_all_files_are_encoded_once_and_no_actor_has_too_many() -> None:
    stand_in = StandInRay()
    names = [f"{number}.mp4" for number in range(30)]
    events = run_of(stand_in, names)
    assert set(events) == set(names) and {event.outcome for event in events.values()} == {"added"}
    assert all(not actor.given for actor in stand_in.actors) and 1 < stand_in.largest_given <= 4


def test_a_file_that_kills_its_actor_fails_alone() -> None:
    names = [f"{number}.mp4" for number in range(20)]
    events = run_of(StandInRay("7.mp4"), names)
    assert {name for name, event in events.items() if event.outcome == "failed"} == {"7.mp4"}
    assert "died 3 times: killed by signal 9" in (events["7.mp4"].reason or "")
    assert len(events) == 20


def test_what_an_actor_stored_before_it_died_counts_as_added() -> None:
    stand_in = StandInRay(stored=["a.mp4", "b.mp4"])
    run = cluster._Run(stand_in, ClusterOptions(), 4, StandInStore(), [action("a.mp4"), action("b.mp4")])  # type: ignore[arg-type]
    run._deaths["/films/a.mp4"] = 1
    run.start(1)
    done = {stored.event.source.path.name: stored for stored in run.results()}
    assert (done["a.mp4"].event.outcome, done["a.mp4"].num_segments) == ("added", 2)
    assert done["b.mp4"].event.outcome == "unchanged", "another process had added it"


def test_what_concerns_the_whole_index_ends_the_run() -> None:
    with pytest.raises(IndexStorageError, match="disk is full"):
        run_of(StandInRay(), ["a.mp4", "full.mp4", "b.mp4"], num_actors=1)


def test_a_file_that_is_gone_fails_as_without_a_cluster() -> None:
    events = run_of(StandInRay(), ["a.mp4", "unseen.mp4"])
    assert events["unseen.mp4"].outcome == "failed"
    assert events["unseen.mp4"].reason == "the file cannot be read (No such file or directory)"
    assert events["a.mp4"].outcome == "added"


def test_a_node_that_does_not_see_the_files_ends_the_run(tmp_path: Path) -> None:
    """Else it would fail all of them, faster than the others encode."""
    (tmp_path / "unseen.mp4").write_bytes(HEAD)
    here = Action(Found("file:///unseen.mp4", 1, 1, VideoSource(tmp_path / "unseen.mp4")), "encode")
    run = cluster._Run(StandInRay(), ClusterOptions(), 4, StandInStore(), [here])  # type: ignore[arg-type]
    run.start(1)
    with pytest.raises(ClusterError, match=r"node-2 does not see .*unseen.mp4, which is here"):
        list(run.results())


def test_an_actor_looks_for_a_file_before_it_decodes_it(tmp_path: Path) -> None:
    actor = object.__new__(cluster.EncodingActor)
    actor._given, actor._done = queue.SimpleQueue(), queue.SimpleQueue()
    (tmp_path / "a.mp4").write_bytes(HEAD)
    for path in (tmp_path / "gone.mp4", tmp_path / "a.mp4", RemoteFile("s3://films/b.mp4")):
        actor._given.put(Action(Found(f"{path}", 1, 1, VideoSource(path)), "encode"))
    actor._given.put(None)
    taken = [str(action.file.source.path) for action in actor._actions() if action is not None]
    assert taken == [str(tmp_path / "a.mp4"), "s3://films/b.mp4"]
    absent = actor._done.get_nowait()
    assert isinstance(absent, cluster._Absent) and absent.path == str(tmp_path / "gone.mp4")


def test_a_loss_is_said_once_and_not_again_while_the_actor_starts(caplog: pytest.LogCaptureFixture) -> None:
    run = cluster._Run(StandInRay(), ClusterOptions(), 4, StandInStore(), [action("a.mp4")])  # type: ignore[arg-type]
    run.start(1)
    (member,) = run._members
    member.is_alive, member.given = True, {"/films/a.mp4": action("a.mp4")}
    for _ in range(3):
        list(run._take_back(member, ray.exceptions.RayActorError(error_msg="killed by signal 9")))
    (said,) = caplog.messages
    assert said == "an actor was lost; the 1 files that it had in hand go to others (killed by signal 9)"


def test_how_many_actors_work_is_told_as_they_start() -> None:
    run = cluster._Run(StandInRay(), ClusterOptions(), 4, StandInStore(), [action("a.mp4"), action("b.mp4")])  # type: ignore[arg-type]
    run.start(2)
    told: list[tuple[int, int]] = []
    assert len(list(run.results(lambda *numbers: told.append(numbers)))) == 2
    assert told == [(0, 2), (2, 2)]


def test_why_no_actor_starts_is_said_with_what_to_do() -> None:
    said = (
        "The actor died because of an error raised in its creation task, ray::EncodingActor.__init__()"
        " (pid=7, ip=10.0.0.7, actor_id=1)\n  File ...\n{}"
    )
    missing = cluster._why_none_starts(
        Exception(said.format("ModuleNotFoundError: No module named 'indexer'"))
    )
    assert missing.startswith("the actors cannot start on the node 10.0.0.7: ")
    assert missing.endswith("install xclip-search there, in the same version")
    lost = cluster._why_none_starts(Exception(said.format("model.errors.SpecError: 'x' names no model")))
    assert lost == "the actors cannot start on the node 10.0.0.7: 'x' names no model"


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"pip install 'xclip-search\[ray\]'"):
        cluster.require_cluster(ClusterOptions())


def test_without_a_cluster_on_this_machine_it_is_said_how_to_start_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", raise_connection_error)
    with pytest.raises(ClusterError, match=r"no Ray cluster runs on this machine.*`ray start --head`"):
        cluster.require_cluster(ClusterOptions())


def raise_connection_error(*_: Any, **__: Any) -> None:
    raise ConnectionError("Could not find any running Ray instance.")


def test_what_listens_but_is_no_cluster_is_refused_soon() -> None:
    """Ray itself asks for many minutes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(ClusterError, match="is not the head of a Ray cluster"):
            cluster.require_cluster(ClusterOptions(address=address))
    assert time.monotonic() - started < 30


def test_a_cluster_without_room_says_what_an_actor_takes() -> None:
    class Small:
        @staticmethod
        def nodes() -> list[dict[str, Any]]:
            alive = {"Alive": True, "Resources": {"CPU": 2.0}}
            return [alive, {"Alive": False, "Resources": {"CPU": 64.0}}]

    with pytest.raises(
        ClusterError, match=r"has 4 CPU, which an actor takes; the largest has 2 CPU. --workers"
    ):
        cluster._num_that_fit(Small(), ClusterOptions())
    assert cluster._num_that_fit(Small(), ClusterOptions(num_decoders=1)) == 2
    with pytest.raises(ClusterError, match=r"1 CPU and 0.5 GPU.*--ray-gpus"):
        cluster._num_that_fit(Small(), ClusterOptions(num_decoders=1, num_gpus=0.5))


def test_an_index_of_one_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="--index postgresql://"):
        require_shared_store(tmp_path)


def test_an_address_where_no_cluster_is_is_refused_at_once() -> None:
    pytest.importorskip("ray")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Not listening: connections are refused.
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        started = time.monotonic()
        with (
            pytest.raises(ClusterError, match=f"no Ray cluster at {address}.*ray start --head"),
            cluster._connected(ClusterOptions(address=address)),
        ):
            pass
    assert time.monotonic() - started < 30


def test_a_store_that_stands_still_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(cluster.time, "monotonic", lambda: now)
    store = StandInStore()
    watch = cluster._Watch(store, 60.0)  # type: ignore[arg-type]
    now = 59.0
    watch.check()
    store.sequence += 1  # An actor that cannot be heard has added a video.
    now = 70.0
    watch.check()
    now = 129.0
    watch.check()
    now = 136.0
    with pytest.raises(ClusterStalledError, match="60 seconds"):
        watch.check()


# With two nodes on this machine.


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of two nodes with two processors each; the second one is `nodes.second`."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    arguments = {"num_cpus": 2, "object_store_memory": 100 << 20, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args=arguments)
    started.second = started.add_node(num_cpus=2, object_store_memory=100 << 20)
    started.wait_for_nodes()
    ray.init(started.address, log_to_driver=False)
    yield started
    ray.shutdown()
    started.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "films").mkdir()
    for number in range(24):
        write_coloured_video(tmp_path / f"films/{number:02}.mp4", (10 * number, 200 - 5 * number, 77))
    (tmp_path / "films/broken.mp4").write_bytes(HEAD + b"but no video")
    return tmp_path / "films"


def synchronise(index: Index, folder: Path, on_event: Any, **options: Any) -> SyncReport:
    encoding = ClusterEncoding(ClusterOptions(num_decoders=2, **options))
    run = Synchronisation(
        index.catalog, index.pipeline, progress=Progress(on_event=on_event), encode_actions=encoding
    )
    report = run.run([folder])
    check_sum(report)
    return report


def kill_an_actor() -> None:
    """Let one process of an actor end as if the kernel had ended it."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"ray::EncodingActor" in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
                return
    raise AssertionError("no actor is running")


@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.parametrize("loss", ["none", "actor", "node"])
def test_two_nodes_add_each_video_once_whatever_dies(
    folder: Path, nodes: Any, postgres: PostgresServer, model_directory: Path, loss: str
) -> None:
    seen: list[str] = []

    def on_event(event: IndexEvent) -> None:
        seen.append(str(event.source.path))
        if len(seen) == 4 and loss == "actor":
            kill_an_actor()
        if len(seen) == 4 and loss == "node":
            nodes.remove_node(nodes.second, allow_graceful=False)

    with Index.create(postgres.address(), str(model_directory)) as index:
        report = synchronise(index, folder, on_event, stall_seconds=300)
        assert counts(report) == {"added": 24, "failed": 1}
        assert sorted(seen) == sorted(map(str, folder.iterdir())), "each file is reported once"
        videos = index.catalog.list_videos(100)
        assert len({video.content_sha256 for video in videos}) == len(videos) == 24
        again = synchronise(index, folder, on_event)
        assert counts(again) == {"unchanged": 24, "failed": 1}


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_a_cluster_without_room_is_refused_or_noticed(
    folder: Path, nodes: Any, postgres: PostgresServer, model_directory: Path
) -> None:
    with Index.create(postgres.address(), str(model_directory)) as index:
        encoding = ClusterEncoding(ClusterOptions(num_decoders=7))
        with pytest.raises(ClusterError, match="no node of the cluster has 7 CPU"):
            Synchronisation(index.catalog, index.pipeline, encode_actions=encoding).run([folder])
        encoding = ClusterEncoding(ClusterOptions(num_decoders=7, num_actors=1, stall_seconds=8))
        started = time.monotonic()
        with pytest.raises(ClusterStalledError, match="8 seconds"):
            Synchronisation(index.catalog, index.pipeline, encode_actions=encoding).run([folder])
        assert time.monotonic() - started < 120
        assert index.catalog.num_videos == 0


@pytest.mark.cluster
@pytest.mark.timeout(400)
def test_ctrl_c_keeps_what_is_stored_and_the_same_command_goes_on(
    folder: Path, postgres: PostgresServer, model_directory: Path
) -> None:
    address = postgres.address()
    command = [sys.executable, "-m", "xclip_search", "index", str(folder), "--index", address]
    command += ["--model", str(model_directory), "--ray", "local", "--workers", "1", "--ray-actors", "1"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    def allow_interrupts() -> None:  # A shell in the background lets its children ignore them.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        preexec_fn=allow_interrupts,
    ) as process:
        while num_stored(address) < 2 and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "interrupted; what is indexed is kept, and the same command resumes"
    assert 2 <= num_stored(address) < 24
    again = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert again.returncode == 3, again.stderr  # One file is broken.
    with open_store(address) as store:
        videos = store.list_videos(100)
    assert len({video.content_sha256 for video in videos}) == len(videos) == 24


def num_stored(address: str) -> int:
    """Videos of an index that may not be there yet."""
    with contextlib.suppress(IndexerError), open_store(address) as store:
        return store.num_videos
    return 0
