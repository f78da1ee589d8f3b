"""Damage real clips in many ways, decode each as an upload is decoded, and report what became of them.

    python -m tests.faults.mutated_clips --count 2000 --seed 0
    python -m tests.faults.mutated_clips --first 1234 --count 1     one of these cases again

Exits with 1 where anything happened that must not: the pool died, a decoder died or was late, or a file that
was truncated came out as a whole video with fewer frames.
"""

# ruff: noqa: T201  # its table is what it is for
from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from indexer.errors import DecoderDiedError, DecodeTimeoutError, MediaError
from indexer.media.decode_pool import DecodePool, DecodeRequest
from indexer.media.frame_reader import VideoFile
from indexer.media.sampling import Sampling
from model.preprocessing import Resizing
from tests.support.video_files import write_numbered_video

NUM_FRAMES, IMAGE_SIZE = 12, 224
"""What the service samples from a video of a minute or less."""

DRAWN = [
    ("ts", "libx264", {}),
    ("mpg", "mpeg2video", {}),
    ("flv", "libx264", {}),
    ("wmv", "wmv2", {}),
    ("mkv", "libx264", {"live": "1"}),
    ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
    ("mp4", "mpeg4", {"movflags": "faststart"}),
]
"""Extension, encoder, options of containers that no clip is in, and of two that are always there."""

PROMISING = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".flv", ".wmv"})
"""Extensions of containers that say how long they are; others may be cut between two packets unnoticed."""


@dataclass(frozen=True)
class Clip:
    """A whole video. promises: a cut anywhere has to be noticed."""

    name: str
    content: bytes
    num_frames: int
    promises: bool


# Ways to damage a file: (its bytes, those of another file, a random generator) -> damaged bytes


def flip_bits(content: bytearray, other: bytes, chance: random.Random) -> bytearray:
    """1 to 64 bits, anywhere."""
    for _ in range(2 ** chance.randrange(7)):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return content


def flip_bits_of_head(content: bytearray, other: bytes, chance: random.Random) -> bytearray:
    """The same in the first or last 4 KB, where containers keep their tables."""
    first = chance.choice((0, max(0, len(content) - 4096)))
    for _ in range(2 ** chance.randrange(7)):
        content[first + chance.randrange(min(4096, len(content)))] ^= 1 << chance.randrange(8)
    return content


def overwrite_runs(content: bytearray, other: bytes, chance: random.Random) -> bytearray:
    """Up to 20 runs of zeros, ones or noise, up to 2 KB each."""
    for _ in range(chance.randrange(1, 21)):
        size = min(len(content), 2 ** chance.randrange(1, 12))
        start = chance.randrange(len(content) - size + 1)
        content[start : start + size] = chance.choice((bytes(size), b"\xff" * size, chance.randbytes(size)))
    return content


def swap_chunks(content: bytearray, other: bytes, chance: random.Random) -> bytearray:
    """Two pieces of one length are swapped."""
    size = chance.randrange(1, max(2, len(content) // 4))
    first, second = sorted(chance.randrange(len(content) - size + 1) for _ in range(2))
    second = max(second, min(first + size, len(content) - size))
    content[first : first + size], content[second : second + size] = (
        content[second : second + size],
        content[first : first + size],
    )
    return content


def truncated(content: bytearray, other: bytes, chance: random.Random) -> bytearray:
    """The end is missing: anything from a byte to nearly all."""
    missing = int(len(content) ** chance.random())
    return content[: len(content) - max(1, missing)]


def cut_out(content: bytearray, other: bytes, chance: random.Random) -> bytearray:
    """A piece in the middle is missing, so that everything after it is shifted."""
    size = chance.randrange(1, max(2, len(content) // 3))
    start = chance.randrange(len(content) - size + 1)
    return content[:start] + content[start + size :]


def edit_sizes(content: bytearray, other: bytes, chance: random.Random) -> bytearray:
    """Sizes and counts next to the names of MP4 boxes and RIFF chunks; or else any four bytes."""
    names = (
        b"moov",
        b"trak",
        b"mdia",
        b"stbl",
        b"stsz",
        b"stts",
        b"stco",
        b"ctts",
        b"stsd",
        b"mdat",
        b"moof",
    )
    names += (b"trun", b"LIST", b"movi", b"strh", b"strf", b"idx1", b"\x1f\x43\xb6\x75", b"\x16\x54\xae\x6b")
    positions = [position for name in names if (position := content.find(name)) >= 0]
    for _ in range(chance.randrange(1, 4)):
        position = chance.choice(positions) if positions else chance.randrange(len(content))
        start = max(0, min(len(content) - 4, position + chance.choice((-4, 4, 8, 12))))
        value = chance.choice((0, 1, 7, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, chance.getrandbits(32)))
        content[start : start + 4] = value.to_bytes(4, chance.choice(("big", "little")))
    return content


def copy_head(content: bytearray, other: bytes, chance: random.Random) -> bytearray:
    """The first bytes are those of another clip."""
    size = min(len(content), len(other), 2 ** chance.randrange(3, 14))
    content[:size] = other[:size]
    return content


def splice(content: bytearray, other: bytes, chance: random.Random) -> bytearray:
    """The first part of one clip, the rest of another."""
    return content[: chance.randrange(1, len(content))] + other[chance.randrange(len(other)) :]


MUTATIONS: list[Callable[[bytearray, bytes, random.Random], bytearray]] = [
    flip_bits,
    flip_bits_of_head,
    overwrite_runs,
    swap_chunks,
    truncated,
    cut_out,
    edit_sizes,
    copy_head,
    splice,
]


@dataclass(frozen=True)
class Case:
    """What became of one damaged clip. outcome: `whole`, `partial`, a refusal's name, or `FAILED: ...`."""

    number: int
    mutation: str
    clip: str
    outcome: str
    seconds: float
    is_silently_shorter: bool = False


@dataclass
class Tally:
    """Cases by mutation and outcome, and those that must not be."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    bad: list[Case] = field(default_factory=list)
    longest: Case | None = None

    def add(self, case: Case) -> None:
        """Count one more."""
        self.outcomes.setdefault(case.mutation, Counter())[case.outcome] += 1
        if case.is_silently_shorter or case.outcome in BAD_OUTCOMES or case.outcome.startswith("FAILED"):
            self.bad.append(case)
        if self.longest is None or case.seconds > self.longest.seconds:
            self.longest = case


BAD_OUTCOMES = (DecoderDiedError.__name__, DecodeTimeoutError.__name__)


def load_clips(folder: Path | None, scratch: Path) -> list[Clip]:
    """Real clips of `folder`/public, where there is one, and drawn ones."""
    paths = sorted((folder / "public").iterdir()) if folder is not None else []
    clips = [_load(path, path.suffix in PROMISING) for path in paths]
    for number, (ending, codec, options) in enumerate(DRAWN):
        path = scratch / f"drawn{number}.{ending}"
        write_numbered_video(path, 100, codec=codec, container_options=options)
        is_live = "live" in options or "empty_moov" in options.get("movflags", "")
        clips.append(_load(path, path.suffix in PROMISING and not is_live))
    return clips


def _load(path: Path, promises: bool) -> Clip:
    return Clip(path.name, path.read_bytes(), VideoFile(path).info.num_frames, promises)


def decode_mutations(
    clips: Sequence[Clip],
    numbers: Iterable[int],
    seed: int,
    scratch: Path,
    num_workers: int = 2,
    timeout_seconds: float = 60.0,
) -> Tally:
    """Decode damaged clips through a pool, as the service decodes uploads.

    numbers: of the cases; with the seed, each says what is damaged and how. At the end, a good video has to
    come out of the same pool.
    """
    good = write_numbered_video(scratch / "good.mp4", 20)
    tally = Tally()
    with DecodePool(num_workers, timeout_seconds) as pool, ThreadPoolExecutor(num_workers) as threads:
        decode = partial(_decode_one, pool, clips, seed, scratch)
        for case in threads.map(decode, numbers):
            tally.add(case)
        for _ in range(num_workers):
            assert pool.submit(_request(good)).result().fraction_read == 1
    return tally


def _decode_one(pool: DecodePool, clips: Sequence[Clip], seed: int, scratch: Path, number: int) -> Case:
    chance = random.Random(f"{seed} {number}")
    mutation = MUTATIONS[number % len(MUTATIONS)]
    clip, other = chance.choice(clips), chance.choice(clips)
    path = scratch / f"{number}{Path(clip.name).suffix}"
    path.write_bytes(mutation(bytearray(clip.content), other.content, chance))
    is_shorter = False
    started = time.perf_counter()
    try:
        video = pool.submit(_request(path)).result()
        outcome = "partial" if video.partial else "whole"
        is_shorter = outcome == "whole" and video.info.num_frames < clip.num_frames
    except MediaError as error:
        outcome = type(error).__name__
    except Exception as error:  # Not a MediaError: the service would have no reason to give.
        outcome = f"FAILED: {type(error).__name__}"
    seconds = time.perf_counter() - started
    path.unlink()
    is_silent = is_shorter and clip.promises and mutation is truncated
    return Case(number, mutation.__name__, clip.name, outcome, seconds, is_silent)


def _request(path: Path) -> DecodeRequest:
    return DecodeRequest(str(path), Sampling(NUM_FRAMES), Resizing(IMAGE_SIZE), trusted=False, max_segments=4)


def print_table(tally: Tally) -> None:
    """Outcomes by mutation, in Markdown, and what must be 0."""
    order = ["whole", "partial"]
    names = order + sorted({name for counts in tally.outcomes.values() for name in counts} - set(order))
    everything = sum(tally.outcomes.values(), Counter())
    print("| damage | cases | " + " | ".join(names) + " |")
    print("| --- | ---: |" + " ---: |" * len(names))
    for mutation, counts in [*tally.outcomes.items(), ("all", everything)]:
        cells = [counts.total(), *(counts[name] for name in names)]
        print(f"| {mutation.replace('_', ' ')} | " + " | ".join(map(str, cells)) + " |")
    print()
    died, late = (everything[name] for name in BAD_OUTCOMES)
    print(f"decoders that died: {died}; that were ended late: {late}")
    print(f"failures of the pool: {sum(case.outcome.startswith('FAILED') for case in tally.bad)}")
    print(f"truncated, yet whole with fewer frames: {sum(case.is_silently_shorter for case in tally.bad)}")
    if tally.longest is not None:
        print(f"longest: {tally.longest.seconds:.2f} s (case {tally.longest.number}, {tally.longest.clip})")
    for case in tally.bad:
        print(case)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.mutated_clips", description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout-seconds", type=float, default=60.0)
    parser.add_argument("--clips", type=Path, help="a folder with `public` in it; without, drawn clips alone")
    options = parser.parse_args()
    named = os.environ.get("XCLIP_TEST_CLIPS")
    folder = options.clips or (Path(named) if named else Path(__file__).parents[3] / "shared" / "clips")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        clips = load_clips(folder if (folder / "public").is_dir() else None, Path(scratch))
        numbers = range(options.first, options.first + options.count)
        tally = decode_mutations(
            clips, numbers, options.seed, Path(scratch), options.workers, options.timeout_seconds
        )
    print_table(tally)
    print(f"{len(clips)} clips, seed {options.seed}, {options.workers} processes,", end=" ")
    print(f"time limit {options.timeout_seconds:g} s; all took {time.monotonic() - started:.0f} s")
    return 1 if tally.bad else 0


if __name__ == "__main__":
    sys.exit(main())
