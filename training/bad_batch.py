"""What to say of a batch whose loss or gradient is no number."""

from __future__ import annotations

import json

from training.batch_order import batch_of, epoch_order
from training.config import TrainingConfig
from training.datasets.split import Split
from training.errors import RunError
from training.processes import rank
from training.run_directory import BAD_BATCH_FILE, RunDirectory

MAX_NAMED_CLIPS = 20
"""Clips that the error names; the file lists all."""


def bad_batch_error(
    problem: str, config: TrainingConfig, split: Split, directory: RunDirectory, epoch: int, step: int
) -> RunError:
    """The error for step `step` of epoch `epoch`, both from 0; writes `bad_batch.json` with all of its pairs.

    The batch is that of all processes together.
    """
    order = epoch_order(split.clip_of_text, config.training.seed, epoch, config.data.one_text_per_clip)
    texts = batch_of(order, step, config.training.batch_size).tolist()
    clips = [split.clips[split.clip_of_text[text]].id for text in texts]
    if rank() == 0:
        pairs = [{"clip": clip, "text": split.texts[text]} for clip, text in zip(clips, texts, strict=True)]
        listing = {"epoch": epoch + 1, "step_of_epoch": step + 1, "problem": problem, "pairs": pairs}
        directory.write_text(BAD_BATCH_FILE, json.dumps(listing, indent=2) + "\n")
    more = f" and {len(clips) - MAX_NAMED_CLIPS} more" if len(clips) > MAX_NAMED_CLIPS else ""
    return RunError(
        f"{problem} at step {step + 1} of epoch {epoch + 1}, so training stops; the last checkpoint is"
        f" as it was. Clips of this batch: {', '.join(clips[:MAX_NAMED_CLIPS])}{more} (with their texts in"
        f" {directory.path / BAD_BATCH_FILE})"
    )
