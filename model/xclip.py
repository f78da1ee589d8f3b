"""X-CLIP (Ma et al., ACM MM 2022, arXiv:2207.07285): CLIP towers, a temporal transformer, four scores.

Not to be confused with `microsoft/xclip-*` and `transformers.XCLIPModel` (Ni et al.), a different model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from model.checkpoints.huggingface import make_tokenizer
from model.checkpoints.loading import read, write_directory
from model.checkpoints.official import read_official
from model.checkpoints.tensors import Checkpoint, WithoutRandomWeights, fill, place
from model.config import XClipConfig
from model.errors import ShapeError
from model.features import Scores, TextFeatures, VideoFeatures, VideoRecords
from model.preprocessing import PREPROCESSING
from model.runtimes.converted import MIN_PARAMETERS, ConvertedTower, usable_runtime
from model.runtimes.tower import text_to_convert, vision_to_convert
from model.scoring import COMPILED, ScoreHead
from model.temporal import TemporalTransformer, normalize_real, pool_frames
from model.tokenization import TextTokenizer
from model.towers import clip_towers, encode_positions, keep_statistics, text_tower, vocabulary_size

MAX_LOGIT_SCALE = math.log(100.0)
"""CLIP's bound on logit_scale (arXiv:2103.00020 section 2.5)."""


class XClip(nn.Module):
    """The network. `load` and `from_official` make one with weights; the constructor makes a random one.

    Gradients flow in training mode only; in evaluation mode, the mode that `load` returns, none are kept.

    >>> import torch
    >>> from model import XClip
    >>> model = XClip.load("demo", device="cpu")
    >>> text = model.encode_text(["a red car moves to the left", "two dogs"])
    >>> F, R = model.config.num_frames, model.config.image_size
    >>> video = model.encode_video(torch.zeros(1, F, 3, R, R), torch.ones(1, F))
    >>> model.score(text, video).total.shape
    torch.Size([2, 1])
    """

    def __init__(self, config: XClipConfig, tokenizer: TextTokenizer | None = None) -> None:
        """`tokenizer`: that of `config`, where its files are at hand; by default it is found by its name."""
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer or make_tokenizer(config)
        self.clip = clip_towers(config)
        width = config.embedding_dim
        self.temporal = (
            TemporalTransformer(width, config.temporal_layers, max(1, width // 64), config.context_length)
            if config.temporal_layers
            else None
        )
        # Named after what it holds; the name is in every saved checkpoint.
        self.matrices = ScoreHead(config)
        mean, std = torch.tensor(config.pixel_mean), torch.tensor(config.pixel_deviation)
        self.register_buffer("pixel_mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", std.view(3, 1, 1), persistent=False)
        if config.word_weighting != "uniform":
            # Saved with the model: texts cannot be scored without them.
            self.register_buffer("word_weights", torch.ones(vocabulary_size(self.clip)))
        # The towers on another runtime than PyTorch, by their names; none while weights may change.
        self._converted: dict[str, ConvertedTower] = {}

    # Loading and saving

    @classmethod
    def load(cls, spec: str | Path, device: str = "auto", runtime: str = "auto") -> XClip:
        """A model from a spec, in evaluation mode.

        Args:
            spec: `demo`; a directory that `save` wrote; an official checkpoint file;
                `openclip:ARCHITECTURE/PRETRAINED`; `openclip:ARCHITECTURE/random?seed=0`;
                `hf-hub:OWNER/NAME`.
            device: `cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU where there is one.
            runtime: What computes the towers on a processor: `torch`; `openvino`; `auto`: a kernel for
                CLIP's towers and OpenVINO for others, where they are installed and compute the same,
                except for small towers; `openvino-bf16`: as `auto` with frames in bfloat16, faster still on
                processors that have it, with a fingerprint of its own. See `model.runtimes` and decision 19.

        Raises:
            SpecError: The spec names nothing, or there is no such device or runtime.
            CheckpointError: The weights are damaged or do not fit.
        """
        model = cls.from_checkpoint(read(str(spec)), device)
        model._use_runtime(runtime)
        return model

    @classmethod
    def from_official(cls, path: str | Path, device: str = "auto") -> XClip:
        """A model from an official `pytorch_model.bin.N`, or the same tensors as .safetensors.

        All sizes are read off the weights; heads are width // 64.

        Raises:
            CheckpointError: A tensor is missing, unexpected or misshapen; the message names it.
        """
        return cls.from_checkpoint(read_official(Path(path)), device)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, device: str = "auto") -> XClip:
        """A model from config and tensors, in evaluation mode.

        Raises:
            CheckpointError: A tensor is missing, unexpected or misshapen; the message names it.
            SpecError: There is no such device.
        """
        # Loading takes no random numbers from the caller, and nearly none at all.
        with torch.random.fork_rng(devices=[]), WithoutRandomWeights():
            tokenizer = make_tokenizer(checkpoint.config, checkpoint.tokenizer_directory)
            model = cls(checkpoint.config, tokenizer)
        fill(model, checkpoint)
        place(model, device)
        return model

    def save(self, directory: str | Path) -> None:
        """Write `config.json`, `model.safetensors` (float32) and the tokenizer's files, if it has any.

        `directory` is made if absent.
        """
        write_directory(self.config, self.state_dict(), self.tokenizer, Path(directory))

    # Facts

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.clip.logit_scale.device
        return device

    @property
    def logit_scale_exp(self) -> float:
        """exp(logit_scale), the factor of every score; 1 to 100."""
        return float(self.clip.logit_scale.detach().exp())

    def probability(self, score: Tensor) -> Tensor | None:
        """How sure a model that was trained with a sigmoid is that a text and a video belong together.

        Args:
            score: float, any shape: `Scores.total`, or one of the scores, as they are, scaled.

        Returns:
            0 to 1, of the same shape: sigmoid(score + logit_bias) (arXiv:2303.15343 section 3.2), which
            SigLIP learned for one picture and one text. None for a model that was trained with a softmax over
            a batch, as CLIP and every X-CLIP are: it ranks and has no probability.
        """
        bias = self.clip.logit_bias
        return None if bias is None else torch.sigmoid(score + bias.detach().to(score.device))

    @property
    def vocabulary_size(self) -> int:
        """How many token ids there are."""
        return vocabulary_size(self.clip)

    @property
    def runtimes(self) -> dict[str, str | None]:
        """What computes each tower, of `model.runtimes.UsedRuntime`; None for one that was not needed yet."""
        return {
            name: self._converted[name].runtime if name in self._converted else "torch"
            for name in ("text", "vision")
        }

    @property
    def fingerprint(self) -> str:
        """sha256, 64 hex digits, over config, preprocessing and every weight; frames that are computed in
        bfloat16 give another.

        Computed once, for weights that no longer change: do not ask for it while training.
        """
        vision = self._converted.get("vision")
        if vision is None or not vision.is_bfloat16:
            return self._weights_fingerprint
        return hashlib.sha256(f"{self._weights_fingerprint}\nframes in bfloat16".encode()).hexdigest()

    @cached_property
    def _weights_fingerprint(self) -> str:
        digest = hashlib.sha256()
        digest.update(replace(self.config, description="").to_json().encode())
        digest.update(PREPROCESSING.encode())
        for name, tensor in sorted(self.state_dict().items()):
            values = tensor.detach().float().cpu().contiguous().numpy()
            digest.update(f"{name} {values.shape}".encode())
            digest.update(values)
        return digest.hexdigest()

    # Towers

    def _use_runtime(self, runtime: str) -> None:
        """Let another runtime than PyTorch compute the towers, see `load`."""
        used = usable_runtime(runtime, self.device)
        if used == "torch":
            return
        towers = [
            text_to_convert(self.clip, self.config, self.tokenizer),
            vision_to_convert(self.clip, self.config, bfloat16=used == "openvino-bf16"),
        ]
        if runtime == "openvino":
            towers = [replace(tower, kernel=None) for tower in towers]
        self._converted = {
            tower.name: ConvertedTower(tower, lambda: self._weights_fingerprint)
            for tower in towers
            if runtime != "auto" or tower.num_parameters >= MIN_PARAMETERS
        }

    def prepare(self, *parts: Literal["text", "vision", "scores"]) -> None:
        """Load what computes these towers, which else the first call does that needs them, or the scores.

        A conversion for another runtime, once on a machine, takes from seconds to a minute. Scores are
        computed by a kernel from then on, in this process, where Numba is installed (extra `fast`). It takes
        a second to load and, once on a machine, up to half a minute to compile: one search is done sooner
        without.
        """
        for name in parts:
            if name == "scores":
                COMPILED.prepare()
            elif name in self._converted:
                self._converted[name].prepare()

    def _encode_positions(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        if (converted := self._converted.get("text")) is not None:
            sentence, positions = converted(input_ids)
            return sentence, positions
        return encode_positions(text_tower(self.clip), self.config.architecture, input_ids)

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        """float [N, 3, R, R], normalised, to frames, float [N, D]."""
        if (converted := self._converted.get("vision")) is not None:
            return converted(pixels)[0]
        frames: Tensor = self.clip.visual(pixels)
        return frames

    # Weights that change or move are PyTorch's again: a conversion would go on with those it was made of.

    def train(self, mode: bool = True) -> XClip:
        """Training mode, in which gradients flow. Forgets a fingerprint computed earlier."""
        if mode:
            self.__dict__.pop("_weights_fingerprint", None)
            self._converted = {}
        super().train(mode)
        keep_statistics(self.clip)
        return self

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """As PyTorch's. Forgets a fingerprint computed earlier."""
        self.__dict__.pop("_weights_fingerprint", None)
        self._converted = {}
        return super().load_state_dict(*args, **options)

    def _apply(self, *args: Any, **options: Any) -> XClip:  # Behind `to`, `half` and the like.
        self._converted = {}
        super()._apply(*args, **options)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:  # A copy has weights of its own.
        return {**self.__dict__, "_converted": {}}

    # Text

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids, int64 [T, L]; with CLIP's tokenizer start, tokens cut to L - 2, end, zeros.

        Raises:
            TokenError: A text is not valid Unicode.
            SpecError: The tokenizer has files of its own, which are not here and cannot be fetched.
        """
        return self.tokenizer(texts)

    def unknown_words(self, text: str) -> list[str]:
        """Words of `text` that the model has no embedding for; empty for the full CLIP vocabulary."""
        return self.tokenizer.unknown_words(text)

    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        """Features of T texts.

        Raises:
            TokenError: A text is not valid Unicode.
        """
        return self.encode_tokens(self.tokenize(texts))

    def encode_tokens(self, input_ids: Tensor) -> TextFeatures:
        """Features of T texts from token ids, int64 [T, L], L being `XClipConfig.num_tokens`.

        What a position sees, and where the sentence is read, is the text tower's (`model.architecture`). The
        words are the first W positions. Where the config masks padding, the word features of padding are
        zeros; elsewhere they are what the tower makes of padding.

        Raises:
            ShapeError: L is another.
        """
        config = self.config
        if input_ids.ndim != 2 or input_ids.shape[1] != config.num_tokens:
            raise ShapeError(f"token ids must be [T, {config.num_tokens}], not {list(input_ids.shape)}")
        input_ids = input_ids.to(self.device)
        mask = self.tokenizer.mask(input_ids)  # [T, L]
        length = config.num_tokens
        if config.mask_padding and len(mask) and not config.architecture.reads_padding:
            # Positions after the longest text are not computed: nothing before them sees them.
            length = int(mask.any(dim=0).nonzero().max()) + 1 if bool(mask.any()) else 1
        with self._gradients():
            sentence, words = self._encode_positions(input_ids[:, :length])
            sentence = _unit(sentence.float())
            words = functional.pad(_unit(words.float()), (0, 0, 0, max(0, config.num_words - length)))
            words, word_mask = words[:, : config.num_words], mask[:, : config.num_words]
            if config.mask_padding:
                words = words.masked_fill(~word_mask[..., None], 0.0)
        weights = None
        if config.word_weighting != "uniform":
            known: Tensor = self.word_weights  # type: ignore[assignment]
            weights = known[input_ids[:, : config.num_words]].masked_fill(~word_mask, 0.0)
        return TextFeatures(sentence, words, word_mask, weights)

    # Video

    def normalize_pixels(self, pixels: Tensor | NDArray[np.uint8]) -> Tensor:
        """uint8 [..., R, R, 3] RGB to float32 [..., 3, R, R] normalised, on the model's device.

        Raises:
            ShapeError: Another type or last dimension.
        """
        if isinstance(pixels, np.ndarray):
            pixels = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
        if pixels.dtype != torch.uint8 or pixels.shape[-1] != 3:
            raise ShapeError(f"pixels must be uint8 [..., R, R, 3], not {pixels.dtype} {list(pixels.shape)}")
        unit = pixels.to(self.device).movedim(-1, -3).float() / 255
        normal: Tensor = (unit - self.pixel_mean) / self.pixel_std  # type: ignore[operator]
        return normal

    def encode_video(self, pixels: Tensor, frame_mask: Tensor) -> VideoFeatures:
        """Features of V videos.

        The frame features of padding are zeros where the config masks padding, elsewhere the encoding of an
        all-zero frame.

        Args:
            pixels: float [V, F, 3, R, R], normalised; padding frames are zeros, or are taken to be.
            frame_mask: bool or integer [V, F], non-zero for real frames, at least one in each row.

        Raises:
            ShapeError: Other shapes, or a video without a real frame (its mean is undefined).
        """
        size = self.config.image_size
        if pixels.ndim != 5 or pixels.shape[1:] != (self.config.num_frames, 3, size, size):
            raise ShapeError(
                f"pixels must be [V, {self.config.num_frames}, 3, {size}, {size}], not {list(pixels.shape)}"
            )
        if frame_mask.shape != pixels.shape[:2]:
            raise ShapeError(f"frame_mask must be {list(pixels.shape[:2])}, not {list(frame_mask.shape)}")
        frame_mask = _with_real_frames(frame_mask).to(pixels.device)
        with self._gradients():
            # Only real frames go through the tower, and one all-zero frame for all of the padding.
            encoded = self._encode_pixels(pixels[frame_mask].to(self.device)).float()  # [real frames, D]
            frames = self._padding_frame().expand(*frame_mask.shape, -1).clone()  # [V, F, D]
            frames[frame_mask.to(self.device)] = encoded
            return self.encode_frames(frames, frame_mask)

    def _padding_frame(self) -> Tensor:
        """What stands for a padding frame, not normalised: float [D]."""
        if self.config.mask_padding:
            return torch.zeros(self.config.embedding_dim, device=self.device)
        size = self.config.image_size
        frame: Tensor = self._encode_pixels(torch.zeros(1, 3, size, size, device=self.device)).float()[0]
        return frame

    def encode_frames(self, frames: Tensor, frame_mask: Tensor) -> VideoFeatures:
        """The part of `encode_video` above the vision tower.

        Args:
            frames: float [V, F, D], the tower's output, not normalised.
            frame_mask: bool or integer [V, F], non-zero for real frames, at least one in each row.

        Raises:
            ShapeError: A video without a real frame.
        """
        frame_mask = _with_real_frames(frame_mask).to(self.device)
        with self._gradients():
            # Frame features are those from before the temporal transformer (as in the official modules/
            # modeling_xclip.py): only the video feature has seen the other frames.
            mixed = frames if self.temporal is None else self.temporal(frames, frame_mask)  # [V, F, D]
            video = pool_frames(mixed, frame_mask)  # [V, D]
            if self.config.mask_padding:
                unit = normalize_real(frames, frame_mask)
            else:
                unit = frames / frames.norm(dim=-1, keepdim=True)
            return VideoFeatures(video, unit, frame_mask)

    # Scores

    def score(
        self,
        text: TextFeatures,
        video: VideoFeatures | VideoRecords,
        wanted: Collection[str] | None = None,
    ) -> Scores:
        """The four scores of every text with every video and their mean, float32 [T, V], scaled.

        In evaluation mode the work is done in blocks, so that memory does not grow with T x V.

        Args:
            text: T texts.
            video: V videos; in evaluation mode perhaps records of a table, which are not copied.
            wanted: Of `SCORE_NAMES`, those to compute: `config.score_names` for what the total averages. By
                default all four, in training mode those of the total. The others come back as NaN, and so
                does the total where it averages one of them.

        Raises:
            ShapeError: Features of other lengths, or texts without the word weights of the config.
            ValueError: A wanted score that there is not.
        """
        with self._gradients():
            scores: Scores = self.matrices(text, video, self.clip.logit_scale.exp(), wanted)
            return scores

    def coarse_query(self, text: TextFeatures) -> Tensor:
        """What the coarse index is asked for, float32 [T, D].

        Its inner product with `VideoFeatures.video`, times exp(logit_scale), is `video_sentence`.
        """
        with self._gradients():
            # Not normalised: that would keep the order within a text, and lose the score.
            return self.matrices.map_sentences(text.sentence)

    def frame_matches(self, text: TextFeatures, video: VideoFeatures) -> Tensor:
        """How well each frame matches each text, float32 [T, V, F], scaled; -inf for padding frames.

        See `model.scoring.ScoreHead.match_frames`.
        """
        with self._gradients():
            return self.matrices.match_frames(text, video, self.clip.logit_scale.exp())

    def word_frame_similarity(self, text: TextFeatures, video: VideoFeatures) -> Tensor:
        """Inner product of each mapped word with each frame, float32 [T, V, W, F], not scaled."""
        with self._gradients():
            return self.matrices.word_frame_similarity(text, video).transpose(1, 2)

    def _gradients(self) -> torch.set_grad_enabled:
        return torch.set_grad_enabled(self.training and torch.is_grad_enabled())

    # Training

    @torch.no_grad()
    def initialize_from_clip(self) -> None:
        """Start the parts above the towers from CLIP's weights, as official training does.

        Frame positions <- text positions; temporal block n <- text block n; AOSM <- identity.

        Raises:
            ShapeError: The text tower is no causal transformer of CLIP's kind, its width is not D, or it has
                too few blocks. The temporal transformer then stays random, with blocks that add nothing yet.
        """
        if self.temporal is not None:
            if not self._temporal_fits_text_blocks():
                self.temporal.start_without_effect()
                raise ShapeError("the temporal transformer does not fit the text tower's blocks")
            text = text_tower(self.clip)
            source, positions = list(text.transformer.resblocks), text.positional_embedding
            self.temporal.frame_position_embeddings.weight.copy_(positions)
            for target, block in zip(self.temporal.resblocks, source, strict=False):
                target.load_state_dict(block.state_dict())
        for matrix in self.matrices.parameters():
            matrix.copy_(torch.eye(len(matrix), device=matrix.device))

    def _temporal_fits_text_blocks(self) -> bool:
        """Whether the temporal transformer can begin as the text tower's blocks, which are CLIP's then."""
        architecture, temporal = self.config.architecture, self.temporal
        if (
            temporal is None
            or architecture.sentence_at not in ("argmax", "eos")
            or not architecture.is_causal
        ):
            return False
        text = text_tower(self.clip)
        blocks, positions = list(text.transformer.resblocks), temporal.frame_position_embeddings.weight
        return text.positional_embedding.shape == positions.shape and [
            {name: weight.shape for name, weight in block.state_dict().items()}
            for block in blocks[: len(temporal.resblocks)]
        ] == [{name: weight.shape for name, weight in b.state_dict().items()} for b in temporal.resblocks]

    @torch.no_grad()
    def set_word_weights(self, weights: Tensor) -> None:
        """Set what a word counts where words are averaged; it is saved with the model.

        Args:
            weights: float [vocabulary size], 0 or more, by token id.

        Raises:
            ShapeError: The config weights words equally; weights of another shape, below 0 or not finite.
        """
        if self.config.word_weighting == "uniform":
            raise ShapeError("this model's config weights words equally: it takes no word weights")
        stored: Tensor = self.word_weights  # type: ignore[assignment]
        if weights.shape != stored.shape or not bool((weights.isfinite() & (weights >= 0)).all()):
            raise ShapeError(f"word weights must be {len(stored)} finite numbers of at least 0")
        stored.copy_(weights)
        self.__dict__.pop("_weights_fingerprint", None)

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep exp(logit_scale) at 100 or below; called after each optimizer step."""
        self.clip.logit_scale.clamp_(max=MAX_LOGIT_SCALE)


def _unit(x: Tensor) -> Tensor:
    """Each vector of the last dimension to unit length."""
    unit: Tensor = x / x.norm(dim=-1, keepdim=True)
    return unit


def _with_real_frames(frame_mask: Tensor) -> Tensor:
    """The mask as bool [V, F]. Raises ShapeError where a row has no real frame."""
    frame_mask = frame_mask.bool()
    if not bool(frame_mask.any(dim=1).all()):
        raise ShapeError("a video without a single real frame has no feature")
    return frame_mask
