import re

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from ms_diffusion import logs, native, profiling
from ms_diffusion.profiling import Operator, Profile, named, read, table

STEPS = 2


class Tiny(nn.Cell):
    """Convolution and GELU, and a product of two matrices of `size` rows: 16 GFLOP at 2000, the rest has 0.2 MFLOP."""

    def __init__(self, size):
        super().__init__()
        self.convolution = nn.Conv2d(2, 8, 3, pad_mode="pad", padding=1, has_bias=False)
        self.gelu = nn.GELU(approximate=False)
        self.square = Tensor(np.random.default_rng(0).standard_normal((size, size)), ms.float32)

    def construct(self, x):
        # Of x, so that it is computed in each step; without a gradient, so that it is once.
        product = ops.matmul(self.square + ops.stop_gradient(x[0, 0, 0, 0]), self.square)
        return ops.reduce_mean(ops.square(self.gelu(self.convolution(x)))) + 1e-6 * product[0, 0]


@pytest.fixture
def kernels():
    if not native.enabled():
        pytest.skip("there are no native kernels here")


def train_step(jit, size=20):
    network = Tiny(size)
    optimizer = nn.Adam(network.trainable_params(), 1e-3)
    gradients_of = ms.value_and_grad(network, None, optimizer.parameters)

    def step(x):
        loss, gradients = gradients_of(x)
        optimizer(gradients)
        return loss

    return ms.jit(step) if jit else step


def run(folder, step, first=3, steps=STEPS, last=7):
    """Train under a profile; returns what the log says of it."""
    x = Tensor(np.ones((2, 2, 8, 8)), ms.float32)
    with logs.to_run(folder), Profile(folder / "profile", first, steps) as profile:
        for done in range(1, last + 1):
            with profile.step(done):
                step(x).asnumpy()
        logs.LOG.info("the training went on")
    text = (folder / "logs" / "rank_0.log").read_text()
    assert text.count("the training went on") == 1
    return text


def rows(text):
    """name -> (calls, total ms, share) of the table in the log."""
    found = re.findall(r"^(\w+(?: \(native\))?) +(\d+) +([\d.]+) +([\d.]+)%$", text, flags=re.M)
    return {name: (int(calls), float(total), float(share) / 100) for name, calls, total, share in found}


def test_the_dearest_operator_comes_first(jit, tmp_path, capsys):
    text = run(tmp_path, train_step(jit, size=2000), last=5)
    found = rows(text)
    assert next(iter(found)).startswith("MatMul") and len(found) == 10
    calls, total, share = next(iter(found.values()))
    assert calls == STEPS and share > 0.5
    totals, shares = zip(*(row[1:] for row in found.values()))
    assert list(totals) == sorted(totals, reverse=True)
    assert sum(shares) <= 1 + 10 * 0.0005, "each is rounded to a tenth of a percent"
    assert total / sum(totals) >= share - 0.001, "the share is of all operators, not only of those shown"
    whole = STEPS * float(re.search(r"all take ([\d.]+) ms a step", text)[1])
    assert total / whole == pytest.approx(share, abs=0.01)
    assert any((tmp_path / "profile").rglob("trace_view.json"))
    captured = capsys.readouterr()
    assert captured.out == "" and "MatMul" in captured.err


def test_each_operator_is_counted_once_a_step(jit, tmp_path):
    """The warm-up, and the steps before and after, are not in it."""
    run(tmp_path, train_step(jit), first=4, steps=3)
    (file,) = (tmp_path / "profile").rglob("cpu_op_type_info_*.csv")
    calls = {operator.name: operator.calls for operator in read(file)}
    assert calls["Conv2D"] == calls["Conv2DBackpropFilter"] == 3


def test_native_kernels_stand_under_their_names(jit, kernels, tmp_path):
    halving, gelu = native.operator("halving"), native.operator("gelu_erf")
    weight = Tensor(np.ones((64, 64, 4, 4)), ms.float32)
    image = Tensor(np.ones((8, 64, 32, 32)), ms.float32)

    def step(x):
        return ops.reduce_sum(gelu(halving(gelu(image + x[0, 0, 0, 0]), weight)))

    found = rows(run(tmp_path, ms.jit(step) if jit else step))
    assert found["halving (native)"][0] == STEPS and found["gelu_erf (native)"][0] == 2 * STEPS
    assert "Custom" not in found


def test_the_clocks_agree_with_mindspores(jit, kernels, tmp_path):
    """MindSpore takes the time around the kernel, so the kernel's own is less, but most of it."""
    halving = native.operator("halving")
    weight = Tensor(np.ones((64, 64, 4, 4)), ms.float32)
    image = Tensor(np.ones((16, 64, 64, 64)), ms.float32)

    def step(x):
        return ops.reduce_sum(halving(image + x[0, 0, 0, 0], weight))

    found = rows(run(tmp_path, ms.jit(step) if jit else step))
    (file,) = (tmp_path / "profile").rglob("cpu_op_type_info_*.csv")
    (custom,) = (operator for operator in read(file) if operator.name == "Custom")
    assert custom.calls == found["halving (native)"][0] == STEPS
    assert 0.7 * custom.milliseconds < found["halving (native)"][1] <= custom.milliseconds


@pytest.mark.parametrize("last, counted", [(2, None), (3, 1), (4, 2)])
def test_a_run_that_ends_early_profiles_what_there_was(last, counted, tmp_path):
    text = run(tmp_path, train_step(False), steps=5, last=last)
    if counted is None:
        assert "WARNING no profile: MindSpore wrote no operator of 0 steps" in text
    else:
        assert rows(text)["Conv2D"][0] == counted and f"profile of {counted} steps" in text


def test_none_asked_for_does_nothing(tmp_path):
    assert "profile" not in run(tmp_path, train_step(False), steps=0) and not (tmp_path / "profile").exists()


def test_a_second_profile_in_the_same_folder_reads_its_own_file(tmp_path):
    step = train_step(False)
    run(tmp_path, step, steps=1)
    text = (tmp_path / "logs" / "rank_0.log").read_text()
    (tmp_path / "logs" / "rank_0.log").unlink()
    assert rows(text)["Conv2D"][0] == 1 and rows(run(tmp_path, step, steps=2))["Conv2D"][0] == 2


class Mute:
    """A profiler that writes nothing."""

    def __init__(self, **options):
        pass

    def start(self):
        pass

    step = stop = start


class Broken(Mute):
    """A profiler that cannot be stopped."""

    def stop(self):
        raise RuntimeError("no room")


def refuse(**options):
    raise RuntimeError("not on this machine")


@pytest.mark.parametrize(
    "stand_in, warning",
    [
        (Mute, "MindSpore wrote no operator of 2 steps into"), (Broken, "MindSpore's profiler failed: .*no room"),
        (refuse, "MindSpore's profiler does not start: .*not on this machine"),
    ],
)
def test_a_profiler_that_fails_is_one_warning(stand_in, warning, tmp_path, monkeypatch):
    monkeypatch.setattr(profiling.profiler, "profile", stand_in)
    text = run(tmp_path, train_step(False))
    assert re.search(f"WARNING no profile: {warning}", text) and text.count("WARNING") == 1


def test_files_of_other_devices(tmp_path):
    """Columns as MindSpore 2.8 names them: AscendKernelDetailsViewer.RENAME_HEADERS, and libmindspore_profiler.so."""
    ascend = tmp_path / "kernel_details.csv"
    ascend.write_text(
        "Name,Type,Accelerator Core,Start Time(us),Duration(us),Wait Time(us)\n"
        "Default/Conv2D-op1,Conv2D,AI_CORE,1.0,1500.5,0\nDefault/Add-op0,Add,AI_VECTOR_CORE,2.0,20,0\n"
        '"Default/Conv2D-op2,x",Conv2D,AI_CORE,3.0,499.5,0\n'
    )
    assert read(ascend) == [Operator("Conv2D", 2, pytest.approx(2.0)), Operator("Add", 1, pytest.approx(0.02))]
    gpu = tmp_path / "gpu_op_type_info_0.csv"
    gpu.write_text("op_type,type_occurrences,total_time(us),total_proportion,avg_time(us)\nConv2D,4,3000,0.9,750\n")
    assert read(gpu) == [Operator("Conv2D", 4, pytest.approx(3.0))]


def test_the_table():
    operators = [Operator("Mul", 4, 1.0), Operator("Custom", 9, 5.0), Operator("Add", 2, 2.0)]
    kernels = [Operator("silu (native)", 8, 4.0), Operator("adam (native)", 1, 1.0)]
    assert table(named(operators, kernels), steps=2, rows=3).splitlines() == [
        "3 dearest of 4 operators; all take 4.00 ms a step",
        "operator         calls    total ms   share",
        "silu (native)        8       4.000   50.0%",
        "Add                  2       2.000   25.0%",
        "Mul                  4       1.000   12.5%",
    ]
    assert named(operators, []) == operators
