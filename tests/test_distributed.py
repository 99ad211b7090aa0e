"""Ranks as processes of their own, on the CPU, by the command that a person types."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from ms_diffusion import checkpoint, distributed, runtime

ROOT = Path(__file__).parents[1]
LAUNCHER = ["bash", str(ROOT / "scripts" / "train_distributed.sh")]
HEAD = """
import os, signal, sys, time
import mindspore as ms, numpy as np
from mindspore import Parameter, Tensor, nn
from ms_diffusion import config, distributed, runtime
from ms_diffusion.errors import UserError, exit_on_user_error
"""


class Launched:
    """The launcher with two ranks of a script, or of scripts/train.py, and all processes that came of it."""

    def __init__(self, folder, body, *words):
        self.folder = folder
        self.output = folder / "terminal.txt"
        command = [*LAUNCHER, "2", "--log_dir", str(folder / "logs")]
        if body is not None:
            script = folder / "ranks.py"
            script.write_text(HEAD + body + "\nexit_on_user_error(main)\n")
            command += ["--script", str(script)]
        command += map(str, words)
        environment = {**os.environ, "PYTHON": sys.executable, "RANKS_OF": str(folder)}
        with open(self.output, "w") as terminal:
            self.process = subprocess.Popen(
                command, stdout=terminal, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def until(self, text, file=None):
        """Wait until the terminal, or a file, shows `text`."""
        file = file or self.output
        for _ in range(1200):
            if file.exists() and text in file.read_text():
                return
            assert self.process.poll() is None, self.output.read_text()
            time.sleep(0.1)
        raise AssertionError(self.output.read_text())

    def processes(self):
        """All that live of this launch, by their environment: the launcher, msrun, the scheduler, the ranks."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("RANKS_OF") == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def rank(self, number):
        """The process of a rank."""
        return next(found for found in self.processes() if found.environ().get("MS_NODE_ID") == str(number))

    def ended(self, seconds=55):
        """Exit status and terminal; nothing may be left behind."""
        status = self.process.wait(seconds)
        for _ in range(50):
            if not self.processes():
                break
            time.sleep(0.1)
        assert not self.processes()
        return status, self.output.read_text()


@pytest.fixture
def launch(tmp_path):
    """Start two ranks; whatever is left of them at the end of the test is killed."""
    launched = []

    def start(body, *words):
        launched.append(Launched(tmp_path, body, *words))
        return launched[-1]

    yield start
    for one in launched:
        for process in one.processes():
            process.kill()


AGREE = """
class Net(nn.Cell):
    def __init__(self):
        super().__init__()
        self.first = Parameter(np.linspace(0, 1, 6, dtype=np.float32), name="first")
        self.second = Parameter(np.full((2, 3), 0.1, np.float32), name="second")


def main():
    assert runtime.setup(config.RuntimeConfig(device="CPU")) == "CPU" and runtime.ranks() == 2
    rank = runtime.rank()
    assert runtime.threads() == max(1, int(sys.argv[1]) // 2), runtime.threads()
    shapes = ((3, 4), (), (1,), (2, 1, 5, 5), (40000,))
    drawn = [[np.asarray(np.random.default_rng(r).standard_normal(shape), "f") for shape in shapes] for r in (0, 1)]
    average = distributed.make_average(shapes)
    for function in (average, ms.jit(average)):
        means = function(tuple(Tensor(values) for values in drawn[rank]))
        for mean, one, two, shape in zip(means, *drawn, shapes):
            assert mean.shape == shape
            assert np.array_equal(mean.asnumpy(), (one + two) / np.float32(2))  # halving is exact
    infinite = average(tuple(Tensor(np.full(shape, rank or np.inf, "f")) for shape in shapes))
    assert all(np.isposinf(values.asnumpy()).all() for values in infinite)
    assert np.array_equal(distributed.mean(np.array([[rank, 4.0]])), [[0.5, 4]])
    assert distributed.any_of(rank == 1) and not distributed.any_of(False)
    net = Net()
    assert distributed.weights_differ(net) is None
    bits = net.second.asnumpy().copy()
    bits.view(np.int32)[1, 2] ^= rank
    net.second.set_data(Tensor(bits))
    print(rank, "found:", distributed.weights_differ(net))
    for what, number in (("this", 2**36 - 1), ("that", 2**24 + 1), ("no number", 0)):
        distributed.check_equal(what, number)
    distributed.check_weights(net, 7)
"""


HUGE = """
def main():
    runtime.setup(config.RuntimeConfig(device="CPU"))
    distributed.check_equal("its size", 2**24 + runtime.rank())  # one number in float32
"""


def test_ranks_agree(launch):
    launched = launch(AGREE, str(runtime.cores()))
    status, terminal = launched.ended()
    assert status == 2, terminal
    message = "second of rank 1 is not that of rank 0"
    assert f"0 found: {message}" in terminal
    errors = [line for line in terminal.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"step 7: {message}: start all ranks with one version" in errors[0]
    assert f"1 found: {message}" in (launched.folder / "logs" / "worker_1.log").read_text()


@pytest.mark.slow
def test_large_numbers_are_compared_exactly(launch):
    launched = launch(HUGE)
    status, terminal = launched.ended()
    errors = [line for line in terminal.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(errors) == 1
    assert errors[0].endswith(f"its size is {2**24} on rank 0 and {2**24 + 1} on rank 1: give all ranks the same")


def test_one_rank_needs_no_others():
    gradients = (np.ones(3), np.zeros(()))
    assert (runtime.rank(), runtime.ranks()) == (0, 1)
    assert distributed.make_average(((3,), ()))(gradients) is gradients
    assert np.array_equal(distributed.mean(np.array([1.5, 2])), [1.5, 2])
    assert distributed.any_of(True) and not distributed.any_of(False)


STEPS = """
stop = []


def main():
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    runtime.setup(config.RuntimeConfig(device="CPU"))
    for step in range(1000):
        if distributed.any_of(bool(stop)):
            break
        if sys.argv[1] == f"mistake of {runtime.rank()}" and step == 3:
            raise UserError("this is wrong: mend it")
        if sys.argv[1] == f"defect of {runtime.rank()}" and step == 3:
            raise ZeroDivisionError
        if step == 2:
            print("step 2 is done")
        time.sleep(0.1)
    with open(os.environ["RANKS_OF"] + f"/saved_{runtime.rank()}", "w") as file:
        file.write(str(step))
"""


@pytest.mark.parametrize("number, status", [
    (signal.SIGTERM, 0), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
])
def test_a_signal_lets_all_ranks_finish_the_same_step(number, status, launch):
    launched = launch(STEPS, "until stopped")
    launched.until("step 2 is done")
    launched.process.send_signal(number)
    assert launched.ended()[0] == status
    saved = [(launched.folder / f"saved_{rank}").read_text() for rank in (0, 1)]
    assert saved[0] == saved[1] and 2 <= int(saved[0]) < 999


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_rank_ends_the_others_and_is_named(rank, launch):
    launched = launch(STEPS, "until killed")
    launched.until("step 2 is done")
    launched.rank(rank).kill()
    status, terminal = launched.ended(seconds=20)
    assert status == 1 and f"error: rank {rank} was killed by signal 9, so the others were ended" in terminal


def test_a_killed_launcher_leaves_nothing(launch):
    launched = launch(STEPS, "until killed")
    launched.until("step 2 is done")
    launched.process.kill()
    assert launched.ended()[0] == -signal.SIGKILL


@pytest.mark.parametrize("words, status, message", [
    pytest.param("mistake of 0", 2, "error: this is wrong: mend it", marks=pytest.mark.slow),
    ("mistake of 1", 2, "error: rank 1: this is wrong: mend it"),
    pytest.param("defect of 1", 1, "error: rank 1 ended with status 1, so the others were", marks=pytest.mark.slow),
])
def test_a_failing_rank_ends_the_others(words, status, message, launch):
    ended, terminal = launch(STEPS, words).ended()
    assert ended == status, terminal
    errors = [line for line in terminal.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith(message)


@pytest.mark.parametrize("words, message", [
    ([], "arguments are required: N"),
    (["two"], "the number of ranks is 'two'"),
    (["0"], "the number of ranks is '0'"),
    (["2", "--node_rank", "1"], "--node_rank is 1 of --nodes 1: it must be from 0 to 0"),
    (["2", "--nodes", "2"], "--nodes needs --master_addr and --master_port"),
    (["2", "--master_port", "80"], "--master_port is 80: it must be from 1024 to 65535"),
    (["2", "--master_port", "PORT"], "is taken on this host: choose another"),
    (["2", "--script", "none.py"], "--script none.py is not a file"),
    (["2", "--log_dir", "/dev/null/logs"], "--log_dir /dev/null/logs cannot be written"),
])
def test_mistakes_are_one_line(words, message, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = [word.replace("PORT", str(taken.getsockname()[1])) for word in words]
        environment = {**os.environ, "PYTHON": sys.executable}
        result = subprocess.run([*LAUNCHER, *words], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert result.returncode == 2 and not result.stdout
    assert re.fullmatch(r"error: [^\n]*\n", result.stderr) and message in result.stderr


TINY = """
model: {dim: 8, dim_mults: [1], convnext_mult: 1}
diffusion: {timesteps: 10, schedule: cosine}
train: {steps: 20, batch_size: 8, log_every: 5, checkpoint_every: 10, sample_every: 10, sample_num: 4}
"""


@pytest.fixture
def tiny(tmp_path):
    """A configuration file whose training takes seconds."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def last(folder, step):
    """What the checkpoint of the run's last step holds."""
    newest = checkpoint.latest_checkpoint(folder)
    saved, tensors = checkpoint.read_checkpoint(newest)
    assert saved == step
    return tensors


def worst(one, two):
    """The largest difference of weights, moving average and Adam's moments."""
    assert one.keys() == two.keys()
    names = [name for name in one if name.startswith(("model.", "ema.", "optimizer.moment"))]
    assert {name.split(".")[0] for name in names} == {"model", "ema", "optimizer"}
    for name in one.keys() - set(names) - {"optimizer.beta1_power", "optimizer.beta2_power"}:
        assert one[name] == two[name], name
    return max(float(np.abs(one[name] - two[name]).max()) for name in names)


def bits(tensors):
    return {name: value.tobytes() for name, value in tensors.items()}


def errors(terminal):
    return [line for line in terminal.splitlines() if line.startswith("error: ")]


def test_two_ranks_train_as_one_with_twice_the_batch(launch, tiny, tmp_path, run_script):
    out = tmp_path / "two"
    status, terminal = launch(None, "--config", tiny, "--out", out).ended(seconds=150)
    assert status == 0, terminal
    assert run_script("train", "--config", tiny, "--out", tmp_path / "one", "--train.batch_size", 16)[0] == 0
    assert worst(last(out, 20), last(tmp_path / "one", 20)) < 1e-6
    # Rank 0 alone writes, and says what a step is; each rank has its log.
    stated = "a step takes 16 images: 2 ranks x 8 images"
    assert terminal.count(stated) == 1
    for rank in (0, 1):
        assert (out / "logs" / f"rank_{rank}.log").read_text().count(stated) == 1
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [5, 10, 15, 20]
    found = sorted(path.name for path in out.rglob("*") if path.is_file())
    assert [name for name in found if "tfevents" not in name] == sorted([
        "config.yaml", "lock", "loss.png", "metrics.jsonl", "rank_0.log", "rank_1.log", "versions.json",
        "step_00000010.png", "step_00000010.safetensors", "step_00000020.png", "step_00000020.safetensors",
    ])
    assert sum("tfevents" in name for name in found) == 1
    for picture in ("step_00000010.png", "step_00000020.png"):
        assert (out / "samples" / picture).stat().st_size > 100


@pytest.mark.slow
def test_the_digits_recipe_on_two_ranks(launch, tmp_path, run_script):
    words = ["--config", ROOT / "configs" / "digits.yaml", "--train.steps", 20, "--train.sample_every", 0]
    found = {}
    for name, batch, accumulate in (("two", 32, 1), ("parts", 16, 2)):
        sizes = ["--train.batch_size", batch, "--train.accumulate", accumulate]
        status, terminal = launch(None, *words, *sizes, "--out", tmp_path / name).ended(seconds=300)
        assert status == 0, terminal
        found[name] = last(tmp_path / name, 20)
    assert run_script("train", *words, "--out", tmp_path / "one")[0] == 0
    one = last(tmp_path / "one", 20)
    differences = {name: worst(tensors, one) for name, tensors in found.items()}
    print(differences)
    assert max(differences.values()) < 1e-6


LONG = ("--train.steps", 300, "--train.checkpoint_every", 50, "--train.sample_every", 0)


@pytest.mark.slow
def test_ranks_resume_to_the_same_bits(launch, tiny, tmp_path, run_script):
    words = ["--config", tiny, *LONG]
    whole = tmp_path / "whole"
    assert launch(None, *words, "--out", whole).ended(seconds=150)[0] == 0
    for how, status in ((signal.SIGKILL, 1), (signal.SIGTERM, 0), (signal.SIGINT, 130)):
        out = tmp_path / how.name
        launched = launch(None, *words, "--out", out)
        launched.until('"step": 60,', out / "metrics.jsonl")
        if how == signal.SIGKILL:
            launched.rank(1).kill()
            ended, terminal = launched.ended(seconds=60)
            assert len(errors(terminal)) == 1 and "rank 1 was killed by signal 9, so the others were" in terminal
        else:
            launched.process.send_signal(how)
            ended, terminal = launched.ended(seconds=60)
            assert "stopped after step" in terminal
        assert ended == status, terminal
        stopped = checkpoint.read_checkpoint(checkpoint.latest_checkpoint(out))[0]
        assert 50 <= stopped < 300 and (how != signal.SIGKILL or stopped % 50 == 0)
        ended, terminal = launch(None, "--resume", out).ended(seconds=150)
        assert ended == 0, terminal
        assert bits(last(out, 300)) == bits(last(whole, 300))

    # On another number of ranks: the same whole batch, or not at all.
    for path in sorted((whole / "checkpoints").iterdir())[1:]:
        path.unlink()
    alone = tmp_path / "alone"
    shutil.copytree(whole, alone)
    began = checkpoint.read_checkpoint(checkpoint.latest_checkpoint(alone))[0]
    status, _, said = run_script("train", "--resume", alone)
    assert status == 2 and said.count("\n") == 1 and "whole_batch was 16 and is 8" in said
    status, terminal = launch(None, "--resume", alone, "--train.batch_size", 4).ended()
    assert status == 2 and len(errors(terminal)) == 1 and "whole_batch was 16 and is 8" in errors(terminal)[0]
    status, _, said = run_script("train", "--resume", alone, "--train.accumulate", 2)
    assert status == 0 and began == 200, said
    assert worst(last(alone, 300), last(tmp_path / "SIGTERM", 300)) < 1e-5


@pytest.mark.parametrize("words, message", [
    pytest.param(["--trian.steps", "3"], "trian.steps", marks=pytest.mark.slow),
    (["--out", "FULL"], "is not empty: choose another --out"),
    pytest.param(["--resume", "NONE"], "is no run folder", marks=pytest.mark.slow),
])
def test_a_mistake_is_told_once_and_soon(words, message, launch, tiny, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    places = {"FULL": tmp_path / "full", "NONE": tmp_path / "none"}
    words = [places.get(word, word) for word in words]
    if "--resume" not in words:
        words = ["--config", tiny, *words]
    status, terminal = launch(None, *words).ended(seconds=40)
    assert status == 2, terminal
    assert terminal.count(message) == 1 and len(errors(terminal)) == 1 and message in errors(terminal)[0]


PATCHED = """
import runpy
from ms_diffusion import data, diffusion, training
TRAIN = "SCRIPT"


def patch():
PATCH


def main():
    if os.environ.get("MS_NODE_ID") == "1":  # the scheduler runs this too, and has none
        patch()
    runpy.run_path(TRAIN, run_name="__main__")
""".replace("SCRIPT", str(ROOT / "scripts" / "train.py"))


def patched(patch):
    """scripts/train.py whose rank 1 executes `patch` before."""
    return PATCHED.replace("PATCH", "    " + patch.strip().replace("\n", "\n    "))


OTHER_WEIGHTS = """
init = training.init_weights
training.init_weights = lambda model, generator: init(model, np.random.default_rng(9))
"""
FEWER_IMAGES = """
make = data.make_dataset
def fewer(*arguments):
    whole = make(*arguments)
    return data.ImageDataset(whole.images[:-1], whole.name)
data.make_dataset = fewer
"""
A_FLIPPED_BIT = """
make = training.make_train_step
def changing(state, *rest):
    step, calls = make(state, *rest), []
    def call(*arguments):
        outputs = step(*arguments)
        calls.append(0)
        if len(calls) == 7:
            weight = state.model.trainable_params()[3]
            bits = weight.asnumpy().copy()
            bits.view(np.int32).reshape(-1)[0] ^= 1
            weight.set_data(Tensor(bits))
        return outputs
    return call
training.make_train_step = changing
"""


@pytest.mark.slow
@pytest.mark.parametrize("patch, words, message", [
    (OTHER_WEIGHTS, [], r"step 0: \S+ of rank 1 is not that of rank 0: start all ranks with one version"),
    (FEWER_IMAGES, [], "the number of images is 1797 on rank 0 and 1796 on rank 1: give all ranks the same"),
    (A_FLIPPED_BIT, ["--train.check_ranks_every", 5], r"step 10: \S+ of rank 1 is not that of rank 0"),
])
def test_ranks_that_differ_end_with_a_line(patch, words, message, launch, tiny, tmp_path):
    out = tmp_path / "run"
    status, terminal = launch(patched(patch), "--config", tiny, "--out", out, *words).ended(seconds=90)
    assert status == 2, terminal
    assert len(errors(terminal)) == 1 and re.search(message, errors(terminal)[0]), terminal


SLOW_PICTURES = """
make = diffusion.GaussianDiffusion.reverse_step
def slowly(self, *arguments):
    step = make(self, *arguments)
    def call(*arguments):
        time.sleep(0.4)
        return step(*arguments)
    return call
diffusion.GaussianDiffusion.reverse_step = slowly
"""


@pytest.mark.slow
def test_a_rank_may_draw_a_minute_longer(launch, tiny, tmp_path):
    out, words = tmp_path / "run", ["--diffusion.timesteps", 120, "--train.sample_every", 15]
    status, terminal = launch(patched(SLOW_PICTURES), "--config", tiny, "--out", out, *words).ended(seconds=300)
    assert status == 0, terminal
    assert (out / "samples" / "step_00000015.png").exists() and last(out, 20)


@pytest.mark.slow
def test_rank_0_may_write_a_profile(launch, tiny, tmp_path):
    out = tmp_path / "run"
    status, terminal = launch(None, "--config", tiny, "--out", out, "--train.profile", 5).ended(seconds=200)
    assert status == 0, terminal
    assert terminal.count("dearest of") == 1 and "AllReduce" in terminal and last(out, 20)
    assert "dearest of" not in (out / "logs" / "rank_1.log").read_text()
