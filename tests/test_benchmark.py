"""The benchmark: its figures in closed form, the order of its turns, its processes, its command. No speed is tested."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from ms_diffusion import benchmark, workloads
from ms_diffusion.benchmark import Process, Spread
from ms_diffusion.config import Config, DataConfig, ModelConfig
from ms_diffusion.workloads import Workload

pytest.importorskip("torch", reason="the benchmark's other side: pip install torch==2.13.0 (CPU build)")

CONFIG = Config(model=ModelConfig(dim=4, dim_mults=(1,), convnext_mult=1), data=DataConfig(image_size=8))
TINY = "model: {dim: 4, dim_mults: [1], convnext_mult: 1}\ndiffusion: {timesteps: 20, schedule: cosine}\n" \
       "data: {image_size: 4}\ntrain: {batch_size: 2}\n"


# ---- Figures ----


def test_median_and_middle_80_percent():
    assert benchmark.spread(np.arange(11.0)[::-1]) == Spread(5, 1, 9)
    assert benchmark.spread(np.array([3.0])) == Spread(3, 3, 3)


def test_what_slows_down_a_whole_round_cancels():
    load = np.array([1.0, 7.0, 2.0, 1.0, 30.0])
    rows = benchmark.make_rows(
        Workload(Config(), "a.yaml", "training", 16), "training", (16, 1, 8, 8),
        {"native": 3.0 * load, "torch": 2.0 * load, "torch_channels_last": 6.0 * load},
    )
    ours = rows[0]
    assert ours.ratios == {"torch": Spread(1.5, 1.5, 1.5), "torch_channels_last": Spread(0.5, 0.5, 0.5)}
    assert ours.seconds == Spread(6.0, 3.0, pytest.approx(3 * (7 + 0.6 * 23))) and ours.samples == (3 * load).tolist()


def test_the_ratio_is_the_median_of_the_rounds_not_the_ratio_of_the_medians():
    samples = {"native": np.array([1.0, 6.0, 8.0]), "torch": np.array([1.0, 2.0, 16.0])}
    row = benchmark.make_rows(Workload(Config(), "", "forward", 1), "", (), samples)[0]
    assert row.ratios["torch"].median == 1 and row.seconds.median / 2 == 3


def test_references():
    assert benchmark.references(["native", "torch_channels_last", "torch"]) == ["torch_channels_last", "torch"]
    assert benchmark.references(["mindspore", "native"]) == ["mindspore"]


def test_the_harness_is_subtracted_in_each_round():
    """Harness 1 and 3, forward 10 and backward 20, each times the load of its round; of the second operator nothing."""
    load = np.array([1.0, 2.0, 5.0])
    forward, backward = 10.0, 20.0
    operator = np.stack([1 * load, 3 * load, (1 + forward) * load, (3 + forward + backward) * load], -1)
    nothing = np.stack([1 * load, 3 * load, 1 * load, 3 * load], -1)
    ours = np.stack([operator, nothing])
    loads = workloads.operators(CONFIG, "a.yaml", 2)
    two = dataclasses.replace(loads, operators=loads.operators[:2])
    rows = benchmark.split_operators(two, {"native": ours, "torch": ours / 2})
    found = {(row.name, row.contestant): row for row in rows}
    conv, empty = (operator.name for operator in two.operators)
    assert found[f"{conv}, forward", "native"].samples == pytest.approx(10 * load)
    assert found[f"{conv}, backward", "native"].samples == pytest.approx(20 * load)
    assert found[f"{conv}, backward", "torch"].seconds.median == pytest.approx(20)
    assert found[f"{conv}, backward", "native"].ratios["torch"] == pytest.approx((2, 2, 2))
    assert found["harness, both", "native"].samples == pytest.approx(3 * load)
    assert found[f"{empty}, forward", "native"].seconds.median == 0
    assert math.isnan(found[f"{empty}, forward", "native"].ratios["torch"].median), "0 / 0 is no ratio"
    table = benchmark.cross_table(rows)
    assert table.splitlines()[3].split() == f"a: {conv}, forward 4 2x4x8x8 20000 2.00 (2.00 to 2.00) 10000".split()
    assert table.splitlines()[5].split()[-3:] == ["0.000", "-", "0.000"]


# ---- In turns ----


def test_contestants_alternate_and_the_warm_up_does_not_count():
    """What a turn returns is its number, but for the first: there a call takes 5 ms at first and then 1 s."""
    calls, rounds = [], []

    def contestant(name):
        def turn(group, counts):
            calls.append((name, group, counts))
            return [[0.005, 0.005, 1.0, 0.1][len(calls) - 1] if len(calls) <= 4 else float(len(calls))]

        return turn

    seconds = benchmark.take_turns(
        {"a": contestant("a"), "b": contestant("b")}, groups=2, calls=1, repeats=3,
        after_round=lambda: rounds.append(len(calls)),
    )
    first = [("a", 0, [(0, 1)]), ("b", 0, [(0, 1)]), ("a", 0, [(1, 4)]), ("b", 0, [(1, 4)])]
    second = [("a", 1, [(0, 1)]), ("b", 1, [(0, 1)])]
    a_round = [("a", 0, [(0, 1)]), ("b", 0, [(1, 1)]), ("a", 1, [(0, 1)]), ("b", 1, [(0, 1)])]
    assert calls == first + 2 * second + 3 * a_round and rounds == [12, 16, 20]
    assert seconds["a"][:, :, 0].tolist() == [[9, 13, 17], [11, 15, 19]]
    assert seconds["b"][:, :, 0].tolist() == [[10, 14, 18], [12, 16, 20]]


# ---- Processes ----


@pytest.mark.parametrize("contestant, other", [("torch", "libmindspore"), ("mindspore_pynative", "libtorch")])
def test_a_process_holds_one_framework(contestant, other):
    process = Process(contestant, 1)
    try:
        assert process.ask("start") > 0
        own = {"libmindspore": "libtorch", "libtorch": "libmindspore"}[other]
        libraries = Path(f"/proc/{process._process.pid}/maps").read_text()
        assert own in libraries and other not in libraries
    finally:
        process.close()


def test_a_process_that_fails_says_why():
    process = Process("torch", 1)
    with pytest.raises(RuntimeError, match=r"the process of torch ended with status 1:\n(.|\n)*has no attribute 'no'"):
        process.ask("no")
    process.close()


def test_the_whole_network_compiled():
    row, = benchmark.measure(Workload(CONFIG, "a.yaml", "forward", 1), ["mindspore"], 2, 1)
    assert len(row.samples) == 2 and min(row.samples) > 0 and row.ratios["mindspore"] == Spread(1, 1, 1)
    assert row.more["first_call"] > 0 and row.more["peak_memory"] > 2**27


# ---- The command ----


def test_the_command_measures_steps(run_script, tmp_path, monkeypatch):
    monkeypatch.setattr(workloads, "SAMPLES", 3)
    (tmp_path / "tiny.yaml").write_text(TINY)
    status, stdout, stderr = run_script(
        "benchmark", "--config", tmp_path / "tiny.yaml", "--contestants", "torch_channels_last", "--batch_sizes", 2,
        "--repeats", 2, "--threads", 1, "--json", tmp_path / "a.json",
    )
    assert status == 0, stderr
    lines = stdout.splitlines()
    head = next(index for index, line in enumerate(lines) if "median ms" in line)
    assert "over torch_channels_last" in lines[head] and "load_average: " in stdout and "torch: 2." in stdout
    assert [line.split("  ")[0] for line in lines[head + 1:-1]] == [
        "tiny: training, batch 2", "tiny: forward, batch 2", "tiny: reverse step, batch 3",
        "tiny: sampling, 20 steps of 3"]
    assert "tiny: training, batch 2" in stderr and "2/2" in stderr

    report = json.loads((tmp_path / "a.json").read_text())
    assert report["about"]["repeats"] == 2 and "benchmark.py --config" in report["about"]["command"]
    assert [row["contestant"] for row in report["rows"]] == 4 * ["torch_channels_last"]
    for row in report["rows"]:
        assert len(row["samples"]) == 2 and row["seconds"]["low"] <= row["seconds"]["median"] <= row["seconds"]["high"]
        assert row["shape"] == [2 if row["name"].endswith("batch 2") else 3, 1, 4, 4]
        assert row["more"].keys() == {"import", "first_call", "peak_memory", "cores_working", "cores_asleep"}


def test_the_command_measures_one_workload(run_script, tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    status, stdout, stderr = run_script(
        "benchmark", "--config", tmp_path / "tiny.yaml", "--contestants", "torch", "--workloads", "forward",
        "--batch_sizes", 2, "--repeats", 1, "--threads", 1,
    )
    assert status == 0, stderr
    table = stdout[stdout.index("median ms"):].splitlines()[1:]
    assert [line.split("  ")[0] for line in table] == ["tiny: forward, batch 2"]


def test_the_command_measures_growth(run_script, tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    status, stdout, stderr = run_script(
        "benchmark", "--config", tmp_path / "tiny.yaml", "--growth", "--contestants", "torch",
        "--batch_sizes", 2, "--image_sizes", 6, "--dims", 8, "--repeats", 1, "--threads", 1,
    )
    assert status == 0, stderr
    assert stdout.splitlines()[-1].split()[:6] == ["tiny:", "training,", "batch", "2", "8", "2x1x6x6"]


def test_the_command_measures_operators(run_script, tmp_path, monkeypatch):
    def three(*arguments):
        load = operators(*arguments)
        return dataclasses.replace(load, operators=load.operators[1:8:3])

    operators = workloads.operators
    monkeypatch.setattr(workloads, "operators", three)
    (tmp_path / "tiny.yaml").write_text(TINY)
    status, stdout, stderr = run_script(
        "benchmark", "--config", tmp_path / "tiny.yaml", "--operators", "--contestants", "mindspore", "torch",
        "--repeats", 1, "--threads", 1, "--json", tmp_path / "a.json",
    )
    assert status == 0, stderr
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    names = [f"{name}, {part}" for name in ("conv 1x1", "GELU tanh", "layer norm") for part in ("forward", "backward")]
    assert [row["name"] for row in rows[::2]] == ["harness, forward", "harness, both", *names]
    assert "ms, and over torch" in stdout


def test_no_number_is_null():
    row = benchmark.make_rows(Workload(Config(), "", "forward", 1), "", (1,), {"torch": np.zeros(2)})[0]
    assert json.loads(benchmark.to_json([row], {"threads": 1}))["rows"][0]["ratios"] == {
        "torch": {"median": None, "low": None, "high": None}}


def test_without_pytorch(run_script, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    status, _, stderr = run_script("benchmark", "--contestants", "torch")
    assert status == 2 and "pip install torch==2.13.0" in stderr and stderr.count("\n") == 1


def test_without_kernels(run_script, monkeypatch, tmp_path):
    """Where nothing was built, nothing is measured, though contestants that need no kernels are named too."""
    monkeypatch.setenv("MS_DIFFUSION_CACHE", str(tmp_path))
    status, stdout, stderr = run_script("benchmark", "--contestants", "mindspore", "native")
    assert status == 2 and stdout == "" and stderr.count("\n") == 1
    assert stderr.startswith("error: no native kernels were built") and "scripts/build_kernels.py" in stderr
    assert "--contestants without native" in stderr


@pytest.mark.parametrize(
    "words, message",
    [
        (["--contestants", "tensorflow"], "tensorflow"), (["--contestants", "torch", "torch"], "one of them twice"),
        (["--repeats=0"], "repeats"), (["--batch_sizes", "0"], "batch_sizes"), (["--threads=1000"], "there are"),
        (["--config={tmp}/no.yaml"], "no.yaml"), (["--json={tmp}/a.txt"], "must end in .json"), (["--fast"], "--fast"),
        (["--operators", "--growth"], "leave out --growth"), (["--dims", "4"], "are for --growth"),
        (["--operators", "--contestants", "mindspore_pynative"], "compiled layers"),
        (["--workloads", "fly"], "fly"), (["--growth", "--workloads", "training"], "leave it out of --growth"),
        (["--operators", "--workloads", "training"], "--operators"),
        (["--config={tmp}/a.yaml"], "timesteps is 5"), (["--config={tmp}/b.yaml"], "b.yaml"),
        (["--config={tmp}/a.yaml", "--growth", "--image_sizes", "9"], "image_size is 9"),
    ],
)
def test_mistakes_are_one_line(words, message, run_script, tmp_path):
    (tmp_path / "a.yaml").write_text("diffusion: {timesteps: 5, schedule: cosine}\n")
    (tmp_path / "b.yaml").write_text("model: {width: 5}\n")
    status, stdout, stderr = run_script("benchmark", *[word.format(tmp=tmp_path) for word in words])
    assert status == 2 and message in stderr, stderr
    assert stderr.startswith("error: ") and stderr.count("\n") == 1 and not stdout
