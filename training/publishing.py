"""The model card: a README.md that says what a published model is, was trained on, scores, and cannot do.

`make_card` gathers it from a run directory (`training.loop.run_directory`), a model directory and evaluation
reports (`training.evaluation.report`); `ModelCard` makes YAML metadata and Markdown of it.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from huggingface_hub import EvalResult, ModelCardData

from model import XClip, XClipConfig
from model.checkpoints.loading import CONFIG_FILE as MODEL_CONFIG_FILE
from model.score_names import SCORE_NAMES
from training.errors import EvaluationError, RunError
from training.evaluation.metrics import DIRECTIONS, FIGURES
from training.evaluation.paper_results import Direction
from training.loop.run_directory import CONFIG_FILE, SUMMARY_FILE, RunDirectory

LIBRARY = "xclip-search"
PAPER = "https://arxiv.org/abs/2207.07285"
CITATION = """\
@inproceedings{Ma2022XCLIP,
  title = {{X-CLIP}: End-to-End Multi-grained Contrastive Learning for Video-Text Retrieval},
  author = {Ma, Yiwei and Xu, Guohai and Sun, Xiaoshuai and Yan, Ming and Zhang, Ji and Ji, Rongrong},
  booktitle = {Proceedings of the 30th ACM International Conference on Multimedia},
  year = {2022},
  note = {arXiv:2207.07285}
}"""

BASE_MODELS = {
    "openclip:ViT-B-32-quickgelu/openai": "openai/clip-vit-base-patch32",
    "openclip:ViT-B-16-quickgelu/openai": "openai/clip-vit-base-patch16",
}
"""The same weights on the Hub, for the starting points of the shipped training configs."""


@dataclass(frozen=True)
class Figures:
    """The metrics of one direction of a split; recalls in percent, ranks from 1.

    Attributes:
        num_items: What each query was ranked among.
        chose_the_epoch: Whether these figures chose the best epoch.
    """

    dataset: str
    split: str
    direction: Direction
    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    median_rank: float
    mean_rank: float
    num_queries: int
    num_items: int
    chose_the_epoch: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        """What the figures are of."""
        return self.dataset, self.split, self.direction


@dataclass(frozen=True)
class TrainingFacts:
    """What a training run was.

    Attributes:
        start: The model spec that it started from.
        settings: Of the training config, by `section.field`, without folders of the machine.
        facts: What else is known of the run.
        versions: Of software.
    """

    start: str
    dataset: str
    split: str
    num_pairs: int | None
    num_clips: int | None
    num_epochs: int
    best_epoch: int
    chosen_by: str | None
    settings: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelCard:
    """The content of a card. Texts may hold anything: they are escaped here.

    Attributes:
        repository: `OWNER/NAME`.
        license: An identifier of the Hub's, or `other`.
        training: None for a model that came without its run.
    """

    repository: str
    config: XClipConfig
    num_parameters: int
    fingerprint: str
    license: str = "other"
    training: TrainingFacts | None = None
    figures: Sequence[Figures] = ()

    def to_markdown(self) -> str:
        """The whole file: YAML between `---`, then the text."""
        sections = (
            self._introduction(),
            self._use(),
            _results(self.figures),
            *([_training(self.training)] if self.training else []),
            self._limits(),
            ["## Citation", "", "```bibtex", CITATION, "```"],
        )
        body = "\n\n".join("\n".join(lines) for lines in sections if lines)
        return f"---\n{self._metadata().to_yaml()}\n---\n\n{body}\n"

    def _metadata(self) -> ModelCardData:
        name = self.repository.rpartition("/")[2]
        start = self.training.start if self.training else ""
        return ModelCardData(
            language="en",
            license=self.license,
            library_name=LIBRARY,
            # The Hub has no pipeline of its own for retrieval of videos.
            pipeline_tag="feature-extraction",
            tags=["video", "video-retrieval", "text-to-video-retrieval", "x-clip", "arxiv:2207.07285"],
            datasets=_public_datasets(self.training),
            metrics=["recall_at_1", "recall_at_5", "recall_at_10", "mean_rank"] if self.figures else None,
            base_model=BASE_MODELS.get(start) or _on_the_hub(start),
            model_name=name,
            eval_results=list(_eval_results(self.figures)) or None,
        )

    def _introduction(self) -> list[str]:
        config = self.config
        scores = "all four" if set(config.score_names) == set(SCORE_NAMES) else ", ".join(config.score_names)
        rows = {
            "vision tower": f"{_vision_tower(config)}, frames of {config.image_size} pixels",
            "text tower": f"{_text_tower(config)}, {config.num_words} tokens a text",
            "temporal transformer": f"{config.temporal_layers} layers, {config.num_frames} frames a video"
            if config.temporal_layers
            else f"none: the mean of {config.num_frames} frames",
            "features": f"{config.embedding_dim} numbers each",
            "scores averaged": scores,
            "aggregation": "attention over the similarity matrix"
            if config.aggregation == "attention"
            else config.aggregation,
            "padding": "masked" if config.mask_padding else "takes part, as in the official code",
            "parameters": f"{self.num_parameters:,}",
            "fingerprint": self.fingerprint,
        }
        if config.description:
            rows["description"] = config.description
        return [
            f"# {escape(self.repository.rpartition('/')[2])}",
            "",
            f"Finds videos by a sentence: [X-CLIP]({PAPER}) (Ma et al., ACM MM 2022), for {LIBRARY}.",
            "It is not a model of `transformers.XCLIPModel`, which is another network of the same name.",
            "",
            *_table(("", ""), rows.items()),
        ]

    def _use(self) -> list[str]:
        spec = f"hf-hub:{' '.join(self.repository.split())}"
        return [
            "## Use",
            "",
            *_fenced(
                f"xclip-search index VIDEOS --index my-index --model {spec}\n"
                'xclip-search search "a dog runs on the beach" --index my-index',
                "sh",
            ),
            "",
            *_fenced(
                "from model import XClip\n\n"
                f'model = XClip.load("{spec}")\n'
                'text = model.encode_text(["a dog runs on the beach"])',
                "python",
            ),
        ]

    def _limits(self) -> list[str]:
        config = self.config
        limits = [
            f"Of a text, {config.num_words - 2} tokens are read; of a segment of video, "
            f"{config.num_frames} frames. What happens between frames, and all sound, is not seen.",
            "Scores rank videos for one text. They are no probabilities, compare nothing across texts, "
            "and there is always a first result, also where no video fits.",
            "What its training data taught it, and CLIP's where it started from CLIP, prejudices included, "
            "is in here.",
        ]
        if config.vocabulary is not None:
            limits.append(
                f"It knows {len(config.vocabulary)} word pieces; every other word is the same to it."
            )
        if self.training:
            dataset = escape(self.training.dataset)
            limits.append(
                f"It was trained on {dataset}; how it does on other kinds of video was not measured here."
            )
        else:
            limits.append("How it was trained is not recorded here.")
        return ["## Limits", "", *(f"- {limit}" for limit in limits)]


def _vision_tower(config: XClipConfig) -> str:
    vision = config.clip["vision_cfg"]
    if name := vision.get("timm_model_name"):
        return f"{name} of timm"
    if not isinstance(vision.get("layers", 12), int):
        return f"ResNet, {sum(vision['layers'])} blocks of width {vision.get('width', 64)}"
    width, patch = vision.get("width", 768), vision.get("patch_size", 16)
    return f"ViT, {vision['layers']} layers of width {width}, patches of {patch}"


def _text_tower(config: XClipConfig) -> str:
    text = config.clip["text_cfg"]
    if name := text.get("hf_model_name"):
        return f"{name} of transformers"
    return f"{text.get('layers', 12)} layers of width {text.get('width', 512)}"


def _results(figures: Sequence[Figures]) -> list[str]:
    if not figures:
        return []
    rows = [
        (
            f"{one.dataset}, {one.split}",
            one.direction,
            *(f"{value:.1f}" for value in (one.recall_at_1, one.recall_at_5, one.recall_at_10)),
            *(f"{value:g}" for value in (one.median_rank, round(one.mean_rank, 1))),
            f"{one.num_queries:,}",
            f"{one.num_items:,}",
        )
        for one in figures
    ]
    names = ("data", "direction", "R@1", "R@5", "R@10", "median rank", "mean rank", "queries", "ranked among")
    lines = ["## Results", "", "R@k in percent; every pair scored.", "", *_table(names, rows)]
    chosen_on = sorted(
        {f"{escape(one.dataset)}, {escape(one.split)}" for one in figures if one.chose_the_epoch}
    )
    if chosen_on:
        lines += [
            "",
            f"The best epoch was chosen on {'; '.join(chosen_on)}, so those figures flatter the model.",
        ]
    return lines


def _training(facts: TrainingFacts) -> list[str]:
    rows = {"data": f"{facts.dataset}, {facts.split}", "started from": facts.start}
    if facts.num_pairs is not None:
        rows["pairs of text and clip"] = f"{facts.num_pairs:,}"
    if facts.num_clips is not None:
        rows["clips"] = f"{facts.num_clips:,}"
    by = f", chosen by {facts.chosen_by}" if facts.chosen_by else ""
    rows["epochs"] = f"{facts.num_epochs}; this is epoch {facts.best_epoch}{by}"
    rows |= facts.facts
    if facts.versions:
        rows["software"] = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    lines = ["## Training", "", *_table(("", ""), rows.items())]
    if facts.settings:
        lines += ["", "Settings:", "", *_table(("setting", "value"), facts.settings.items())]
    return lines


def _eval_results(figures: Iterable[Figures]) -> Iterator[EvalResult]:
    for one in figures:
        for metric, name in (
            ("recall_at_1", "R@1"),
            ("recall_at_5", "R@5"),
            ("recall_at_10", "R@10"),
            ("mean_rank", "mean rank"),
        ):
            task = f"{one.direction} retrieval"
            yield EvalResult(
                task_type=task.replace(" ", "-"),
                task_name=task,
                dataset_type=one.dataset,
                dataset_name=one.dataset,
                dataset_split=one.split,
                metric_type=metric,
                metric_name=name,
                metric_value=round(float(getattr(one, metric)), 2),
                metric_args={"num_queries": one.num_queries, "num_items": one.num_items},
            )


def _public_datasets(training: TrainingFacts | None) -> list[str] | None:
    """The data sets with a public name; `captions` and `demo` are the user's own."""
    return [training.dataset] if training and training.dataset not in ("captions", "demo") else None


def _on_the_hub(start: str) -> str | None:
    prefix, _, repository = start.partition("hf-hub:")
    return repository.partition("@")[0] if repository and not prefix else None


def escape(text: object) -> str:
    """Text that Markdown shows as it is, on one line, in a table cell too."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>#|~&!$])", r"\\\1", "".join(one for one in line if one.isprintable()))


def _table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield f"|{' --- |' * len(names)}"
    for row in rows:
        yield f"| {' | '.join(escape(cell) for cell in row)} |"


def _fenced(text: str, language: str) -> list[str]:
    """A code block whose fence is longer than any row of backticks within."""
    longest = max((len(found) for found in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", text, fence]


_OF_THE_MACHINE = {"data.directory", "data.videos", "data.cache", "data.num_workers"}


def is_run(directory: Path) -> bool:
    """Whether a directory is of a training run, not of a model."""
    return RunDirectory(directory).holds_a_run() and not (directory / MODEL_CONFIG_FILE).is_file()


def model_directory(directory: Path) -> Path:
    """The model's directory: a run's best one, or the directory itself. Raises RunError without one."""
    if not is_run(directory):
        return directory
    best = RunDirectory(directory).best
    if not best.is_dir():
        raise RunError(f"{directory} is a training run without a best model yet")
    return best


def card_text(
    directory: Path,
    model: XClip,
    repository: str,
    *,
    license: str | None = None,
    evaluations: Sequence[Path] = (),
) -> str:
    """The README.md to publish: the one in `directory` or next to the model, else one written by `make_card`.

    Raises:
        RunError: There is one already and `license` or `evaluations` ask for another.
    """
    for folder in (directory, model_directory(directory)):
        path = folder / "README.md"
        if path.is_file():
            if license or evaluations:
                raise RunError(f"{path} is published as it is: change it there, or remove it for a new card")
            return path.read_text(encoding="utf-8")
    card = make_card(directory, model, repository, license=license or "other", evaluations=evaluations)
    return card.to_markdown()


def make_card(
    directory: Path,
    model: XClip,
    repository: str,
    *,
    license: str = "other",
    evaluations: Iterable[Path] = (),
) -> ModelCard:
    """The card of a model and, where `directory` is of its run, of the run.

    Args:
        model: Loaded from `model_directory(directory)`.
        evaluations: JSON reports of `xclip-search evaluate`.

    Raises:
        RunError, EvaluationError: A file is not as it should be, or is of another model.
    """
    training, figures = read_run(directory, model.fingerprint) if is_run(directory) else (None, [])
    # A report says more than the run's own validation of the same split.
    known = {one.key: one for one in figures}
    for path in evaluations:
        for one in read_evaluation(path, model.fingerprint):
            chose = one.key in known and known[one.key].chose_the_epoch
            known[one.key] = Figures(**{**vars(one), "chose_the_epoch": chose})
    return ModelCard(
        repository,
        model.config,
        sum(parameter.numel() for parameter in model.parameters()),
        model.fingerprint,
        license,
        training,
        tuple(known.values()),
    )


def read_run(directory: Path, fingerprint: str) -> tuple[TrainingFacts, list[Figures]]:
    """What a run directory records of its best model.

    Args:
        fingerprint: Of that model.

    Raises:
        RunError: The run is not done, damaged, or of another model.
    """
    path = directory / SUMMARY_FILE
    if not path.is_file():
        raise RunError(
            f"{directory} has no summary.json: the run is not done; push its best/ for a short card"
        )
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        if summary["best"]["fingerprint"] != fingerprint:
            raise RunError(
                f"{path} is of another model than the one in best/, so its figures are not this one's"
            )
        config = tomllib.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
        return _training_facts(summary, config), _validation_figures(summary)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{directory} is not a training run that can be read: {error!r}") from None


def _training_facts(summary: Mapping[str, Any], config: Mapping[str, Any]) -> TrainingFacts:
    train, best = summary["train"], summary["best"]
    settings = {
        f"{section}.{name}": _without_folders(value)
        for section, values in config.items()
        for name, value in values.items()
        if section != "log" and f"{section}.{name}" not in _OF_THE_MACHINE
    }
    facts = {
        "steps": f"{summary['num_steps']:,}",
        "time": f"{summary['wall_seconds'] / 3600:.2f} hours",
        "processes": f"{summary['num_processes']} on {summary['device']}",
    }
    if train["num_missing_clips"]:
        facts["clips left out, their video missing"] = f"{train['num_missing_clips']:,}"
    return TrainingFacts(
        start=_without_folders(config["model"]["start"]),
        dataset=train["dataset"],
        split=train["split"],
        num_pairs=train["num_pairs"],
        num_clips=train["num_clips"],
        num_epochs=config["training"]["epochs"],
        best_epoch=best["epoch"],
        chosen_by=best["by"],
        settings=settings,
        facts=facts,
        versions=summary["versions"],
    )


def _validation_figures(summary: Mapping[str, Any]) -> list[Figures]:
    found = summary["best"]["validation"]
    if found is None:
        return []
    split = summary["validation"]
    return [
        Figures(
            split["dataset"],
            split["split"],
            direction,
            **{name: found[key][name] for name in FIGURES},
            num_queries=found[key]["num_queries"],
            num_items=found["num_clips"],
            chose_the_epoch=True,
        )
        for direction, key in zip(get_args(Direction), DIRECTIONS, strict=True)
    ]


def read_evaluation(path: Path, fingerprint: str) -> list[Figures]:
    """The exhaustive rows of a report that `xclip-search evaluate` wrote as JSON.

    Args:
        fingerprint: Of the model that the report must be of.

    Raises:
        EvaluationError: It is of another model, or no report of an evaluation.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["model"]["fingerprint"] != fingerprint:
            raise EvaluationError(f"{path} is an evaluation of another model")
        found = [
            Figures(
                report["dataset"],
                report["split"],
                row["direction"],
                **{name: row["metrics"][name] for name in (*FIGURES, "num_queries", "num_items")},
            )
            for row in report["rows"]
            if row["kind"] == "exhaustive"
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(f"{path} is not a report of xclip-search evaluate: {error!r}") from None
    if not found:
        raise EvaluationError(f"{path} holds no row in which every pair was scored")
    return found


def _without_folders(value: object) -> str:
    """A setting as text. Of a local path only the last part is published."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    if isinstance(value, bool):
        return text.lower()
    if re.match(r"[/\\~.]|[A-Za-z]:[/\\]", text):
        name = re.split(r"[/\\]", text.rstrip("/\\"))[-1]
        return f"{name} (a local path)"
    return text
