"""Is the end of SQLite's write-ahead log damaged? Looked at before SQLite opens it.

After a crash SQLite takes the log up to the first frame whose checksum is wrong: what comes after it was
being written. It cannot tell that from a bit that flipped in a change which was acknowledged, and would drop
it and all later ones without a word. Two witnesses can:

- the log's index in shared memory (`-shm`), which a killed process leaves behind: it is told of a change only
  when that is on disk, and holds the number and the checksum of its last frame;
- after a power failure, which takes that index away: frames of a later change behind the wrong one, since a
  change is only begun when the one before it is on disk.

Layouts: sqlite.org/fileformat2.html (section 4), sqlite.org/walformat.html (section 2).
"""

from __future__ import annotations

import functools
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from indexer.errors import IndexDamagedError

_LITTLE_ENDIAN_MAGIC: Final = 0x377F0682
_VERSION: Final = 3_007_000
_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24
_INDEX_HEADER_BYTES: Final = 48
_FRAMES_AT_ONCE: Final = 128
_TRIES: Final = 3
_PAUSE_SECONDS: Final = 0.05


@dataclass(frozen=True)
class _Acknowledged:
    """What the index in shared memory says: the log with these `salts` holds `num_frames`, the last of them
    with `checksum`; `num_copied` of them are in the database itself."""

    salts: bytes
    num_frames: int
    checksum: list[int]
    num_copied: int


def check_log(catalog: Path) -> None:
    """Raise IndexDamagedError where the log of this database has lost changes that were acknowledged.

    Others may be writing to it meanwhile.
    """
    if sys.byteorder != "little":
        return
    log = catalog.with_name(f"{catalog.name}-wal")
    index = catalog.with_name(f"{catalog.name}-shm")
    for attempt in range(_TRIES):
        # The index first: what it tells of is in the log by then, or the log was begun anew.
        acknowledged = _read_index(index)
        if not _has_lost(log, acknowledged):
            return
        if attempt < _TRIES - 1:
            time.sleep(_PAUSE_SECONDS)
    raise IndexDamagedError(
        f"the log {log} is damaged: changes that were acknowledged are not as they were written; restore a"
        " backup, or let rebuild go on without them"
    )


def _has_lost(log: Path, acknowledged: _Acknowledged | None) -> bool:
    try:
        file = log.open("rb")
    except FileNotFoundError:
        return acknowledged is not None and acknowledged.num_copied < acknowledged.num_frames
    with file:
        header = file.read(_HEADER_BYTES)
        is_whole = _is_header(header)
        if acknowledged is not None and not is_whole:
            return acknowledged.num_copied < acknowledged.num_frames
        if acknowledged is not None and header[16:24] == acknowledged.salts:
            return not _holds(file, header, acknowledged)
        # No index, or that of a log before this one.
        return len(header) == _HEADER_BYTES and _goes_on_behind_damage(file, header, is_whole)


def _holds(file: BinaryIO, header: bytes, acknowledged: _Acknowledged) -> bool:
    """Whether all that was acknowledged is as it was written."""
    missing = acknowledged.num_frames
    for heads, is_right in _frames(file, header, header[16:24]):
        here = min(missing, len(heads))
        if not is_right[:here].all():
            return False
        missing -= here
        if missing == 0:
            return bool(heads[here - 1, 4:6].tolist() == acknowledged.checksum)
    return False


def _goes_on_behind_damage(file: BinaryIO, header: bytes, is_whole: bool) -> bool:
    """Whether a change was begun behind a frame that is wrong: at a right frame that follows the end of a
    change. The change that was being written when the power failed has nothing behind its end."""
    salts = header[16:24]
    if not is_whole:
        salts = file.read(_FRAME_HEADER_BYTES)[8:16]
        file.seek(_HEADER_BYTES)
    was_wrong, had_end = not is_whole, False
    for heads, is_right in _frames(file, header, salts):
        is_ours = (heads[:, 2:4] == np.frombuffer(salts, ">u4")).all(axis=1)
        for ours, right, is_end in zip(is_ours, is_right, heads[:, 1] > 0, strict=True):
            if had_end and right:
                return True
            was_wrong = was_wrong or not right
            had_end = had_end or (was_wrong and ours and is_end)
    return False


def _frames(
    file: BinaryIO, header: bytes, salts: bytes
) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.bool_]]]:
    """Frames from here on, in blocks of N: their headers uint32 [N, 6] (page, size of the database at the end
    of a change, two salts, two checksums), and whether each is right where the one before it is: bool [N]."""
    (page_size,) = struct.unpack(">I", header[8:12])
    if not (512 <= page_size <= 65_536 and page_size & (page_size - 1) == 0):
        return
    frame_size = _FRAME_HEADER_BYTES + page_size
    before = np.frombuffer(header[24:32], ">u4").astype(np.uint32)
    wanted_salts = np.frombuffer(salts, ">u4")
    while len(block := file.read(_FRAMES_AT_ONCE * frame_size)) >= frame_size:
        num_frames = len(block) // frame_size
        frames = np.frombuffer(block, np.uint8, num_frames * frame_size).reshape(num_frames, frame_size)
        heads = frames[:, :_FRAME_HEADER_BYTES].copy().view(">u4").astype(np.uint32)
        words = np.concatenate([frames[:, :8], frames[:, _FRAME_HEADER_BYTES:]], axis=1).view("<u4")
        sums = _checksums(words, np.concatenate([before[None], heads[:-1, 4:6]]))
        yield heads, (sums == heads[:, 4:6]).all(axis=1) & (heads[:, 2:4] == wanted_salts).all(axis=1)
        before = heads[-1, 4:6]


def _read_index(path: Path) -> _Acknowledged | None:
    """None where there is no index, or it tells of nothing, or it is not whole."""
    try:
        with path.open("rb") as file:
            head = file.read(2 * _INDEX_HEADER_BYTES + 4)
    except FileNotFoundError:
        return None
    header, copy = head[:_INDEX_HEADER_BYTES], head[_INDEX_HEADER_BYTES : 2 * _INDEX_HEADER_BYTES]
    if len(head) < 2 * _INDEX_HEADER_BYTES + 4 or header != copy:
        return None
    version, is_made, num_frames = struct.unpack("<I8xB3xI", header[:20])
    if version != _VERSION or is_made != 1 or num_frames == 0 or not _sums_up(header[:40], header[40:], "<"):
        return None
    (num_copied,) = struct.unpack("<I", head[2 * _INDEX_HEADER_BYTES :])
    return _Acknowledged(header[32:40], num_frames, list(struct.unpack("<II", header[24:32])), num_copied)


def _is_header(header: bytes) -> bool:
    return (
        len(header) == _HEADER_BYTES
        and struct.unpack(">II", header[:8]) == (_LITTLE_ENDIAN_MAGIC, _VERSION)
        and _sums_up(header[:24], header[24:], ">")
    )


def _sums_up(content: bytes, checksum: bytes, order: str) -> bool:
    words = np.frombuffer(content, "<u4").astype(np.uint32)[None]
    sums = _checksums(words, np.zeros((1, 2), np.uint32))
    return bool((sums[0] == np.frombuffer(checksum, f"{order}u4")).all())


def _checksums(words: NDArray[np.uint32], seeds: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """SQLite's checksums of N rows of words, uint32 [N, 2 n], each begun with its seed: uint32 [N, 2].

    SQLite goes from pair to pair: `s1 += a + s2; s2 += b + s1`. That is linear, so all pairs are weighed at
    once: after k more pairs, (s1, s2) has become ((F[2k-1], F[2k]), (F[2k], F[2k+1])) (s1, s2), where F are
    the Fibonacci numbers, modulo 2^32.
    """
    num_pairs = words.shape[1] // 2
    before, at, after = _weights(num_pairs)
    first = words[:, 0::2]
    second = first + words[:, 1::2]
    s1 = (first * before[1:] + second * at[1:]).sum(axis=1, dtype=np.uint32)
    s2 = (first * at[1:] + second * after[1:]).sum(axis=1, dtype=np.uint32)
    s1 += seeds[:, 0] * before[0] + seeds[:, 1] * at[0]
    s2 += seeds[:, 0] * at[0] + seeds[:, 1] * after[0]
    return np.stack([s1, s2], axis=1)


@functools.lru_cache(maxsize=4)
def _weights(num_pairs: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32]]:
    """F[2k-1], F[2k] and F[2k+1] for k from `num_pairs` down to 0: uint32 [num_pairs + 1] each."""
    fibonacci = [1, 0]  # F[-1], F[0]
    for _ in range(2 * num_pairs + 1):
        fibonacci.append((fibonacci[-2] + fibonacci[-1]) % 2**32)
    numbers = np.array(fibonacci, np.uint32)
    last = 2 * num_pairs
    return numbers[0 : last + 1 : 2][::-1], numbers[1 : last + 2 : 2][::-1], numbers[2 : last + 3 : 2][::-1]
