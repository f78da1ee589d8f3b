"""The ablations: what is compared, what the paper found, and the grid on a miniature of everything."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from typer.testing import CliRunner

from model import XClip
from model.score_names import SCORE_NAMES
from training.ablation import runner
from training.ablation.corpus import HELD_OUT_SETS, training_scenes, write_training_corpus
from training.ablation.paper_tables import AGGREGATIONS, GRANULARITIES, TEMPERATURES, TEMPORAL_ENCODER
from training.ablation.report import (
    METRICS,
    described_sets,
    draw_plot,
    spread,
    summarize,
    write_tables,
)
from training.ablation.runner import RunOptions, prepare_folder, run_grid
from training.ablation.settings import Folders, claim_folder, quick_settings, standard_settings
from training.ablation.variants import (
    FULL,
    TABLES,
    RunPlan,
    Variant,
    distinct_variants,
    plan_runs,
    read_records,
    select_tables,
)
from training.config import parse_config
from training.datasets.registry import load_split
from training.demo_corpus.captions import full_description, satisfies
from training.demo_corpus.held_out import is_held_out
from training.errors import ConfigError, RunError
from training.evaluation.metrics import DIRECTIONS
from training.loop.preparation import is_plain_clip, starting_model
from training.scorers import SCORERS
from xclip_search.ablate import app

QUICK = quick_settings()
FULL_VARIANT = Variant(FULL)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Folders:
    """A prepared miniature. Tests that train in it use variants of their own."""
    folders = Folders(tmp_path_factory.mktemp("ablation") / "output")
    claim_folder(folders.output, QUICK)
    prepare_folder(folders, QUICK, 1, lambda what, num_done, num_all: None)
    return folders


def records_of(variants, num_seeds=2, held_out_sets=("random",)):
    """Made-up records; every figure differs."""
    figures = iter(range(10, 100_000))
    return [
        {
            "variant": plan.variant.name,
            "seed": plan.seed,
            "sets": {
                name: {
                    direction: {metric: next(figures) / 10 for metric in METRICS} for direction in DIRECTIONS
                }
                for name in held_out_sets
            },
        }
        for plan in plan_runs(variants, num_seeds)
    ]


# What is compared


def test_every_subset_of_the_four_scores_is_compared_and_only_once():
    chosen = [set(variant.choices.get("score_names", SCORE_NAMES)) for variant in TABLES["scores"].variants]
    every = [set(names) for size in range(1, 5) for names in combinations(SCORE_NAMES, size)]
    assert len(chosen) == 15
    assert all(one in chosen for one in every)


def test_every_table_holds_the_full_model_and_it_is_trained_once():
    for table in TABLES.values():
        assert [variant.name for variant in table.variants].count(FULL) == 1
    names = [variant.name for variant in distinct_variants(select_tables(None))]
    assert len(names) == len(set(names)) == 28


def test_every_scorer_is_compared():
    variants = TABLES["scorers"].variants
    assert {variant.choices.get("scorer", "xclip") for variant in variants} == set(SCORERS)
    assert all(variant.trained == SCORERS[variant.name].needs_training for variant in variants)


def test_an_unknown_table_is_refused_and_the_known_ones_are_named():
    with pytest.raises(ConfigError, match="no such table: tempo; there are scorers, scores"):
        select_tables(["temporal", "tempo"])


def test_the_seeds_come_one_after_another_and_what_is_not_trained_has_one():
    zero_shot = Variant("clip", {"scorer": "clip"}, trained=False)
    plans = plan_runs((zero_shot, FULL_VARIANT), 2)
    assert [plan.name for plan in plans] == ["clip-seed-0", "xclip-seed-0", "xclip-seed-1"]


# The paper


def test_every_row_of_the_paper_answers_to_a_variant_and_its_full_model_is_best():
    for table in TABLES.values():
        names = {variant.name for variant in table.variants}
        assert set(table.paper.rows) <= names
        best = max(table.paper.rows.values(), key=lambda row: row.text_to_video.recall_at_1)
        assert best is table.paper.rows[FULL]


def test_the_paper_s_figures_agree_with_what_its_text_says_of_them():
    def recall(table, name):
        return table.rows[name].text_to_video.recall_at_1

    # "absolute improvements of 2.4% and 1.0%" of Exp8 and Exp9 on Exp1, "1.0% and 0.7%" of Exp13, 14 on Exp10
    assert recall(GRANULARITIES, "vs+sf") - recall(GRANULARITIES, "vs") == pytest.approx(2.4)
    assert recall(GRANULARITIES, "vs+vw") - recall(GRANULARITIES, "vs") == pytest.approx(1.0)
    assert recall(GRANULARITIES, "vs+sf+fw") - recall(GRANULARITIES, "vs+fw") == pytest.approx(1.0)
    assert recall(GRANULARITIES, "vs+vw+fw") - recall(GRANULARITIES, "vs+fw") == pytest.approx(0.7)
    # "the Mean-Mean strategy performs worst"; attention at each temperature is better than it
    worst = min(AGGREGATIONS.rows, key=lambda name: recall(AGGREGATIONS, name))
    assert worst == "mean-mean"
    assert all(recall(TEMPERATURES, name) > recall(AGGREGATIONS, "mean-mean") for name in TEMPERATURES.rows)
    assert recall(TEMPORAL_ENCODER, "no-temporal-encoder") < recall(TEMPORAL_ENCODER, FULL)


def test_the_full_model_has_the_same_figures_in_all_of_the_paper_s_tables():
    rows = [table.paper.rows[FULL] for table in TABLES.values()]
    for row in rows:
        for direction in DIRECTIONS:
            ours, first = getattr(row, direction), getattr(rows[0], direction)
            assert (ours.recall_at_1, ours.recall_at_5, ours.mean_rank) == (
                first.recall_at_1,
                first.recall_at_5,
                first.mean_rank,
            )


# Figures over seeds


def test_a_spread_is_mean_and_sample_standard_deviation():
    values = [61.0, 64.0, 66.5]
    assert spread(values).mean == pytest.approx(statistics.fmean(values))
    assert spread(values).std == pytest.approx(statistics.stdev(values))
    assert spread(values).num_seeds == 3
    assert spread([61.0]).std is None


def test_a_summary_takes_each_variant_s_own_records_and_leaves_absent_ones_empty():
    table = TABLES["temporal"]
    records = records_of([FULL_VARIANT], num_seeds=3)
    absent, full = summarize(table, "random", records)
    assert (absent.num_seeds, absent.figures) == (0, {})
    values = [record["sets"]["random"]["video_to_text"]["mean_rank"] for record in records]
    assert full.figures["video_to_text"]["mean_rank"] == spread(values)


def test_the_page_shows_our_figures_the_paper_s_and_the_failures(tmp_path):
    table = TABLES["temporal"]
    records = records_of(table.variants, held_out_sets=tuple(HELD_OUT_SETS))
    write_tables(
        tmp_path / "tables.md",
        [table],
        described_sets(QUICK.corpus),
        records,
        {"xclip-seed-9": "no disk"},
        "",
    )
    page = (tmp_path / "tables.md").read_text(encoding="utf-8")
    first = spread([record["sets"]["random"]["text_to_video"]["recall_at_1"] for record in records[::2]])
    assert f"| off | 2 | {first.mean:.1f} ± {first.std:.1f} |" in page
    assert "| with | 46.1 | 73.0 | - | 13.2 | 46.8 | 73.3 | - | 9.1 |" in page
    assert "`xclip-seed-9`: no disk" in page
    assert "tab:temporal" in page


def test_the_plot_is_a_picture_with_a_row_of_panels_for_each_table(tmp_path):
    from PIL import Image

    heights = []
    for number, tables in enumerate((select_tables(["temporal"]), select_tables(["temporal", "scorers"]))):
        path = tmp_path / f"{number}.png"
        draw_plot(path, tables, list(HELD_OUT_SETS), records_of([FULL_VARIANT], 2, tuple(HELD_OUT_SETS)))
        with Image.open(path) as picture:
            heights.append(picture.height)
    assert heights[1] > heights[0] + 200


# Settings


def test_a_number_of_steps_becomes_whole_epochs():
    standard = standard_settings()
    assert standard.steps_per_epoch == 3000 // 64
    changed = standard.with_steps(2 * standard.steps_per_epoch + 1)
    assert changed.config.training.epochs == 3
    assert changed.num_steps == 3 * standard.steps_per_epoch


def test_every_choice_of_a_run_is_one_that_a_training_config_can_hold():
    settings = standard_settings()
    for variant in distinct_variants(select_tables(None)):
        config = runner.variant_config(settings, RunPlan(variant, 1), Folders(Path("somewhere")))
        assert parse_config(config.to_toml()) == config


def test_a_folder_takes_results_of_one_kind_only(tmp_path):
    output = tmp_path / "output"
    claim_folder(output, QUICK)
    claim_folder(output, QUICK)
    with pytest.raises(RunError, match=r"config\.training\.epochs 1 there, 2 now"):
        claim_folder(output, QUICK.with_steps(QUICK.num_steps + 1))
    with pytest.raises(RunError, match="holds no ablations"):
        claim_folder(tmp_path, QUICK)


# Corpus and starting point


def test_the_corpus_loads_as_captioned_videos_and_training_never_sees_what_is_held_out(folders):
    train = load_split("captions", folders.corpus, "train")
    assert len(train.clips) == QUICK.corpus.num_groups * QUICK.corpus.group_size
    held_out = [load_split("captions", folders.corpus, "val")] + [
        load_split("captions", folders.corpus / manifest, "test") for manifest in HELD_OUT_SETS.values()
    ]
    assert [len(split.clips) for split in held_out] == [4, 10, 10]
    assert all(len(split.texts) == len(split.clips) for split in held_out)
    seen = {clip.id for clip in train.clips}
    assert not any(clip.id in seen for split in held_out for clip in split.clips)
    recipe = QUICK.corpus
    scenes = training_scenes(recipe.seed, recipe.num_groups, recipe.group_size)
    assert not any(is_held_out(scene) for scene in scenes)


def test_almost_every_other_clip_of_the_training_corpus_is_a_true_negative():
    recipe = standard_settings().corpus
    scenes = training_scenes(recipe.seed, 100, recipe.group_size)
    true = sum(satisfies(full_description(one), other) for one in scenes for other in scenes)
    assert len(scenes) <= true <= 1.01 * len(scenes)


def test_a_corpus_that_is_there_is_not_written_again(folders, monkeypatch):
    def write_again(*arguments):
        raise AssertionError("a clip was written again")

    manifests = {path: path.read_bytes() for path in folders.corpus.glob("*.jsonl")}
    monkeypatch.setattr("training.ablation.corpus.write_video", write_again)
    reports = []
    write_training_corpus(folders.corpus, QUICK.corpus, 1, lambda *report: reports.append(report))
    assert [num_done == num_clips for num_done, num_clips in reports] == [True]
    assert {path: path.read_bytes() for path in folders.corpus.glob("*.jsonl")} == manifests


def test_the_starting_point_is_plain_clip_and_every_variant_begins_from_its_towers(folders):
    start = XClip.load(folders.start)
    assert is_plain_clip(start)
    towers = start.clip.state_dict()
    for variant in distinct_variants(select_tables(None)):
        if variant.choices.get("scorer") == "taco":
            continue  # Its word weights have a test of their own (test_scorers).
        config = runner.variant_config(QUICK, RunPlan(variant, 0), folders)
        begun = starting_model(config.model, ["a red car spins"]).model.clip.state_dict()
        assert all(begun[name].equal(tensor) for name, tensor in towers.items())


# Runs


def test_the_same_run_gives_the_same_weights_and_another_seed_others(folders):
    plans = [RunPlan(replace(FULL_VARIANT, name=name), seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    first, again, other = (runner.execute(plan, RunOptions(QUICK, folders, device="cpu")) for plan in plans)
    assert first["fingerprint"] == again["fingerprint"] != other["fingerprint"]
    assert first["sets"] == again["sets"]
    assert first["num_steps"] == QUICK.num_steps
    assert read_records(plans, folders) == [first, again, other]


def test_zero_shot_is_the_starting_point_itself_and_training_changes_what_is_found(folders):
    zero_shot = Variant("clip", {"scorer": "clip"}, trained=False)
    trained = Variant("clip4clip-meanP", {"scorer": "clip4clip-meanP"})
    longer = QUICK.with_steps(30)
    before, after = (
        runner.execute(RunPlan(variant, 0), RunOptions(settings, folders, device="cpu", keep_models=True))
        for variant, settings in ((zero_shot, QUICK), (trained, longer))
    )
    assert "num_steps" not in before
    assert after["losses"][-1] < after["losses"][0]
    model = XClip.load(folders.run("clip4clip-meanP-seed-0") / "best")
    start = XClip.load(folders.start)
    vision = start.clip.visual.state_dict()
    assert all(model.clip.visual.state_dict()[name].equal(tensor) for name, tensor in vision.items())
    assert not model.clip.text_projection.equal(start.clip.text_projection)


def test_a_variant_that_fails_is_reported_and_stops_no_other(folders):
    bad = Variant("bad", {"scorer": "no-such"})
    plans = plan_runs((bad, replace(FULL_VARIANT, name="after-bad")), 1)
    ends = {}
    steps = []
    run_grid(
        plans,
        RunOptions(QUICK, folders, device="cpu"),
        1,
        lambda plan, num_done: steps.append(num_done),
        lambda plan, reason: ends.update({plan.name: reason}),
    )
    assert "no-such" in ends["bad-seed-0"]
    assert ends["after-bad-seed-0"] is None
    assert not folders.record("bad-seed-0").exists()
    assert folders.record("after-bad-seed-0").exists()
    assert not folders.run("after-bad-seed-0").exists()


def test_a_record_that_is_damaged_or_another_s_is_named(folders):
    plan = RunPlan(Variant("damaged"), 0)
    path = folders.record(plan.name)
    path.parent.mkdir(exist_ok=True)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"damaged-seed-0\.json cannot be read"):
        read_records([plan], folders)
    path.write_text(json.dumps({"variant": "other", "seed": 0}), encoding="utf-8")
    with pytest.raises(RunError, match="not the record of damaged-seed-0"):
        read_records([plan], folders)
    path.unlink()


def test_the_command_writes_tables_and_plot_and_does_nothing_twice(folders, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # Other tests run on the other processors.
    arguments = ["--output", str(folders.output), "--quick", "--jobs", "1", "--tables", "temporal"]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    page = (folders.output / "tables.md").read_text(encoding="utf-8")
    assert "## Temporal encoder" in page and "## Scorers" not in page
    results = json.loads((folders.output / "results.json").read_text(encoding="utf-8"))
    assert [run["variant"] for run in results["runs"]] == ["no-temporal-encoder", FULL]
    assert [row["num_seeds"] for row in results["tables"][0]["sets"]["sibling-hard"]] == [1, 1]
    assert (folders.output / "ablations.png").read_bytes().startswith(b"\x89PNG")

    def train_again(*arguments, **options):
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(runner, "train", train_again)
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert (folders.output / "tables.md").read_text(encoding="utf-8") == page


def test_wrong_use_is_one_line_and_exit_status_2(tmp_path):
    wrong = CliRunner().invoke(app, ["--output", str(tmp_path / "output"), "--tables", "none"])
    assert wrong.exit_code == 2
    assert wrong.output.startswith("error: no such table: none")
    assert not (tmp_path / "output").exists()
    foreign = CliRunner().invoke(app, ["--output", str(Path(__file__).parents[2]), "--quick"])
    assert foreign.exit_code == 1
    assert "holds no ablations" in foreign.output
    below_a_file = CliRunner().invoke(app, ["--output", str(Path(__file__) / "output"), "--quick"])
    assert isinstance(below_a_file.exception, SystemExit), below_a_file.exception
    assert below_a_file.exit_code == 1


def test_the_figures_that_the_docs_discuss_are_those_of_the_tables_that_the_command_wrote():
    docs = Path(__file__).parents[3] / "docs"

    def rows(name):
        """The cells of every row of every table, in order."""
        lines = (docs / name).read_text(encoding="utf-8").splitlines()
        return [
            [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")
        ]

    written = [row for row in rows("ablation-tables.md") if len(row) == 12 and row[1].isdigit()]
    discussed = [row for row in rows("ablations.md") if len(row) == 7 and row[1][0].isdigit()]
    labels = [label for table in TABLES.values() for _, label in table.rows]
    assert len(written) == 2 * len(labels)
    assert [row[0] for row in discussed] == labels
    for (
        table
    ) in TABLES.values():  # In the tables, all random rows of a table come before its sibling-hard ones.
        num_rows = len(table.rows)
        ours, theirs = discussed[:num_rows], written[: 2 * num_rows]
        del discussed[:num_rows], written[: 2 * num_rows]
        for row, random, hard in zip(ours, theirs[:num_rows], theirs[num_rows:], strict=True):
            assert row[1:] == [random[2], random[6], hard[2], hard[6], random[10], random[11]]


@pytest.mark.slow
def test_runs_in_processes_find_what_runs_in_this_process_find(folders):
    here, there, bad = (
        replace(FULL_VARIANT, name="here"),
        replace(FULL_VARIANT, name="there"),
        Variant("bad-there", {"scorer": "no-such"}),
    )
    options = RunOptions(QUICK, folders, device="cpu")
    ends = {}

    def on_end(plan, reason):
        ends[plan.name] = reason

    run_grid(plan_runs((here,), 1), options, 1, lambda plan, num_done: None, on_end)
    run_grid(plan_runs((bad, there), 1), options, 2, lambda plan, num_done: None, on_end)
    assert ends["here-seed-0"] is None and ends["there-seed-0"] is None
    assert "no-such" in ends["bad-there-seed-0"]
    mine, theirs = read_records(plan_runs((here, there), 1), folders)
    assert mine["fingerprint"] == theirs["fingerprint"]


@pytest.mark.slow
def test_the_whole_grid_runs_in_miniature(folders):
    arguments = ["--output", str(folders.output), "--quick", "--jobs", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    results = json.loads((folders.output / "results.json").read_text(encoding="utf-8"))
    assert len(results["runs"]) == 28
    rows = [row for table in results["tables"] for name in HELD_OUT_SETS for row in table["sets"][name]]
    assert all(row["num_seeds"] == 1 for row in rows)
