"""A CLIP of the drawn world: towers that learned from single pictures and their captions, and saw no video.

It is to the variants what CLIP is to CLIP4Clip and X-CLIP: what they all start from, and what `clip` is
judged as. Its recipe is the first stage of the demo model's, shortened (`training.demo_model.stages`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from training.demo_model.recipe import Recipe, Stage


@dataclass(frozen=True)
class StartRecipe:
    """How the towers are made.

    num_groups, group_size: scenes of whose frames the pictures are, none of a held-out set. seed: of those
    scenes, of the weights and of the order. num_steps, batch_size, learning_rate: see `recipe.Stage`.
    The sizes are those of `training.demo_model.recipe.Recipe`; every tower has `width` channels.
    """

    num_groups: int = 1000
    group_size: int = 4
    captions_per_picture: int = 2
    seed: int = 11
    num_steps: int = 800
    batch_size: int = 384
    learning_rate: float = 1e-3
    image_size: int = 64
    patch_size: int = 16
    width: int = 128
    vision_layers: int = 4
    text_layers: int = 3
    num_words: int = 32
    num_frames: int = 8

    def demo_recipe(self) -> Recipe:
        """The same as the record that the demo model's stages take."""
        return replace(
            Recipe(),
            seed=self.seed,
            num_groups=self.num_groups,
            group_size=self.group_size,
            captions_per_video=1,
            brief_captions_per_video=0,
            captions_per_frame=self.captions_per_picture,
            image_size=self.image_size,
            patch_size=self.patch_size,
            width=self.width,
            vision_layers=self.vision_layers,
            text_layers=self.text_layers,
            temporal_layers=0,
            num_words=self.num_words,
            num_frames=self.num_frames,
            pictures=Stage(self.num_steps, self.batch_size, self.learning_rate),
        )


def make_starting_point(
    directory: Path,
    recipe: StartRecipe,
    num_threads: int,
    on_progress: Callable[[str, int, int], None] = lambda what, num_done, num_all: None,
) -> None:
    """Train the towers and save them as a model directory; nothing happens where it is there already.

    num_threads: of the processor, for drawing and for training. on_progress: what is done, how much of it,
    of how much.
    """
    if directory.is_dir():
        return
    import numpy as np
    import torch

    from model import XClip
    from training.demo_corpus.grammar import vocabulary
    from training.demo_model import stages
    from training.demo_model.training_set import make_groups, make_training_set

    demo_recipe = recipe.demo_recipe()
    num_threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            model = XClip(demo_recipe.model_config(sorted(vocabulary()))).train()
        num_scenes, num_drawn = recipe.num_groups * recipe.group_size, 0

        def on_drawn(count: int) -> None:
            nonlocal num_drawn
            num_drawn += count
            on_progress("drawing pictures", num_drawn, num_scenes)

        data = make_training_set(
            demo_recipe, make_groups(demo_recipe), model.tokenizer, num_threads, on_drawn
        )
        stages.learn_pictures(
            model,
            data,
            demo_recipe,
            np.random.default_rng(recipe.seed),
            lambda stage, step, loss: on_progress("learning from pictures", step, recipe.num_steps),
        )
    finally:
        torch.set_num_threads(num_threads_before)
    model.eval()
    unfinished = directory.with_name(f"{directory.name}.unfinished")
    model.save(unfinished)
    unfinished.rename(directory)
