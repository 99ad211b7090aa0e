"""A contestant of the benchmark: its clocks and its calls."""

from itertools import count

import numpy as np
import pytest

from ms_diffusion import contestants, native_build, runtime
from ms_diffusion.config import Config, DataConfig, DiffusionConfig, ModelConfig
from ms_diffusion.errors import UserError
from ms_diffusion.workloads import Workload

CONFIG = Config(
    model=ModelConfig(dim=4, dim_mults=(1,), convnext_mult=1),
    diffusion=DiffusionConfig(timesteps=20, schedule="cosine"), data=DataConfig(image_size=4),
)


# ---- Clocks ----


def test_calls_of_known_durations():
    now, durations = [0.0], iter([100.0, 50.0, 3.0, 0.25, 0.5])

    def call():
        now[0] += next(durations)

    assert contestants.time_calls(call, 2, 3, clock=lambda: now[0]) == 0.5, "the median of the three timed ones"
    assert next(durations, None) is None


def test_a_worker_tells_its_turns_from_its_sleep(monkeypatch):
    clock, cores = count(), count(step=2)
    monkeypatch.setattr(contestants, "settle", lambda: None)
    monkeypatch.setattr(contestants, "_clocks", lambda: np.array([next(clock), next(cores)], float))
    worker = contestants.Worker("torch", 1)
    worker.groups = [[lambda: None, lambda: None]]
    assert len(worker.turn(0, [(0, 1), (1, 2)])) == 2
    worker.asleep += (8.0, 1.0)
    assert worker.usage()["cores_working"] == 2 and worker.usage()["cores_asleep"] == 0.125


@pytest.mark.parametrize("spins, waits", [(0, 1), (3, 4), (1000, 100)])
def test_a_turn_ends_when_the_threads_sleep(spins, waits):
    used, slept = [0.0], []

    def sleep(seconds):
        slept.append(seconds)
        used[0] += seconds if len(slept) <= spins else 0.0

    contestants.settle(lambda: used[0], sleep)
    assert len(slept) == waits


# ---- Calls ----


@pytest.mark.parametrize("kind", ["training", "forward", "sampling"])
def test_our_calls(kind):
    """As the process makes them, here in PyNative and without a process."""
    load = Workload(CONFIG, "a.yaml", kind, 2)
    calls, = contestants._our_builders("mindspore_pynative", runtime.threads())[kind](load)
    assert len(calls) == len(load.names)
    *_, last = [call() for call in 2 * calls]
    if kind == "sampling":
        assert last.shape == load.shape and np.isfinite(last).all()


# ---- What a machine lacks ----


@pytest.fixture
def without_kernels(monkeypatch):
    def find():
        raise native_build.NativeUnavailable("no compiler in this test")

    monkeypatch.setattr(native_build, "find", find)


@pytest.mark.parametrize("contestant", ["native", "native_pynative"])
def test_without_kernels_the_reason_is_told(contestant, without_kernels):
    with pytest.raises(UserError, match="^no compiler in this test, or name --contestants without native") as caught:
        contestants.Worker(contestant, 1).start()
    assert "\n" not in str(caught.value)


def test_without_kernels_the_others_take_part(without_kernels):
    contestants.check_available(["mindspore", "mindspore_pynative"])
