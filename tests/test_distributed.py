"""Ranks as processes of their own, on the CPU, by the command that a person types."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from ms_diffusion import distributed, runtime

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
    """The launcher with two ranks of a script, and all processes that came of it."""

    def __init__(self, folder, body, *words):
        script = folder / "ranks.py"
        script.write_text(HEAD + body + "\nexit_on_user_error(main)\n")
        self.folder = folder
        self.output = folder / "terminal.txt"
        command = [*LAUNCHER, "2", "--script", str(script), "--log_dir", str(folder / "logs"), *words]
        environment = {**os.environ, "PYTHON": sys.executable, "RANKS_OF": str(folder)}
        with open(self.output, "w") as terminal:
            self.process = subprocess.Popen(
                command, stdout=terminal, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def until(self, text):
        """Wait until the terminal shows `text`."""
        for _ in range(400):
            if text in self.output.read_text():
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
    """Start two ranks of a script; whatever is left of them at the end of the test is killed."""
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
    distributed.check_weights(net, 7)
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
