"""Encodes the files of a plan on the machines of a Ray cluster, into a store that all of them reach.

    driver: plan -> queue of actions ------> actors: fetch -> decode -> encode -> store
                 <- what became of each <-

An actor is a process that holds a model, decoding children and its own connection to the store, for as long
as the run lasts. Actions go in and `StoredFile`s come out, some hundred bytes each; pixels and features never
leave an actor but for the store. Each video is one transaction there, so that the store is the checkpoint:
what an actor had in hand when it died is given to another one, which finds what was stored already
(docs/decisions/0029).
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from indexer.errors import ClusterError, ClusterStalledError
from indexer.ingest.pipeline import DecodeOptions, IndexEvent, IndexingPipeline
from indexer.ingest.planning import Action
from indexer.ingest.storing import StoredFile, encode_and_store
from indexer.store.postgres.address import is_postgres_address
from indexer.store.store import Store, open_store

DEFAULT_DECODERS: Final = 4
"""Decoding children of an actor. A GPU wants more of them."""

MAX_DEATHS: Final = 3
"""A file that was in hand at so many deaths of actors, the last time alone, is what they died of."""

ANSWER_SECONDS: Final = 1.0
"""An actor answers at least this often, so that what it has done is seen."""

COUNT_SECONDS: Final = 5.0
"""Between two looks at the store's count."""

CLOSE_SECONDS: Final = 10.0
PAUSE_SECONDS: Final = 0.2
_CONNECT_SECONDS: Final = 5.0
_HANDSHAKE_SECONDS: Final = 4.0
"""Ray's head answers within milliseconds."""

_NO_SUCH_FILE: Final = "the file cannot be read (No such file or directory)"
"""What a decoder says of a file that is gone."""

logger = logging.getLogger("xclip_search.ingest")


@dataclass(frozen=True)
class ClusterOptions:
    """How a Ray cluster is used.

    Attributes:
        address: of the cluster; `auto` for the one of RAY_ADDRESS or of this machine, `local` for a new one.
        num_actors: None for as many as the nodes have room for now.
        num_decoders: decoding children of each actor, which takes as many processors.
        num_gpus: of each actor; a part of one may be shared.
        stall_seconds: the run ends where nothing was stored or answered for so long.
        model: spec, where it is not that of the index (a folder that was moved).
        device, runtime: of the model, see `XClip.load`.
        batch_size, decoding: of `IndexingPipeline`.
    """

    address: str = "auto"
    num_actors: int | None = None
    num_decoders: int = DEFAULT_DECODERS
    num_gpus: float = 0.0
    stall_seconds: float = 1800.0
    model: str | None = None
    device: str = "auto"
    runtime: str = "auto"
    batch_size: int | None = None
    decoding: DecodeOptions = field(default_factory=DecodeOptions)

    @property
    def num_cpus(self) -> int:
        """Processors of an actor. Ray does not see its children.

        One for each of them, as on one machine: they take what the encoder leaves.
        """
        return self.num_decoders


@dataclass(frozen=True)
class _Absent:
    """A file that a node does not see."""

    path: str
    node: str


class EncodingActor:
    """One process of the cluster. A thread of it encodes without a pause; its only method exchanges."""

    def __init__(self, address: str, fingerprint: str, model_spec: str, options: ClusterOptions) -> None:
        # Before PyTorch is loaded: threads that spin while they wait keep decoding off processors.
        os.putenv("OMP_WAIT_POLICY", "PASSIVE")
        from model.xclip import XClip

        self._catalog = open_store(address, fingerprint=fingerprint)
        model = XClip.load(model_spec, options.device, options.runtime)
        pipeline = IndexingPipeline(
            self._catalog,
            model,
            num_workers=options.num_decoders,
            batch_size=options.batch_size,
            decoding=options.decoding,
        )
        self._encoder = pipeline.encoder()
        self._given: queue.SimpleQueue[Action | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[StoredFile | _Absent | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._encode, name="encode", daemon=True)
        self._thread.start()

    def exchange(self, actions: Sequence[Action]) -> list[StoredFile | _Absent]:
        """Take more to do; what was done since the last call, waiting a moment for the first of it.

        Raises what ended the work as a whole, see `IndexingPipeline.run`.
        """
        for action in actions:
            self._given.put(action)
        done: list[StoredFile | _Absent] = []
        with contextlib.suppress(queue.Empty):
            done.append(self._checked(self._done.get(timeout=ANSWER_SECONDS)))
            while True:
                done.append(self._checked(self._done.get_nowait()))
        return done

    def close(self) -> None:
        """End the children, and close the store."""
        self._given.put(None)
        self._encoder.__exit__(None, None, None)
        self._catalog.close()

    @staticmethod
    def _checked(done: StoredFile | _Absent | BaseException) -> StoredFile | _Absent:
        if isinstance(done, BaseException):
            raise done
        return done

    def _encode(self) -> None:
        try:
            for stored in encode_and_store(self._catalog, self._encoder, self._actions()):
                self._done.put(stored)
        except BaseException as error:
            self._done.put(error)

    def _actions(self) -> Iterator[Action | None]:
        """What is given, and None where nothing is waiting now."""
        while True:
            try:
                action = self._given.get_nowait()
            except queue.Empty:
                yield None
                continue
            if action is None:
                return
            path = action.file.source.path
            if isinstance(path, Path) and not os.path.lexists(path):
                self._done.put(_Absent(str(path), socket.gethostname()))
                continue
            yield action


@dataclass
class _Member:
    """An actor as the driver sees it. answer: to the exchange under way. given: what it has in hand."""

    actor: Any
    answer: Any
    given: dict[str, Action] = field(default_factory=dict)
    is_alive: bool = False


class ClusterEncoding:
    """Encodes actions by the actors of a cluster; an `EncodeActions` of `Synchronisation`."""

    def __init__(
        self,
        options: ClusterOptions,
        on_started: Callable[[int, int], None] = lambda num_started, num_actors: None,
    ) -> None:
        """on_started: called with how many actors work and how many are to, whenever that changes."""
        self.options = options
        self._on_started = on_started
        # Each decoding child has one file in hand and one waiting; a few more cover the time of an answer.
        self._capacity = 4 * options.num_decoders + 4

    def __call__(self, catalog: Store[Any], actions: Sequence[Action]) -> Generator[StoredFile]:
        """Encode and store all, and yield what became of each, once.

        Raises:
            ClusterError: there is no cluster, or no room in it.
            ClusterStalledError: nothing happened for `stall_seconds`.
            IndexerError, OSError, RuntimeError: what an actor found to concern the index as a whole.
        """
        require_shared_store(catalog.address)
        with _connected(self.options) as ray:
            num_actors = min(self.options.num_actors or _num_that_fit(ray, self.options), len(actions))
            run = _Run(ray, self.options, self._capacity, catalog, actions)
            try:
                run.start(num_actors)
                yield from run.results(self._on_started)
            finally:
                run.stop()


def require_shared_store(address: str | Path) -> None:
    """Raises ClusterError where a store is of one machine alone."""
    if not is_postgres_address(address):
        raise ClusterError(
            "--ray is for an index that several machines share: name one in PostgreSQL"
            " (--index postgresql://user@host/database, docs/cluster.md), or leave --ray out"
        )


def require_cluster(options: ClusterOptions) -> None:
    """See that there is a cluster with room for an actor, before hours are spent on looking at files.

    Raises:
        ClusterError: there is none.
    """
    if options.address == "local":  # It is made for the run.
        _import_ray()
        return
    with _connected(options) as ray:
        if options.num_actors is None:
            _num_that_fit(ray, options)


class _Run:
    """One call of `ClusterEncoding`."""

    def __init__(
        self,
        ray: Any,
        options: ClusterOptions,
        capacity: int,
        catalog: Store[Any],
        actions: Sequence[Action],
    ) -> None:
        self._ray = ray
        self._options = options
        self._capacity = capacity
        self._catalog = catalog
        self._waiting = deque(actions)
        self._suspects: deque[Action] = deque()
        self._deaths: Counter[str] = Counter()
        self._members: list[_Member] = []
        self._watch = _Watch(catalog, options.stall_seconds)
        self._num_left = len(actions)

    def start(self, num_actors: int) -> None:
        """Begin the actors. Those that have no room yet wait for it, and hold nothing up."""
        options = self._options
        actor_class = self._ray.remote(EncodingActor).options(
            num_cpus=options.num_cpus, num_gpus=options.num_gpus, max_restarts=-1, max_task_retries=0
        )
        for _ in range(num_actors):
            spec = options.model or self._catalog.model_spec
            actor = actor_class.remote(str(self._catalog.address), self._catalog.fingerprint, spec, options)
            # Nothing is given before an actor has answered: one that never starts would keep it.
            self._members.append(_Member(actor, actor.exchange.remote([])))

    def stop(self) -> None:
        """End all actors and their children."""
        closing = [member.actor.close.remote() for member in self._members if member.is_alive]
        with contextlib.suppress(Exception):
            self._ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
        for member in self._members:
            with contextlib.suppress(Exception):
                self._ray.kill(member.actor)

    def results(
        self, on_started: Callable[[int, int], None] = lambda num_started, num_actors: None
    ) -> Iterator[StoredFile]:
        """Hand out work and take answers until all is done."""
        num_started = -1
        while self._num_left:
            num_now = sum(member.is_alive for member in self._members)
            if num_now != num_started:
                num_started = num_now
                on_started(num_started, len(self._members))
            by_answer = {member.answer: member for member in self._members}
            ready, _ = self._ray.wait(list(by_answer), num_returns=1, timeout=COUNT_SECONDS)
            for answer in ready:
                for stored in self._take(by_answer[answer], answer):
                    self._num_left -= 1
                    self._watch.note()
                    yield stored
            self._watch.check()

    def _take(self, member: _Member, answer: Any) -> Iterator[StoredFile]:
        """What an actor has done; then it is given more."""
        from ray.exceptions import RayActorError, RayTaskError

        try:
            done = self._ray.get(answer)
            member.is_alive = True
        except RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, Exception) else error from None
        except RayActorError as error:
            yield from self._take_back(member, error)
            done = []
            time.sleep(PAUSE_SECONDS)  # Ray may say the same again at once, until it has begun another one.
        for one in done:
            key = one.path if isinstance(one, _Absent) else str(one.event.source.path)
            action = member.given.pop(key, None)
            if action is not None:
                yield _as_seen_here(action, one) if isinstance(one, _Absent) else self._as_of_one_try(one)
        member.answer = member.actor.exchange.remote(self._more_for(member))

    def _more_for(self, member: _Member) -> list[Action]:
        if not member.is_alive:
            return []
        more: list[Action] = []
        has_suspect = any(self._deaths[key] >= MAX_DEATHS - 1 for key in member.given)
        if self._suspects and not member.given:
            more.append(self._suspects.popleft())  # Alone, so that it alone is to blame.
        elif not self._suspects and not has_suspect:
            while self._waiting and len(member.given) + len(more) < self._capacity:
                more.append(self._waiting.popleft())
        member.given |= {str(action.file.source.path): action for action in more}
        return more

    def _take_back(self, member: _Member, error: Exception) -> Iterator[StoredFile]:
        """An actor has died: others get what it had in hand."""
        if "creation task" in str(error):  # Its constructor raised: on another node it would too.
            raise ClusterError(_why_none_starts(error)) from None
        cause = _lines(error)[0]
        if member.is_alive:  # Else it was said already: it is being started again.
            logger.warning(
                "an actor was lost; the %d files that it had in hand go to others (%s)",
                len(member.given),
                cause,
            )
        given, member.given, member.is_alive = member.given, {}, False
        for key, action in given.items():
            self._deaths[key] += 1
            if self._deaths[key] >= MAX_DEATHS:
                reason = f"the process that read it died {MAX_DEATHS} times: {cause}"
                yield StoredFile(IndexEvent(action.file.source, "failed", None, reason))
            elif self._deaths[key] == MAX_DEATHS - 1:
                self._suspects.append(action)
            else:
                self._waiting.appendleft(action)

    def _as_of_one_try(self, stored: StoredFile) -> StoredFile:
        """A file that was stored just before its actor died is `unchanged` to the next one: it was added."""
        event = stored.event
        if event.outcome != "unchanged" or not self._deaths[str(event.source.path)] or event.video_id is None:
            return stored
        num_segments = len(self._catalog.video_segments(event.video_id))
        return replace(stored, event=replace(event, outcome="added"), num_segments=num_segments)


class _Watch:
    """Notices that nothing happens any more.

    The store is asked too: an actor that is cut off from here may still add videos.
    """

    def __init__(self, catalog: Store[Any], stall_seconds: float) -> None:
        self._catalog = catalog
        self._stall_seconds = stall_seconds
        self._sequence = catalog.sequence
        self._last_change = self._last_look = time.monotonic()

    def note(self) -> None:
        """Something has happened."""
        self._last_change = time.monotonic()

    def check(self) -> None:
        """Raises ClusterStalledError where nothing has for too long."""
        now = time.monotonic()
        if now - self._last_look < COUNT_SECONDS:
            return
        self._last_look = now
        sequence = self._catalog.sequence
        if sequence != self._sequence:
            self._sequence = sequence
            self._last_change = now
        if now - self._last_change >= self._stall_seconds:
            raise ClusterStalledError(
                f"nothing was added or reported for {self._stall_seconds:g} seconds: no node may have room"
                " for an actor (`ray status` shows it), or the nodes do not reach the store or the files."
                " What was added stays; the same command goes on"
            )


def _as_seen_here(action: Action, absent: _Absent) -> StoredFile:
    """What becomes of a file that a node does not see: it is gone, or the node lacks a mount.

    Without this, such a node would fail the whole library, faster than the others encode it.
    """
    if os.path.lexists(absent.path):
        raise ClusterError(
            f"the node {absent.node} does not see {absent.path}, which is here: files lie at the same path on"
            " all nodes (a shared mount), or at addresses such as s3://. What was added stays"
        )
    return StoredFile(IndexEvent(action.file.source, "failed", None, _NO_SUCH_FILE))


def _why_none_starts(error: Exception) -> str:
    """What the constructor of an actor raised, for the user."""
    said = re.sub(r"^([a-z_]+\.)+\w+: ", "", _lines(error)[-1])
    where = re.search(r"ip=([^,)\s]+)", str(error))
    node = f" on the node {where[1]}" if where else ""
    help_ = ": install xclip-search there, in the same version" if "No module named" in said else ""
    return f"the actors cannot start{node}: {said}{help_}"


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ClusterError("--ray needs Ray: pip install 'xclip-search[ray]'") from None
    return ray


@contextlib.contextmanager
def _connected(options: ClusterOptions) -> Iterator[Any]:
    """Ray, connected to the cluster. A connection that the caller had made stays."""
    ray = _import_ray()
    is_ours = not ray.is_initialized()
    if is_ours:
        try:
            _require_answer(options.address)
            ray.init(options.address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises errors of many classes here, the plain one too.
            raise ClusterError(_why_not_connected(options.address, error)) from None
    try:
        with _quiet(ray) if is_ours else contextlib.nullcontext():
            yield ray
    finally:
        if is_ours:
            ray.shutdown()


def _why_not_connected(address: str, error: Exception) -> str:
    said = _lines(error)[0]
    if address == "local":
        return f"Ray does not start on this machine: {said}"
    instead = "`ray start --head` starts one, --ray local one for this run"
    if address == "auto":
        return (
            f"no Ray cluster runs on this machine, and RAY_ADDRESS names none elsewhere: {instead} ({said})"
        )
    return f"there is no Ray cluster at {address}: {said}; {instead}"


@contextlib.contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Log what Ray prints on the terminal of each death: pages of it, in the middle of progress bars."""

    def log(message: Any, *_: Any, **__: Any) -> None:
        logger.info("Ray: %s", "; ".join(message.get("lines", ()))[:1000])

    with contextlib.ExitStack() as stack:
        worker: Any = getattr(getattr(ray, "_private", None), "worker", None)  # There is no public way.
        if hasattr(worker, "print_to_stdstream"):
            stack.callback(setattr, worker, "print_to_stdstream", worker.print_to_stdstream)
            worker.print_to_stdstream = log
        yield


def _require_answer(address: str) -> None:
    """Raise an error where not Ray's head answers at HOST:PORT: Ray itself tries for many minutes."""
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdecimal()) or "/" in host:
        return
    socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    from ray import _raylet

    answered: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            _raylet.GcsClient(address=address)  # type: ignore[attr-defined]  # A compiled module.
            answered.put(None)
        except Exception as error:
            answered.put(error)

    threading.Thread(target=ask, name="ask Ray", daemon=True).start()
    try:
        error = answered.get(timeout=_HANDSHAKE_SECONDS)
    except queue.Empty:
        raise TimeoutError("what listens there is not the head of a Ray cluster") from None
    if error is not None:
        raise ConnectionError(f"what listens there is not the head of a Ray cluster ({_lines(error)[0]})")


def _num_that_fit(ray: Any, options: ClusterOptions) -> int:
    """Actors that the nodes have room for. Raises ClusterError where no node has for one."""
    fitting = most_cpus = 0
    for node in ray.nodes():
        if node["Alive"]:
            resources = node["Resources"]
            num_cpus = int(resources.get("CPU", 0))
            most_cpus = max(most_cpus, num_cpus)
            room = num_cpus // options.num_cpus
            if options.num_gpus:
                room = min(room, int(resources.get("GPU", 0) // options.num_gpus))
            fitting += room
    if fitting:
        return fitting
    gpus = f" and {options.num_gpus:g} GPU" if options.num_gpus else ""
    raise ClusterError(
        f"no node of the cluster has {options.num_cpus} CPU{gpus}, which an actor takes; the largest has"
        f" {most_cpus} CPU. --workers says how many CPU it takes"
        + (", --ray-gpus how many GPU" if gpus else "")
    )


def _lines(error: Exception) -> list[str]:
    """What an error says, at least one line."""
    return [line.strip()[:300] for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
