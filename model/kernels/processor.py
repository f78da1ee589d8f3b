"""Attention scores on a processor by the Numba kernel, where it can be had.

The one place that knows when: `CompiledAttention` answers None where the caller has to score in another way.
"""

from __future__ import annotations

import itertools
import logging
import math
import platform
import threading
from collections import deque
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.config import XClipConfig
from model.features import Scores, TextFeatures, VideoFeatures, VideoRecords
from model.kernels.attention import TEMPERATURES
from model.kernels.threads import allowed_threads, in_turns
from model.score_names import SCORE_NAMES

if TYPE_CHECKING:
    from model.kernels.numba_attention import Matrices, Plan, Scratch, Texts, Videos

logger = logging.getLogger(__name__)

PAIRS_A_THREAD: Final = 100
"""A further thread is woken for as many pairs more whose words are compared with frames: to wake one takes
time, and a shortlist is scored in a millisecond or two (benchmarks/scoring.py)."""

QUICK_PAIRS_A_THREAD: Final = 400
"""The same where words are not: a shortlist takes less there, and a second thread hardly anything off it."""

ROWS_AT_ONCE: Final = 64
"""A thread maps so many words at a time: those of a text are mapped on one. Threads of PyTorch wait for each
other, on a busy machine a hundred times longer than they compute."""

PAIRS_AT_ONCE: Final = 512
"""A thread takes so many at a time, at most, or those of a block of videos: the last one to finish does not
keep the others waiting."""

TURNS_A_THREAD: Final = 3
"""At least, where there are several threads, for the same reason; a turn costs 15 microseconds of Python."""


MIN_TEXTS_PACKED: Final = 8
"""So many texts are scored with packed frames, if these are float32: in evaluation. Those of an index are
float16, and a text has the same score there to the bit, alone and among others."""


class CompiledAttention:
    """The kernel; asked for once `prepare` has loaded it. Safe to use from several threads."""

    def __init__(self) -> None:
        self._kernel: Any = None
        self._lock = threading.Lock()
        self._has_failed = False
        self._kept: deque[Scratch] = deque()  # Its operations are atomic.
        self._matrices: tuple[Matrices | None, list[int]] = (None, [])

    def prepare(self) -> bool:
        """Load the kernel, which is compiled once on a machine, within half a minute; whether it is there.

        What prevents it is logged once, and PyTorch's operators score as before.
        """
        with self._lock:
            if self._kernel is not None or self._has_failed:
                return self._kernel is not None
            self._has_failed = True
            if find_spec("numba") is None or not has_instructions():
                return False
            try:
                from model.kernels import numba_attention
            except Exception as error:  # Numba's have no common class.
                logger.warning("scoring goes without its kernel: %s: %s", type(error).__name__, error)
                return False
            self._kernel, self._has_failed = numba_attention, False
            return True

    def is_for(self, config: XClipConfig, text: TextFeatures, video: VideoFeatures | VideoRecords) -> bool:
        """Whether to ask for scores: attention, on a processor, of a size that the kernel is for."""
        lowest, highest = TEMPERATURES
        return (
            self._kernel is not None
            and video.video.device.type == text.words.device.type == "cpu"
            and config.aggregation == "attention"
            and lowest <= config.temperature <= highest
            and config.embedding_dim % self._kernel.LANES == 0
            and config.num_frames >= 4
            and video.frames.dtype in (torch.float16, torch.float32, torch.int8)
        )

    def scores(
        self,
        config: XClipConfig,
        matrices: Mapping[str, Tensor],
        features: tuple[TextFeatures, VideoFeatures | VideoRecords],
        scale: float,
        wanted: Collection[str],
    ) -> Scores | None:
        """As `ScoreHead.unblocked`, for what `is_for` accepts; None where padding lies between words.

        Args:
            config: Of the model.
            matrices: Of the `ScoreHead`, by name; without `local_matrix` and `global_matrix` where these are
                the identity.
            features: T texts and V videos, which may be records of a table.
            scale: Of every score.
            wanted: The scores to compute.
        """
        text, video = features
        num_words = _num_words(text, config.mask_padding)
        if num_words is None:
            return None
        kernel = self._kernel
        frames = _flat(video.frames)
        records = video.numbers if isinstance(video, VideoRecords) else np.arange(len(video))
        mask = _flat(video.frame_mask) if config.mask_padding else np.ones(video.frame_mask.numel(), bool)
        is_packed = frames.dtype == np.float32 and len(text) >= MIN_TEXTS_PACKED
        plan = kernel.Plan(
            config.num_frames,
            config.embedding_dim,
            frames.itemsize,
            config.num_words,
            config.temperature,
            scale,
            _weights(config, wanted),
            is_packed,
            *[name in wanted for name in SCORE_NAMES],
            config.frame_word_sides == "both",
        )
        given = (
            kernel.Texts(*self._text_rows(matrices, text, num_words, wanted, is_packed), num_words),
            kernel.Videos(frames.view(np.uint8), _flat(video.video.float()), mask, records),
            self._held(matrices),
            plan,
        )
        found = torch.empty(len(SCORE_NAMES) + 1, len(text), len(video))
        if found.numel():
            self._run(given, found.view(-1).numpy(), len(video))
        return Scores(*found.unbind())

    def _run(
        self, given: tuple[Texts, Videos, Matrices, Plan], found: NDArray[np.float32], num_videos: int
    ) -> None:
        """Fill `found`, flat [5, T, V], on as many threads as PyTorch uses."""
        kernel, (texts, _, _, plan) = self._kernel, given
        num_texts = len(texts.num_words)
        sizes = kernel.scratch_sizes(plan, num_texts, int(texts.num_words.max()))
        a_thread = PAIRS_A_THREAD if plan.frame_word else QUICK_PAIRS_A_THREAD
        most = min(torch.get_num_threads(), 1 + num_videos * num_texts // a_thread)
        num_threads = allowed_threads(most)
        num_turns = 1 if num_threads == 1 else TURNS_A_THREAD * num_threads
        step = min(max(1, PAIRS_AT_ONCE // num_texts), -(-num_videos // num_turns))
        step = -(-step // kernel.LANES) * kernel.LANES

        def work(first: int) -> None:
            scratch = self._scratch(sizes)
            kernel.score(*given, scratch, (found, num_videos, first, min(first + step, num_videos)))
            self._kept.append(scratch)

        in_turns(work, range(0, num_videos, step), num_threads)

    def _scratch(self, sizes: Scratch) -> Scratch:
        """Memory of at least these sizes, of which `_kept` has as much as was ever in use at once: a
        shortlist is scored in less time than the operating system takes to hand it out page by page."""
        try:
            scratch = self._kept.pop()
            if all(len(held) >= size for held, size in zip(scratch, sizes, strict=True)):
                return scratch
        except IndexError:
            pass
        # PyTorch's memory begins at a cache line.
        made: Scratch = self._kernel.Scratch(*[torch.empty(int(size)).numpy() for size in sizes])
        made.zeros.fill(0.0)
        return made

    def _held(self, matrices: Mapping[str, Tensor]) -> Matrices:
        """Views of the matrices, made again where they are in other memory."""
        names = self._kernel.Matrices._fields
        places = [matrices[name].data_ptr() for name in names]
        views, known = self._matrices
        if views is None or places != known:
            views = self._kernel.Matrices(*[_flat(matrices[name]) for name in names])
            self._matrices = views, places
        return views

    def _text_rows(
        self,
        matrices: Mapping[str, Tensor],
        text: TextFeatures,
        num_words: NDArray[np.int64],
        wanted: Collection[str],
        is_packed: bool,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What is multiplied with frames, and with video features, see `numba_attention.Texts`."""
        words = text.words.detach().float().numpy()
        sentences = text.sentence.detach().float().numpy()
        map_rows = _map_together if is_packed else self._map
        has_sentences = "sentence_frame" in wanted
        with_frames = _rows(
            words if "frame_word" in wanted else None, sentences if has_sentences else None, num_words
        )
        if "frame_word" in wanted and "local_matrix" in matrices:
            rows, with_frames = with_frames, np.empty_like(with_frames)
            # All but the last sentence: to part the others from the words takes longer than to map them.
            count = len(rows) - has_sentences
            map_rows(rows[:count], matrices["local_matrix"], with_frames[:count])
            if has_sentences:
                ends = itertools.accumulate(num_words.tolist(), lambda end, count: end + 1 + count)
                for end, sentence in zip(ends, sentences, strict=True):
                    with_frames[end] = sentence
        mapped = None
        if "video_sentence" in wanted:
            mapped = sentences
            if "global_matrix" in matrices:
                mapped = np.empty(sentences.shape, np.float32)
                map_rows(sentences, matrices["global_matrix"], mapped)
        with_videos = _rows(words if "video_word" in wanted else None, mapped, num_words)
        return with_frames.reshape(-1), with_videos.reshape(-1)

    def _map(self, rows: NDArray[np.float32], matrix: Tensor, found: NDArray[np.float32]) -> None:
        """Rows times a matrix [D, D]; each is the same to the bit, whatever other rows there are."""

        def work(first: int) -> None:
            part, target = rows[first : first + ROWS_AT_ONCE], found[first : first + ROWS_AT_ONCE]
            self._kernel.map_rows(part.ravel(), len(part), _flat(matrix), len(matrix), target.reshape(-1))

        in_turns(work, range(0, len(rows), ROWS_AT_ONCE), torch.get_num_threads())


def has_instructions() -> bool:
    """Whether the processor widens float16 itself: elsewhere LLVM would call functions that are not there."""
    from llvmlite.binding import get_host_cpu_features

    features = get_host_cpu_features()
    return platform.machine() in ("x86_64", "AMD64") and all(
        features.get(name, False) for name in ("avx2", "f16c", "fma")
    )


def _num_words(text: TextFeatures, mask_padding: bool) -> NDArray[np.int64] | None:
    """int64 [T]; None where words do not come first."""
    mask = text.word_mask.numpy()
    if not mask_padding:
        return np.full(len(mask), mask.shape[1])
    num_words: NDArray[np.int64] = mask.sum(axis=1)
    are_first = np.array_equal(mask, np.arange(mask.shape[1]) < num_words[:, None])
    return num_words if are_first else None


def _map_together(rows: NDArray[np.float32], matrix: Tensor, found: NDArray[np.float32]) -> None:
    """Rows times a matrix [D, D]. Each is rounded with regard to how many there are."""
    torch.mm(torch.from_numpy(rows), matrix.detach(), out=torch.from_numpy(found))


def _rows(
    words: NDArray[np.float32] | None, sentences: NDArray[np.float32] | None, num_words: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Of each text its words, if they are given, and then its sentence, if that is: [R, D]."""
    if words is None:
        return np.empty((0, 0), np.float32) if sentences is None else sentences
    parts = []
    for text, count in enumerate(num_words.tolist()):
        parts.append(words[text, :count])
        if sentences is not None:
            parts.append(sentences[text : text + 1])
    return np.concatenate(parts) if parts else np.empty((0, words.shape[2]), np.float32)


def _weights(config: XClipConfig, wanted: Collection[str]) -> NDArray[np.float32]:
    """Of each score in the total; NaN where one is missing."""
    names = config.score_names
    weight = 1 / len(names) if all(name in wanted for name in names) else math.nan
    return np.array([weight if name in names else 0.0 for name in SCORE_NAMES], np.float32)


def _flat(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().contiguous().view(-1).numpy()
