"""What a decoding child that a file has compromised may do: nothing but answer, and nothing absurd."""

from __future__ import annotations

import errno
import json
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from indexer.errors import DecoderDiedError, DecodeTimeoutError, MediaError, MediaLimitError
from indexer.media import decode_pool
from indexer.media.decode_messages import (
    HashedFile,
    decoded_from_message,
    decoded_to_message,
    error_from_message,
    hashed_from_message,
)
from indexer.media.decode_pool import DecodePool, DecodeRequest
from indexer.media.sampling import Sampling
from model.preprocessing import Resizing
from tests.support.video_files import write_numbered_video

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to these limits")


def _request(path: Path) -> DecodeRequest:
    return DecodeRequest(str(path), Sampling(2), Resizing(32))


# Limits on what a child may do: a stand-in tries what a compromised decoder would

ATTEMPTS = """
import json, os, resource, socket, subprocess, sys, threading
sys.path.insert(0, sys.argv[2])
import indexer.media.decode_child as child
from indexer.errors import MediaError
open_before = open(sys.argv[3] + '/opened-before', 'wb', buffering=0)
held = []
def many_files():
    while True: held.append(open('/dev/null'))
def memory():
    while True: held.append(bytearray(16 << 20))
def spin():
    while True: pass
def thread():
    done = []
    one = threading.Thread(target=lambda: done.append(1)); one.start(); one.join()
    assert done
def tcp(): socket.create_connection(('127.0.0.1', int(sys.argv[4])), 1)
def udp(): socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def local(): socket.socket(socket.AF_UNIX)
def program(): os.execv('/bin/true', ['true'])
def process(): subprocess.run(['/bin/true'])
def fork():
    if os.fork() == 0: os._exit(0)
def kill_parent(): os.kill(os.getppid(), 0)
def kill_all(): os.kill(-1, 0)
def write_old(): os.write(open_before.fileno(), b'x')
def write_new(): open(sys.argv[3] + '/new', 'wb')
def append(): open(sys.argv[3] + '/opened-before', 'ab')
def scratch(): open('new', 'wb')
def remove(): os.unlink(sys.argv[3] + '/opened-before')
def rename(): os.rename(sys.argv[3] + '/opened-before', sys.argv[3] + '/other')
def folder(): os.mkdir(sys.argv[3] + '/folder')
def mode(): os.chmod(sys.argv[3] + '/opened-before', 0o777)
def in_memory(): os.memfd_create('x')
def look():
    names = ('AS', 'FSIZE', 'CORE', 'NOFILE', 'CPU')
    limits = {name: resource.getrlimit(getattr(resource, 'RLIMIT_' + name))[0] for name in names}
    seen = {'limits': limits, 'folder': os.listdir('.'), 'environment': dict(os.environ)}
    raise MediaError(json.dumps(seen))
def decode(request, files):
    try:
        globals()[os.path.basename(request.path)]()
    except OSError as error:
        raise MediaError('errno ' + str(error.errno))
    finally:
        held.clear()
    raise MediaError('done')
child._decode = decode
child.serve(int(sys.argv[1]))
"""

Attempt = Callable[[str], MediaError]


@pytest.fixture
def attempt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Attempt]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.01)
        port = server.getsockname()[1]
        program = ATTEMPTS.replace("sys.argv[3]", repr(str(tmp_path))).replace("sys.argv[4]", repr(str(port)))
        monkeypatch.setattr(decode_pool, "_CHILD_PROGRAM", program)
        with DecodePool(1, 60, memory_limit_bytes=256 << 20, processor_seconds=1) as pool:

            def try_it(name: str) -> MediaError:
                with pytest.raises(MediaError) as caught:
                    pool.submit(_request(tmp_path / name)).result()
                return caught.value

            try_it.pool = pool  # type: ignore[attr-defined]
            yield try_it
        with pytest.raises(TimeoutError):
            server.accept()


@linux_only
def test_a_child_writes_no_byte_opens_few_files_and_takes_little_memory(
    attempt: Attempt, tmp_path: Path
) -> None:
    assert attempt("write_old").reason == f"errno {errno.EFBIG}"
    assert (tmp_path / "opened-before").stat().st_size == 0
    assert attempt("many_files").reason == f"errno {errno.EMFILE}"
    assert isinstance(attempt("memory"), MediaLimitError)
    assert "memory" in attempt("memory").reason
    assert attempt("thread").reason == "done"


@linux_only
def test_a_child_that_uses_too_much_processor_time_is_ended_and_replaced(attempt: Attempt) -> None:
    error = attempt("spin")
    assert isinstance(error, DecodeTimeoutError)
    assert "processor" in error.reason
    assert attempt("thread").reason == "done"


@linux_only
def test_a_child_has_no_environment_an_empty_folder_that_is_gone_and_low_limits(attempt: Attempt) -> None:
    seen = json.loads(attempt("look").reason)
    assert seen["folder"] == []
    assert set(seen["environment"]) <= {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PATH", "LC_CTYPE"}
    assert seen["environment"]["PATH"] == ""
    limits = seen["limits"]
    assert (limits["FSIZE"], limits["CORE"], limits["NOFILE"]) == (0, 0, 64)
    assert 0 < limits["CPU"] < 60
    assert 0 < limits["AS"] < 64 << 30
    (child,) = attempt.pool._children  # type: ignore[attr-defined]
    folder = str(Path(f"/proc/{child._process.pid}/cwd").readlink())
    assert folder.endswith("(deleted)")
    assert not Path(folder.removesuffix(" (deleted)")).exists()
    assert attempt("scratch").reason in (f"errno {errno.EPERM}", f"errno {errno.ENOENT}")


REFUSED = ["tcp", "udp", "local", "program", "process", "fork", "kill_parent", "kill_all", "write_new"]
REFUSED += ["append", "remove", "rename", "folder", "mode", "in_memory"]


@linux_only
def test_the_kernel_refuses_a_child_what_decoding_never_needs(attempt: Attempt, tmp_path: Path) -> None:
    assert attempt("thread").reason == "done"
    if not attempt.pool._children[0].is_filtered:  # type: ignore[attr-defined]
        pytest.skip("this kernel filters no system calls")
    assert {what: attempt(what).reason for what in REFUSED} == dict.fromkeys(REFUSED, f"errno {errno.EPERM}")
    assert [path.name for path in tmp_path.iterdir()] == ["opened-before"]
    assert attempt("thread").reason == "done"


# A compromised child may answer anything


def test_answers_that_cannot_be_are_refused(tmp_path: Path) -> None:
    request = _request(write_numbered_video(tmp_path / "a.mp4", 90))
    with DecodePool(1, 60) as pool:
        header, parts = decoded_to_message(pool.submit(request).result())
    payload = bytearray(b"".join(parts))
    good = json.loads(json.dumps(header))
    assert decoded_from_message(good, payload, request).num_segments == 1
    segment = good["segments"][0]
    for change in (
        {"info": {**good["info"], "width": "128"}},
        {"info": {**good["info"], "num_frames": -1}},
        {"info": {**good["info"], "duration_seconds": float("nan")}},
        {"info": {**good["info"], "frame_rate": 1e400}},
        {"info": {**good["info"], "codec": "<script>"}},
        {"info": {**good["info"], "container": ["mp4"]}},
        {"info": {**good["info"], "rotation_degrees": 45}},
        {"num_segments": 10**9},
        {"num_segments": 0},
        {"num_segments": True},
        {"fraction_read": 1.5},
        {"fraction_read": float("nan")},
        {"fraction_read": 0.5, "partial": False},
        {"segments": [{**segment, "frame_times": [0, float("inf")]}]},
        {"segments": [{**segment, "frame_times": [-1, 0]}]},
        {"segments": [{**segment, "frame_times": [[0], [1]]}]},
        {"segments": [{**segment, "start_seconds": 9, "end_seconds": 1}]},
        {"segments": [{**segment, "start_seconds": 10**400}]},
        {"segments": [{**segment, "frame_times": [10**400]}]},
        {"decode_seconds": "soon"},
        {"decode_seconds": 10**400},
    ):
        with pytest.raises(DecoderDiedError, match="invalid answer"):
            decoded_from_message({**good, **change}, payload, request)
    hashed = {"content_sha256": "0" * 64, "stamp": [1, 2, 3, 4]}
    assert hashed_from_message(hashed) == HashedFile("0" * 64, (1, 2, 3, 4))
    for change in (
        {"content_sha256": "../../etc/passwd"},
        {"content_sha256": None},
        {"stamp": [1, 2, 3]},
        {"stamp": [1, 2, 3, 4.5]},
        {"stamp": None},
    ):
        with pytest.raises(DecoderDiedError, match="invalid answer"):
            hashed_from_message({**hashed, **change})
    odd = error_from_message({"error": "IndexDamagedError", "reason": "a\x1b[2Jb\n" + "c" * 5000})
    assert type(odd) is DecoderDiedError
    assert odd.reason.startswith("a [2Jb c")
    assert len(odd.reason) == 1000


LIES = """
import os, socket, struct, sys
sys.path.insert(0, sys.argv[2])
import indexer.media.decode_child as child
from indexer.media.decode_messages import send_message
connection = socket.socket(fileno=os.dup(int(sys.argv[1])))
def decode(request, files):
    name = os.path.basename(request.path)
    if name == 'nested':
        text = b'{"a":' * 300000
        connection.sendall(struct.pack('!IQ', len(text), 0) + text)
    if name == 'large':
        connection.sendall(struct.pack('!IQ', 2, 1 << 40) + b'{}')
    if name == 'hash':
        send_message(connection, {'kind': 'hash', 'content_sha256': '0' * 64, 'stamp': [1, 2, 3, 4]})
    connection.recv(1)
child._decode = decode
child._hash = lambda path, limits: {'content_sha256': 'x' * 64, 'stamp': [1, 2, 3, 4]}
child._take_picture = lambda header, limits: b'<html>'
child.serve(int(sys.argv[1]))
"""


def test_messages_that_cannot_be_end_the_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(decode_pool, "_CHILD_PROGRAM", LIES)
    with DecodePool(1, 20) as pool:
        for name in ("nested", "large", "hash"):
            with pytest.raises(DecoderDiedError, match="invalid answer"):
                pool.submit(_request(tmp_path / name)).result()
        with pytest.raises(DecoderDiedError, match="invalid answer"):
            pool.submit_hash(tmp_path / "a.mp4").result()
        with pytest.raises(DecoderDiedError, match="invalid answer"):
            pool.submit_picture(tmp_path / "a.mp4", 0, 64).result()
