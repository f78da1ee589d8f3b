"""`python -m training.demo_model train | evaluate`: make the demo checkpoint, and measure it."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from model import XClip
    from training.demo_corpus.scene import Scene
    from training.demo_model.recipe import Recipe

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)
console = Console(stderr=True)

NUM_HELD_OUT = 500
SELECTION_SEED = 1000
"""Held-out sets of this seed may choose between recipes; those of `FINAL_SEED` choose nothing."""
FINAL_SEED = 7


@app.command()
def train(
    output: Annotated[Path, typer.Option(help="Where checkpoints and the log are written.")],
    threads: Annotated[int, typer.Option(help="Threads of the processor to use.", min=1)] = 2,
    seed: Annotated[int | None, typer.Option(help="Another seed than the recipe's.")] = None,
    scale: Annotated[float, typer.Option(help="Multiplies the steps of every stage.", min=0.001)] = 1.0,
    groups: Annotated[int | None, typer.Option(help="Another number of groups of scenes.", min=50)] = None,
) -> None:
    """Train the demo model from scratch with the committed recipe, and write it to OUTPUT/checkpoint.

    Each finished part is kept in OUTPUT, and the same command again goes on after it.
    """
    import numpy as np
    import torch

    from model import XClip
    from training.demo_corpus.captions import vocabulary
    from training.demo_model import learning
    from training.demo_model.recipe import Recipe
    from training.demo_model.training_set import make_groups, make_training_set

    recipe = Recipe()
    recipe = replace(
        recipe,
        seed=recipe.seed if seed is None else seed,
        num_groups=recipe.num_groups if groups is None else groups,
        pictures=recipe.pictures.scaled(scale),
        videos=recipe.videos.scaled(scale),
        alike=recipe.alike.scaled(scale),
    )
    torch.set_num_threads(threads)
    _claim(output, recipe)
    log = _Log(output / "log.jsonl")
    torch.manual_seed(recipe.seed)
    model = XClip(recipe.model_config(sorted(vocabulary()))).train()
    learning.start_softly(model, recipe.matrix_identity)
    with _progress() as progress:
        scenes = [scene for group in make_groups(recipe) for scene in group]
        task = progress.add_task("drawing", total=len(scenes))
        frames = _drawn_once(
            output / "frames.npy", scenes, recipe, threads, lambda count: progress.advance(task, count)
        )
        data = make_training_set(recipe, scenes, frames, model.tokenizer)
        log.write(stage="drawing", num_videos=len(data))
        stages = {
            "pictures": learning.learn_pictures,
            "videos": learning.learn_videos,
            "alike": learning.learn_alike,
        }
        for number, (name, learn) in enumerate(stages.items()):
            task = progress.add_task(name, total=getattr(recipe, name).num_steps)

            def on_step(stage: str, step: int, loss: float, task: Any = task) -> None:
                progress.update(task, completed=step, description=f"{stage} loss {loss:.3f}")
                if step % 20 == 0:
                    log.write(stage=stage, step=step, loss=loss)

            finished = output / f"after-{name}"
            if finished.is_dir():
                model = XClip.load(finished, "cpu", "torch").train()
                continue
            learn(model, data, recipe, np.random.default_rng([recipe.seed, number]), on_step)
            model.eval().save(finished.with_suffix(".unfinished"))
            finished.with_suffix(".unfinished").rename(finished)
            model.train()
    selection = _held_out_sets(NUM_HELD_OUT, SELECTION_SEED)
    held_out = {name: _draw(pairs, recipe.num_frames, recipe.image_size) for name, pairs in selection.items()}
    log.write(stage="done", **_selection_recall(model.eval(), selection, held_out))
    model.save(output / "checkpoint")
    console.print(f"{output / 'checkpoint'} after {log.seconds() / 60:.1f} minutes")


@app.command()
def evaluate(
    model_spec: Annotated[str, typer.Option("--model", help="Model spec.")] = "demo",
    seed: Annotated[int, typer.Option(help="Seed of both held-out sets.")] = FINAL_SEED,
    num_videos: Annotated[int, typer.Option(help="Videos in each set.", min=10)] = NUM_HELD_OUT,
    drawn: Annotated[
        bool, typer.Option(help="Take the drawings themselves, without writing and decoding mp4 files.")
    ] = False,
    report: Annotated[Path | None, typer.Option(help="Write the rows as JSON.")] = None,
) -> None:
    """Print the retrieval tables on the random and the sibling-hard held-out set, and of brief queries.

    By default each video is written as an mp4 and read back as the indexer reads it.
    """
    from model import XClip
    from training.demo_model.evaluation import (
        brief_markdown,
        brief_table,
        markdown,
        named_right,
        score_set,
        table,
    )

    model = XClip.load(model_spec, runtime="torch")
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, pairs in _held_out_sets(num_videos, seed).items():
        take = _draw if drawn else _write_and_decode
        frames = take(pairs, model.config.num_frames, model.config.image_size)
        title = name.capitalize()
        rows[title] = table(score_set(model, frames, [caption for _, caption in pairs]))
        typer.echo(markdown(f"{title}, {num_videos} videos, seed {seed}", rows[title]))
        if name == "random":
            scenes = [scene for scene, _ in pairs]
            rows["Brief"] = brief_table(model, scenes, frames, seed)
            rows["Frames"] = [named_right(model, scenes, frames)]
    typer.echo(brief_markdown(num_videos, rows["Brief"]))
    typer.echo(
        "Of single frames, {kind:.1f} % are given their kind's name, {colour:.1f} % their colour's, "
        "{both:.1f} % that of both.".format(**rows["Frames"][0])
    )
    if report is not None:
        facts = {"fingerprint": model.fingerprint, "seed": seed, "num_videos": num_videos, "sets": rows}
        report.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _held_out_sets(num_videos: int, seed: int) -> dict[str, list[tuple[Scene, str]]]:
    from training.demo_corpus.held_out import random_set, sibling_hard_set

    return {"random": random_set(num_videos, seed), "sibling-hard": sibling_hard_set(num_videos, seed)}


def _claim(output: Path, recipe: Recipe) -> None:
    """Make OUTPUT, or check that what it holds is of the same recipe."""
    path = output / "recipe.json"
    if path.exists() and path.read_text(encoding="utf-8") != recipe.to_json():
        raise typer.BadParameter(f"{output} holds the training of another recipe; choose another folder")
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(recipe.to_json(), encoding="utf-8")


def _drawn_once(
    path: Path, scenes: list[Scene], recipe: Recipe, num_processes: int, on_progress: Callable[[int], None]
) -> NDArray[np.uint8]:
    """All scenes' frames, uint8 [N, F, R, R, 3], from the file where they were drawn before."""
    import numpy as np

    from training.demo_model.training_set import draw_scenes

    if path.exists():
        on_progress(len(scenes))
        kept: NDArray[np.uint8] = np.load(path)
        return kept
    frames = draw_scenes(scenes, recipe.num_frames, recipe.image_size, num_processes, on_progress)
    unfinished = path.with_name(f"unfinished-{path.name}")
    np.save(unfinished, frames)
    unfinished.rename(path)
    return frames


def _draw(pairs: list[tuple[Scene, str]], num_frames: int, image_size: int) -> NDArray[np.uint8]:
    import numpy as np

    from training.demo_model.training_set import draw_frames

    return np.stack([draw_frames(scene, num_frames, image_size) for scene, _ in pairs])


def _write_and_decode(pairs: list[tuple[Scene, str]], num_frames: int, image_size: int) -> NDArray[np.uint8]:
    import numpy as np

    from indexer.media.frame_reader import read_frames
    from model.preprocessing import Resizing
    from training.demo_corpus.rendering import write_video

    times = [float(second) for second in range(num_frames)]
    videos = []
    with tempfile.TemporaryDirectory() as folder, _progress() as progress:
        path = Path(folder) / "video.mp4"
        for scene, _ in progress.track(pairs, description="writing and decoding"):
            write_video(path, scene)
            frames, _ = read_frames(path, times)
            videos.append(np.stack([Resizing(image_size)(frame) for frame in frames]))
    return np.stack(videos)


def _selection_recall(
    model: XClip, selection: dict[str, list[tuple[Scene, str]]], held_out: dict[str, NDArray[np.uint8]]
) -> dict[str, float]:
    from model.score_names import SCORE_NAMES
    from training.demo_model.evaluation import recall, score_set, table

    found = {}
    for name, pairs in selection.items():
        rows = table(score_set(model, held_out[name], [caption for _, caption in pairs]))
        for scores in ("total", *SCORE_NAMES):
            found[f"{name} {scores}"] = recall(rows, scores)
    return found


class _Log:
    """One JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._path, self._started = path, time.monotonic()

    def seconds(self) -> float:
        return round(time.monotonic() - self._started, 1)

    def write(self, **facts: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**facts, "seconds": self.seconds()}) + "\n")


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


if __name__ == "__main__":
    app(prog_name="python -m training.demo_model")
