"""What all benchmarks share: medians of interleaved rounds, tables, checks that end a program, JSON."""

import json
import time

import pytest

from benchmarks import machine
from benchmarks.report import Report, Spread, Timing, arguments, interleaved


def choices(*options):
    return arguments("A benchmark.").parse_args(options)


def test_functions_take_turns_and_each_round_begins_with_another():
    calls = []
    timings = interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=4, warm_up=1)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 4, "b": 4, "c": 4}


def test_timing_stops_when_its_time_is_up_but_not_before_three_rounds():
    timings = interleaved({"slow": lambda: time.sleep(0.01)}, rounds=100, within_seconds=0.0)
    assert len(timings["slow"].seconds) == 3
    assert timings["slow"].median >= 0.01


def test_a_ratio_is_that_of_rounds_timed_side_by_side():
    # The machine slows down four times in the middle: ours is twice the other in every round.
    other = Timing((1.0, 1.0, 4.0, 4.0, 4.0))
    ours = Timing((2.0, 2.0, 8.0, 8.0, 8.0))
    assert ours.ratio_to(other) == 2.0
    assert ours.ratio_to(Timing((4.0,))) == 2.0


def test_a_spread_is_in_its_unit_and_of_one_of_many():
    timing = Timing((0.001, 0.002, 0.003, 0.004, 0.005))
    assert timing.spread("ms") == Spread(3.0, 2.0, 4.0)
    assert timing.spread("us", per=10) == Spread(pytest.approx(300), pytest.approx(200), pytest.approx(400))
    assert Timing((0.5,)).spread("s") == Spread(0.5, 0.5, 0.5)


def test_tables_are_printed_and_written_with_machine_and_versions(tmp_path, capsys):
    path = tmp_path / "folder" / "report.json"
    timings = {
        "product": Timing((0.001, 0.001)),
        "fused": Timing((0.002, 0.002)),
        "PyTorch": Timing((0.005, 0.005)),
    }
    with Report("example", choices("--json", str(path))) as report:
        table = report.comparison("A title", "product", "fused", ["PyTorch", "absent"])
        table.add("8 words", timings)
        report.table("Sizes", {"videos": ",", "kind": ""}).add(10_000, "exact")
        report.check("equal", True, "0 apart")
        report.target("fused / product", 2.0, at_most=1.5)
        report.note("nothing was left out")
    printed = capsys.readouterr().out
    assert (
        "| 8 words | 1.00 (1.00-1.00) | 2.00 (2.00-2.00) | 5.00 (5.00-5.00) | - | 2.00 | 2.50 | - |"
        in printed
    )
    assert "| 10,000 | exact |" in printed
    assert "MISSED: fused / product: 2, at most 1.5" in printed
    written = json.loads(path.read_text())
    assert written["benchmark"] == "example"
    assert written["machine"]["cores"] == machine.num_cores()
    assert {"python", "torch"} <= set(written["machine"]["versions"])
    assert written["tables"][0]["rows"][0][2] == {"median": 2.0, "lower": 2.0, "upper": 2.0}
    assert written["targets"] == [
        {"what": "fused / product", "value": 2.0, "at_most": 1.5, "at_least": None, "kept": False}
    ]
    assert written["notes"] == ["nothing was left out"]


def test_a_comparison_may_be_without_a_floor(capsys):
    timings = {"ours": Timing((0.002,)), "PyTorch": Timing((0.005,))}
    with Report("example", choices()) as report:
        report.comparison("A title", None, "ours", ["PyTorch"]).add("8 words", timings)
    printed = capsys.readouterr().out
    assert "| case | ours, ms | PyTorch, ms | PyTorch / ours |" in printed
    assert "| 8 words | 2.00 (2.00-2.00) | 5.00 (5.00-5.00) | 2.50 |" in printed


def test_a_wrong_result_ends_the_program_with_status_1_after_it_was_written(tmp_path):
    path = tmp_path / "report.json"
    with pytest.raises(SystemExit) as ended, Report("example", choices("--json", str(path))) as report:
        report.check("equal to the plain function", False, "0.5 apart")
        report.check("ranks are equal", True)
    assert ended.value.code == 1
    assert [check["right"] for check in json.loads(path.read_text())["checks"]] == [False, True]


def test_the_machine_is_described_without_anything_heavy():
    facts = machine.describe()
    assert facts["processor"]
    assert facts["cores"] >= 1
    assert facts["memory_gib"] > 0
    assert facts["processor"] in machine.in_words(facts)


def test_a_process_of_its_own_has_its_own_memory():
    assert 1 < machine.in_process(machine.resident_mib) < machine.in_process(machine.resident_mib, "VmPeak")
