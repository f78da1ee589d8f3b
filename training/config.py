"""Every choice of a training run in one frozen record, read strictly from TOML and saved with the checkpoint.

The configs that ship with us are in `training/configs`.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tomli_w
from pydantic import ConfigDict, Field, Strict, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from model.score_names import DEFAULT_TEMPERATURE, Aggregation, ScoreName
from training.errors import ConfigError

SAME_RESULT = "the result does not depend on it"
"""Mark of a field that may differ when a run is resumed."""

SAME_UP_TO_ROUNDING = "the result depends on it by rounding only"
"""Mark of a field that may differ when a run is resumed, with a note."""

_CHECKED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

PathText = Annotated[Path, Strict(False)]


@dataclass(frozen=True, config=_CHECKED)
class ModelChoices:
    """What is trained and what it starts from; sizes and scores as in `model.XClipConfig`."""

    start: Annotated[
        str,
        Field(
            min_length=1,
            description="model spec that training starts from: plain CLIP weights, or an X-CLIP checkpoint of"
            " the same sizes to go on from",
        ),
    ] = "openclip:ViT-B-32-quickgelu/openai"
    num_words: Annotated[int, Field(ge=3, description="W, tokens of every text, start and end included")] = 32
    num_frames: Annotated[int, Field(ge=1, description="F, frames of every clip at most")] = 12
    temporal_layers: Annotated[
        int,
        Field(ge=0, description="blocks of the temporal transformer, where the scorer has one; 0: none"),
    ] = 4
    mask_padding: Annotated[
        bool,
        Field(
            description="leave padding words and frames out of the scores, which official training does not;"
            " some scorers always do"
        ),
    ] = False
    scorer: Annotated[
        str, Field(description="name in `training.scorers.SCORERS`; `xclip` is the paper's method")
    ] = "xclip"
    score_names: Annotated[
        tuple[ScoreName, ...] | None,
        Strict(False),
        Field(min_length=1, description="which of the four scores are averaged; absent: the scorer's"),
    ] = None
    aggregation: Annotated[
        Aggregation | None,
        Field(description="how similarities become a score; absent: the scorer's"),
    ] = None
    temperature: Annotated[float, Field(gt=0.0, description="softmax temperature of attention (AOSM)")] = (
        DEFAULT_TEMPERATURE
    )


@dataclass(frozen=True, config=_CHECKED)
class DataChoices:
    """Which captioned videos, and how frames are taken from them (`training.data.frames.FrameRecipe`)."""

    dataset: Annotated[str, Field(min_length=1, description="name in `training.datasets.registry.NAMES`")]
    directory: Annotated[
        PathText | None,
        Field(description="folder of the annotations"),
        SAME_RESULT,
    ] = None
    videos: Annotated[
        PathText | None,
        Field(description="folder of the videos, where they are not in `directory`"),
        SAME_RESULT,
    ] = None
    train_split: Annotated[
        Literal["train", "val", "test"], Field(description="part of the data set to learn from")
    ] = "train"
    validation_split: Annotated[
        Literal["train", "val", "test", "none"],
        Field(description="part that chooses the best model; `none`: the last is the best"),
    ] = "val"
    one_text_per_clip: Annotated[
        bool,
        Field(
            description="train on every clip once an epoch, each time with another of its texts, instead of"
            " on every text (official); then no clip meets its own texts as negatives"
        ),
    ] = False
    missing: Annotated[
        Literal["error", "warn"], Field(description="what a missing or unreadable video is")
    ] = "error"
    read_first: Annotated[
        bool,
        Field(
            description="read every clip before the first step, so that all unreadable ones are listed"
            " together; fills `cache`; always done where `missing` is `warn`"
        ),
        SAME_RESULT,
    ] = True
    frames_per_second: Annotated[
        float, Field(gt=0, le=1000, description="frames sampled in a second of video, of which F are taken")
    ] = 1.0
    frame_slice: Annotated[
        Literal["head", "tail", "uniform"], Field(description="which F where there are more")
    ] = "uniform"
    frame_order: Annotated[
        Literal["forward", "reversed", "shuffled"], Field(description="order of the frames in training")
    ] = "forward"
    frame_rule: Annotated[
        Literal["official", "time"],
        Field(description="frames by the official extractor's positions, or by time as the indexer does"),
    ] = "official"
    cache: Annotated[
        PathText | None,
        Field(description="folder in which decoded frames are kept"),
        SAME_RESULT,
    ] = None
    num_workers: Annotated[
        int, Field(ge=0, description="processes that decode, for each process that trains"), SAME_RESULT
    ] = 4


@dataclass(frozen=True, config=_CHECKED)
class OptimizerChoices:
    """How the weights move (`training.loop.optimizer.make_optimizer`)."""

    kind: Annotated[
        Literal["bert-adam", "adamw"], Field(description="the official optimizer, or PyTorch's AdamW")
    ] = "bert-adam"
    learning_rate: Annotated[float, Field(gt=0.0, description="highest rate, of all that is new")] = 1e-4
    clip_learning_rate_factor: Annotated[
        float, Field(ge=0.0, description="rate of CLIP's own weights, as a factor of `learning_rate`")
    ] = 1e-3
    weight_decay: Annotated[
        float, Field(ge=0.0, description="`bert-adam` decays all but biases, `adamw` all but vectors")
    ] = 0.2
    warmup_share: Annotated[
        float, Field(ge=0.0, lt=1.0, description="share of all steps in which the rate rises")
    ] = 0.1
    max_gradient_norm: Annotated[
        float,
        Field(gt=0.0, description="bound on the norm of all gradients together"),
    ] = 1.0


@dataclass(frozen=True, config=_CHECKED)
class TrainingChoices:
    """How long, in what batches, at what precision."""

    epochs: Annotated[int, Field(ge=1, description="times through the training texts")] = 5
    batch_size: Annotated[
        int,
        Field(
            ge=2,
            description="pairs in a step, of all processes together; every other pair of it is a negative",
        ),
    ] = 300
    micro_batch_size: Annotated[
        int | None,
        Field(
            ge=1,
            description="pairs encoded together in a process, to save memory; the loss and its gradients stay"
            " those of the whole batch; absent: all together",
        ),
        SAME_UP_TO_ROUNDING,
    ] = None
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"],
        Field(description="of the encoders; weights and scores stay float32"),
    ] = "float32"
    gather: Annotated[
        Literal["exact", "official"],
        Field(description="gradients across processes: those of one process, or the official code's"),
    ] = "exact"
    gradient_checkpointing: Annotated[
        bool,
        Field(description="compute the encoders' inner values twice instead of keeping them"),
        SAME_UP_TO_ROUNDING,
    ] = False
    freeze_layers: Annotated[
        int,
        Field(
            ge=-1,
            description="the official `--freeze_layer_num`: how many blocks of both towers do not learn;"
            " 0: what lies below the blocks; -1: everything learns",
        ),
    ] = 0
    freeze_towers: Annotated[
        tuple[Literal["vision", "text"], ...],
        Strict(False),
        Field(description="whole towers that do not learn"),
    ] = ()
    freeze_parameters: Annotated[
        tuple[str, ...],
        Strict(False),
        Field(description="single parameters that do not learn, such as `matrices.global_matrix`"),
    ] = ()
    seed: Annotated[int, Field(ge=0, lt=2**63, description="of the pairs' order and of random weights")] = 42
    cache_frame_features: Annotated[
        bool,
        Field(
            description="encode all frames once and keep their features in memory; for a frozen vision tower"
        ),
    ] = False
    validation_batch_size: Annotated[
        int, Field(ge=1, description="clips encoded together in validation"), SAME_UP_TO_ROUNDING
    ] = 32
    best_by: Annotated[
        Literal[
            "text_to_video.recall_at_1",
            "text_to_video.recall_at_5",
            "text_to_video.recall_at_10",
            "text_to_video.mean_rank",
            "video_to_text.recall_at_1",
            "video_to_text.recall_at_5",
            "video_to_text.recall_at_10",
            "video_to_text.mean_rank",
        ],
        Field(description="validation figure that chooses the best epoch; the later one where two are equal"),
    ] = "text_to_video.recall_at_1"
    checkpoint_every_steps: Annotated[
        int | None,
        Field(ge=1, description="steps between checkpoints, in addition to those of each epoch"),
        SAME_RESULT,
    ] = None


@dataclass(frozen=True, config=_CHECKED)
class LogChoices:
    """What is logged."""

    tensorboard: Annotated[
        bool, Field(description="write TensorBoard scalars, which needs the extra `train`"), SAME_RESULT
    ] = True
    every_steps: Annotated[
        int, Field(ge=1, description="steps between two TensorBoard points"), SAME_RESULT
    ] = 10


@dataclass(frozen=True, config=_CHECKED)
class TrainingConfig:
    """All sections."""

    data: DataChoices
    model: ModelChoices = ModelChoices()
    optimizer: OptimizerChoices = OptimizerChoices()
    training: TrainingChoices = TrainingChoices()
    log: LogChoices = LogChoices()

    def __post_init__(self) -> None:
        """Raises ConfigError where two fields contradict each other."""
        names = self.model.score_names or ()
        if len(set(names)) < len(names):
            raise ConfigError("[model].score_names: a score is named twice")

    def to_values(self) -> dict[str, dict[str, Any]]:
        """Every field by section and name as a value of JSON and TOML, absent ones left out."""
        return {
            section.name: {
                field.name: _plain(value)
                for field in fields(chosen)
                if (value := getattr(chosen, field.name)) is not None
            }
            for section in fields(self)
            for chosen in (getattr(self, section.name),)
        }

    def to_toml(self) -> str:
        """`to_values` as TOML; the same config gives the same bytes."""
        return tomli_w.dumps(self.to_values())

    def what_counts(self) -> dict[str, object]:
        """The fields that the result depends on, by `section.field`: a resumed run must have the same."""
        return self._where(lambda marks: SAME_RESULT not in marks and SAME_UP_TO_ROUNDING not in marks)

    def what_rounds(self) -> dict[str, object]:
        """The fields that the result depends on by rounding only, by `section.field`."""
        return self._where(lambda marks: SAME_UP_TO_ROUNDING in marks)

    def _where(self, wanted: Callable[[list[object]], bool]) -> dict[str, object]:
        return {
            f"{section.name}.{choice.name}": getattr(getattr(self, section.name), choice.name)
            for section in fields(self)
            for choice in fields(getattr(self, section.name))
            if wanted(information(getattr(self, section.name), choice.name).metadata)
        }


def information(section: object, name: str) -> FieldInfo:
    """What pydantic knows about a field of a section (or of its class): description, bounds, marks."""
    known: dict[str, FieldInfo] = section.__pydantic_fields__  # type: ignore[attr-defined]
    return known[name]


_SUFFIX = ".toml"
_KINDS: dict[str, type] = get_type_hints(TrainingConfig)


def read_config(path: Path, changes: Iterable[str] = ()) -> TrainingConfig:
    """A config from a TOML file.

    Args:
        path: The file.
        changes: `section.field=value`, as in `--set`.

    Raises:
        ConfigError: A field that is unknown, of another type, out of range, or in contradiction with another;
            the message names the file, the section and the field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the training config {path} cannot be read: {error}") from None
    return parse_config(text, changes, str(path))


def parse_config(text: str, changes: Iterable[str] = (), source: str = "config") -> TrainingConfig:
    """As `read_config`, from TOML text.

    Args:
        text: TOML.
        changes: As in `read_config`.
        source: What error messages call it.

    >>> config = parse_config("[data]\\ndataset = 'msvd'", ["training.epochs=3"])
    >>> config.training.epochs, config.optimizer.kind
    (3, 'bert-adam')
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not TOML: {error}") from None
    for change in changes:
        _apply(values, change)
    # All problems are collected, so that one run reports every one.
    problems = [
        f"there is no section [{name}]{_nearest(name, _KINDS)}" for name in values if name not in _KINDS
    ]
    sections: dict[str, Any] = {}
    for name, kind in _KINDS.items():
        chosen = values.get(name, {})
        if not isinstance(chosen, dict):
            problems.append(f"[{name}] must be a section, not a value")
            continue
        try:
            sections[name] = kind(**chosen)
        except ValidationError as error:
            problems += [_explain(name, problem) for problem in error.errors(include_url=False)]
    if problems:
        raise ConfigError("\n".join(f"{source}: {problem}" for problem in problems))
    try:
        return TrainingConfig(**sections)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def change_config(config: TrainingConfig, changes: Iterable[str]) -> TrainingConfig:
    """The config with `section.field=value` applied. Raises ConfigError like `read_config`."""
    return parse_config(config.to_toml(), changes)


def _apply(values: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    section, dot, field = name.strip().partition(".")
    if not (section and dot and field and equals):
        raise ConfigError(f"--set {change!r} is not section.field=value")
    if section not in _KINDS:
        raise ConfigError(f"--set {change!r}: there is no section [{section}]{_nearest(section, _KINDS)}")
    if field not in _field_names(section):
        raise ConfigError(f"--set {change!r}: {_unknown(section, field)}")
    chosen = values.setdefault(section, {})
    if not text.strip():
        chosen.pop(field, None)  # Back to the default.
        return
    try:
        chosen[field] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        chosen[field] = text.strip()  # A bare word or a path.


def _explain(section: str, problem: ErrorDetails) -> str:
    """One problem that pydantic found, in the terms of the config file."""
    field, *rest = (str(part) for part in problem["loc"])
    if problem["type"] == "unexpected_keyword_argument":
        return _unknown(section, field)
    if problem["type"] == "missing":
        return f"[{section}].{field} is missing"
    index = "".join(f"[{part}]" for part in rest)
    message = problem["msg"].removeprefix("Input ").replace("should", "must")
    return f"[{section}].{field}{index}: {message}, not {problem['input']!r}"


def _unknown(section: str, field: str) -> str:
    return f"there is no field [{section}].{field}{_nearest(field, _field_names(section))}"


def _field_names(section: str) -> list[str]:
    return [field.name for field in fields(_KINDS[section])]


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def shipped_configs() -> Mapping[str, str]:
    """The TOML text of every config that ships with us, by name, such as `msrvtt-9k-vit-b-32`."""
    folder = resources.files("training") / "configs"
    found = {
        entry.name.removesuffix(_SUFFIX): entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(_SUFFIX)
    }
    return dict(sorted(found.items()))


def find_config(name: str, changes: Iterable[str] = ()) -> TrainingConfig:
    """A config by the path of a TOML file or the name of a shipped one. Raises ConfigError."""
    if name.endswith(_SUFFIX) or Path(name).is_file():
        return read_config(Path(name), changes)
    shipped = shipped_configs()
    if name not in shipped:
        raise ConfigError(f"{name!r} is neither a TOML file nor a config we ship{_nearest(name, shipped)}")
    return parse_config(shipped[name], changes, name)
