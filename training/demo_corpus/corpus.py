"""A small corpus on disk: mp4 files and the manifest that `xclip-search index --manifest` reads."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from training.demo_corpus.captions import full_description, plain_caption, say
from training.demo_corpus.held_out import mixed_set
from training.demo_corpus.rendering import write_video
from training.demo_corpus.scene import Scene, scene_key

MANIFEST_NAME = "manifest.jsonl"
_SIBLING_SHARE = 0.5
_NUM_WORDINGS = 3


def write_corpus(
    directory: Path,
    num_videos: int,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
    num_threads: int = 2,
) -> Path:
    """Writes `num_videos` clips and `manifest.jsonl` into a directory (made if absent); returns the manifest.

    The scenes are held-out ones, so a model trained on training scenes has seen none of them. One half is
    drawn at random, the other half comes in groups that differ in one thing only, the order of events among
    them: what makes a search worth looking at. Rows are `{"path", "id", "title", "metadata"}`, the path
    relative to the manifest. `metadata["caption"]` is true of that video alone in the corpus;
    `metadata["captions"]` are full wordings; `background` and `events` say what it shows.

    A clip that is already there is not written again, so a second call is quick. `on_progress(num_done,
    num_total)` is called from this thread after each clip.

    Raises:
        ValueError: fewer than one video.
    """
    if num_videos < 1:
        raise ValueError(f"a corpus needs at least one video, not {num_videos}")
    directory.mkdir(parents=True, exist_ok=True)
    num_siblings = round(num_videos * _SIBLING_SHARE)
    chosen = mixed_set(num_videos - num_siblings, num_siblings, seed)
    rows = [_row(scene, caption) for scene, caption in chosen]
    with ThreadPoolExecutor(num_threads) as pool:
        futures = [
            pool.submit(_write_if_absent, directory / str(row["path"]), scene)
            for row, (scene, _) in zip(rows, chosen, strict=True)
        ]
        for num_done, future in enumerate(as_completed(futures), start=1):
            future.result()
            if on_progress is not None:
                on_progress(num_done, len(futures))
    manifest = directory / MANIFEST_NAME
    unfinished = manifest.with_name(f"{MANIFEST_NAME}.part")
    unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    unfinished.replace(manifest)
    return manifest


def _write_if_absent(path: Path, scene: Scene) -> None:
    if not path.exists():
        write_video(path, scene)


def video_id(scene: Scene) -> str:
    """A name that depends on the scene alone, its variation included."""
    text = "\n".join((*scene_key(scene), str(scene.variation_seed)))
    return f"demo-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _row(scene: Scene, caption: str) -> dict[str, object]:
    name = video_id(scene)
    rng = random.Random(name)
    plain = plain_caption(scene)
    wordings = [say(full_description(scene), rng) for _ in range(_NUM_WORDINGS)]
    return {
        "path": f"{name}.mp4",
        "id": name,
        "title": plain[0].upper() + plain[1:],
        "metadata": {
            "caption": caption,
            "captions": list(dict.fromkeys([plain, *wordings])),
            "background": scene.background,
            "events": [
                {"kind": event.actor.kind, "colour": event.actor.colour, "action": event.action}
                for event in scene.events
            ],
        },
    }
