"""The native kernels against MindSpore's and PyTorch's: forward and gradients, odd sizes, both modes, any threads."""

import ctypes
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from ms_diffusion import layers, native, native_build, native_check, runtime
from ms_diffusion.config import TrainConfig
from ms_diffusion.diffusion import GaussianDiffusion
from ms_diffusion.train_step import TrainState, make_optimizer, make_train_step
from ms_diffusion.unet import Unet

try:
    LIBRARY = native_build.build()
except native_build.NativeUnavailable as reason:
    pytest.skip(f"no native kernels here: {reason}", allow_module_level=True)

# Each layer, of `layers` or `pytorchs_layers`, and the shape of its input: odd sizes, one pixel, one image, channels
# that fill no vector or block.
CASES = {
    "3x3": (lambda side: side.Conv2d(13, 11, 3, bias=False), (3, 13, 7, 9)),
    "3x3, bias, wide": (lambda side: side.Conv2d(40, 35, 3, bias=True), (17, 40, 6, 5)),
    "3x3, one pixel": (lambda side: side.Conv2d(3, 4, 3, bias=True), (2, 3, 1, 1)),
    "3x3, batch 1": (lambda side: side.Conv2d(8, 16, 3, bias=True), (1, 8, 28, 28)),
    "1x1": (lambda side: side.Conv2d(5, 50, 1, bias=False), (4, 5, 8, 31)),
    "1x1, narrowing": (lambda side: side.Conv2d(50, 5, 1, bias=True), (4, 50, 3, 5)),
    "3x3, small images": (lambda side: side.Conv2d(20, 37, 3, bias=True), (20, 20, 4, 4)),
    "5x5": (lambda side: side.Conv2d(3, 4, 5, bias=True), (2, 3, 6, 5)),
    "7x7": (lambda side: side.Conv2d(1, 18, 7, bias=True), (3, 1, 9, 28)),
    "depthwise": (lambda side: side.Conv2d(6, 6, 7, bias=True, group=6), (5, 6, 9, 7)),
    "depthwise, small": (lambda side: side.Conv2d(3, 3, 7, bias=False, group=3), (70, 3, 4, 4)),
    "depthwise, small, bias": (lambda side: side.Conv2d(3, 3, 7, bias=True, group=3), (9, 3, 9, 7)),
    "depthwise, small, wide": (lambda side: side.Conv2d(2, 2, 7, bias=True, group=2), (33, 2, 2, 8)),
    "down": (lambda side: side.Downsample(5, True), (3, 5, 8, 6)),
    "down, odd": (lambda side: side.Downsample(5, False), (2, 5, 7, 9)),
    "down, small images": (lambda side: side.Downsample(5, True), (37, 5, 6, 4)),
    "up, small images": (lambda side: side.Upsample(5, True), (37, 5, 3, 2)),
    "up": (lambda side: side.Upsample(5, True), (3, 5, 3, 7)),
    "up, one pixel": (lambda side: side.Upsample(2, False), (1, 2, 1, 1)),
    "gelu, erf": (lambda side: side.GELU("erf"), (3, 5, 7, 9)),
    "gelu, tanh": (lambda side: side.GELU("tanh"), (3, 5, 7, 9)),
    "silu": (lambda side: side.SiLU(), (3, 5, 7, 9)),
    "linear attention, depth": (lambda side: side.LinearAttention(8, heads=2, dim_head=19), (2, 8, 5, 3)),
    "group norm, 1": (lambda side: side.GroupNorm(1, 6), (3, 6, 5, 7)),
    "group norm, 3": (lambda side: side.GroupNorm(3, 6), (4, 6, 8, 8)),
    "layer norm": (lambda side: side.LayerNorm(7), (3, 7, 5, 7)),
    "layer norm, bias": (lambda side: side.LayerNorm(7, bias=True), (1, 7, 4, 4)),
    "linear attention": (lambda side: side.LinearAttention(8), (3, 8, 5, 7)),
    "linear attention, large": (lambda side: side.LinearAttention(8, scale_values=True), (2, 8, 28, 28)),
    "attention": (lambda side: side.Attention(8), (3, 8, 7, 7)),
    "attention, one pixel": (lambda side: side.Attention(8), (2, 8, 1, 1)),
}


def cells(monkeypatch, make):
    """The layer with native kernels and the layer without, with the same random weights."""
    monkeypatch.setitem(native._STATE, "library", str(LIBRARY))
    ours = make()
    monkeypatch.setattr(native, "enabled", lambda: False)
    theirs = make()
    draw = np.random.default_rng(0)
    for mine, other in zip(ours.get_parameters(), theirs.get_parameters()):
        value = Tensor(draw.normal(scale=0.5, size=mine.shape).astype(np.float32))
        mine.set_data(value)
        other.set_data(value)
    assert any(getattr(cell, "native", None) is not None for _, cell in ours.cells_and_names())
    assert all(getattr(cell, "native", None) is None for _, cell in theirs.cells_and_names())
    return ours, theirs


def sensitivity_of(out):
    return np.random.default_rng(1).normal(size=tuple(out.shape)).astype(np.float32)


def gradients(cell, x, jit, transposed=False):
    """The output, and the gradients of its product with a fixed random array by input and weights.

    `transposed` lets the gradient of the output be a view that is not contiguous.
    """
    weights = cell.trainable_params()
    sensitivity = sensitivity_of(cell(x))
    sensitivity = Tensor(sensitivity.swapaxes(0, 1).copy() if transposed else sensitivity)

    def loss(x):
        out = cell(x)
        return ops.reduce_sum((out.swapaxes(0, 1) if transposed else out) * sensitivity), out

    function = ms.value_and_grad(loss, grad_position=0, weights=weights or None, has_aux=True)
    (_, out), found = (ms.jit(function) if jit else function)(x)
    found = (found[0], *found[1]) if weights else (found,)
    return [value.asnumpy() for value in (out, *found)]


def difference(a, b):
    """The largest one, in units of the root mean square where that exceeds 1."""
    return np.abs(a - b).max() / max(1.0, np.sqrt(np.mean(np.square(b, dtype=np.float64))))


def together(*columns):
    """`zip(strict=True)`, which Python 3.9 has not."""
    columns = [list(column) for column in columns]
    assert len({len(column) for column in columns}) == 1
    return zip(*columns)


@pytest.mark.parametrize("name", CASES)
def test_forward_and_gradients_are_mindspores(name, monkeypatch):
    make, shape = CASES[name]
    ours, theirs = cells(monkeypatch, lambda: make(layers))
    x = Tensor(np.random.default_rng(2).normal(size=shape).astype(np.float32))
    expected = gradients(theirs, x, jit=False)
    for jit in (False, True):  # PyNative, then graph mode, in one process
        for a, b in together(gradients(ours, x, jit), expected):
            assert difference(a, b) < 1e-5, (name, jit)


def pytorchs_layers():
    """PyTorch's layers, with the arguments of ours."""
    torch = pytest.importorskip("torch", reason="the other side: pip install -r requirements-dev.txt")
    from ms_diffusion import torch_twin

    def convolution(dim, dim_out, kernel_size, *, bias, group=1):
        return torch.nn.Conv2d(dim, dim_out, kernel_size, padding=kernel_size // 2, groups=group, bias=bias)

    own = {"Conv2d": convolution, "GELU": torch_twin.gelu, "SiLU": torch.nn.SiLU, "GroupNorm": torch.nn.GroupNorm}
    return SimpleNamespace(**vars(torch_twin), **own)


def pytorchs_gradients(module, cell, x):
    """What `gradients` gives, by PyTorch's `module` with the weights of `cell`."""
    import torch

    for mine, other in together(cell.get_parameters(), module.parameters()):
        assert mine.shape == tuple(other.shape)
        other.data = torch.from_numpy(mine.asnumpy().copy())
    x = torch.from_numpy(x).requires_grad_()
    out = module(x)
    found = torch.autograd.grad(out, [x, *module.parameters()], torch.from_numpy(sensitivity_of(out)))
    return [value.detach().numpy() for value in (out, *found)]


def relative(a, b):
    """The L2 norm and the largest element of the difference, whichever is more, relative to those of `b`."""
    assert a.shape == b.shape
    a, b = a.astype(np.float64), b.astype(np.float64)
    return max(np.linalg.norm(a - b) / np.linalg.norm(b), np.abs(a - b).max() / np.abs(b).max())


VIEWS = {
    "whole": Tensor,
    "transposed": lambda x: Tensor(x.swapaxes(0, 1).copy()).swapaxes(0, 1),
    "every other": lambda x: Tensor(np.repeat(x, 2, axis=3))[:, :, :, ::2],
    "second half": lambda x: Tensor(np.stack([np.zeros_like(x), x]))[1],
}


@pytest.mark.parametrize("name", CASES)
def test_forward_and_gradients_are_pytorchs(name, monkeypatch):
    """Of a whole tensor in both modes, in one process; of views in PyNative, with a transposed gradient coming in."""
    make, shape = CASES[name]
    module = make(pytorchs_layers())
    ours, _ = cells(monkeypatch, lambda: make(layers))
    x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    expected = pytorchs_gradients(module, ours, x)
    for view, jit in (*((view, False) for view in VIEWS), ("whole", True)):
        found = gradients(ours, VIEWS[view](x), jit, transposed=view != "whole")
        for a, b in together(found, expected):
            assert relative(a, b) <= 1e-5, (view, jit)


def test_views_are_views():
    x = np.zeros((2, 3, 4, 5), np.float32)
    assert not VIEWS["transposed"](x).is_contiguous() and not VIEWS["every other"](x).is_contiguous()
    assert VIEWS["second half"](x).storage_offset() == x.size


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_any_number_of_threads(threads, monkeypatch):
    """Sums are taken share by share, so only their order of addition depends on the number."""
    ours, theirs = cells(monkeypatch, lambda: layers.ConvNextBlock(12, 20))
    x = Tensor(np.random.default_rng(2).normal(size=(5, 12, 9, 9)).astype(np.float32))
    expected = gradients(theirs, x, jit=False)
    library = ctypes.CDLL(str(LIBRARY))
    library.ms_diffusion_set_threads(threads)
    try:
        found, again = gradients(ours, x, jit=False), gradients(ours, x, jit=False)
    finally:
        library.ms_diffusion_set_threads(0)
    for a, b, c in together(found, again, expected):
        assert np.array_equal(a, b), "the same threads must give the same bits"
        assert difference(a, c) < 1e-5


@pytest.mark.parametrize(
    "compiler, target, feature",
    [("g++", "haswell", "avx2"), ("g++", "x86-64", "sse2"), ("clang++", "native", ""), ("clang++", "haswell", "avx2")],
)
def test_other_compilers_and_narrower_vectors(compiler, target, feature, monkeypatch, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    if feature not in ["", *native_build._processor().split()]:
        pytest.skip(f"no {feature} here")
    monkeypatch.setenv("CXX", compiler)
    flags = (f"-march={target}" if flag == "-march=native" else flag for flag in native_build.FLAGS)
    monkeypatch.setattr(native_build, "FLAGS", tuple(flags))
    monkeypatch.setitem(native._STATE, "library", str(native_build.build(tmp_path)))
    assert native_check.failure(native._make) is None


def sanitized(*words):
    """Run Python with the `words` so that it can load a sanitized library; it must end well."""
    variables = {**os.environ, **native_build.preload()}
    if not Path(variables["LD_PRELOAD"].split()[0]).is_file():
        pytest.skip("g++ has no libasan here")
    result = subprocess.run(
        [sys.executable, *map(str, words)], env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", timeout=1200, cwd=Path(__file__).parents[1],
    )
    assert result.returncode == 0, result.stdout[-6000:]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
def test_no_kernel_leaves_its_arrays(monkeypatch):
    """All of them on arrays with guarded borders; then in MindSpore, in layers and in a training."""
    monkeypatch.setenv("CXX", "g++")
    library = native_build.build(sanitize=True)
    sanitized(Path(__file__).with_name("sanitized_kernels.py"), library)
    sanitized(
        "-c", "import sys, pathlib, pytest; from ms_diffusion import native_build; library = pathlib.Path(sys.argv[1]);"
        "native_build.build = native_build.find = lambda: library; sys.exit(pytest.main(sys.argv[2:]))", library,
        "-q", "tests/test_native.py", "tests/test_training.py", "-k", "mindspores or threads or learns",
    )


def test_half_precision_goes_to_mindspore(monkeypatch):
    ours, theirs = cells(monkeypatch, lambda: layers.GELU("erf"))
    x = Tensor(np.linspace(-3, 3, 24).reshape(1, 2, 3, 4), ms.float16)
    assert ours(x).dtype == ms.float16
    assert np.array_equal(ours(x).asnumpy(), theirs(x).asnumpy())


def test_extreme_values(monkeypatch):
    """Where exponentials overflow or vanish the activations are 0, x, or NaN for NaN."""
    monkeypatch.setitem(native._STATE, "library", str(LIBRARY))
    x = Tensor(np.array([[[[-1e4, -100.0, 0.0, 100.0, 1e4, np.nan]]]], np.float32))
    for name in ("gelu_erf", "gelu_tanh", "silu"):
        y = native._activation(name)(x).asnumpy().ravel()
        assert np.abs(y[:5] - [0, 0, 0, 100, 1e4]).max() < 1e-3 and np.isnan(y[5]), name


class Weights(nn.Cell):
    """Three parameters, one of them longer than what the kernel updates at once."""

    def __init__(self):
        super().__init__()
        draw = np.random.default_rng(3)
        for name, shape in (("a", (3, 5)), ("b", (20001,)), ("c", ())):
            setattr(self, name, ms.Parameter(Tensor(draw.normal(size=shape), ms.float32), name=name))


def test_global_norm(monkeypatch):
    monkeypatch.setitem(native._STATE, "library", str(LIBRARY))
    draw = np.random.default_rng(0)
    arrays = [draw.normal(size=shape).astype(np.float32) for shape in ((3, 5), (20001,))]
    expected = np.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in arrays))
    norm = native._make("global_norm")(*map(Tensor, arrays)).asnumpy()
    assert abs(norm[0] / expected - 1) < 1e-6


@pytest.mark.parametrize("jit", [False, True])
def test_adam_is_mindspores_and_skips_what_is_not_finite(jit, monkeypatch):
    monkeypatch.setitem(native._STATE, "library", str(LIBRARY))
    adam = native._make("adam")
    ours, theirs = Weights(), Weights()
    config = TrainConfig(steps=10, lr=1e-2, lr_min=1e-2)
    mine, other = make_optimizer(ours, config), make_optimizer(theirs, config)
    everything = (mine.parameters, mine.moment1, mine.moment2)

    def update(gradients, factor):
        return adam(
            *mine.parameters, *mine.moment1, *mine.moment2, *gradients, factor, mine.get_lr(), mine.beta1, mine.beta2,
            mine.eps, mine.beta1_power, mine.beta2_power, mine.global_step,
        )

    update = ms.jit(update) if jit else update
    draw = np.random.default_rng(4)
    for step in range(3):
        gradients = tuple(Tensor(draw.normal(size=p.shape), ms.float32) for p in ours.trainable_params())
        other(gradients)
        doubled = tuple(2 * gradient for gradient in gradients)
        assert update(doubled, Tensor(0.5, ms.float32)).asnumpy() == step + 1
        before = [p.asnumpy().copy() for group in everything for p in group]
        assert update(doubled, Tensor(np.inf, ms.float32)).asnumpy() == step + 1, "a step that is skipped"
        after = [p.asnumpy() for group in everything for p in group]
        for a, b in zip(before, after):
            assert np.array_equal(a, b)
        for group, reference in zip(everything, (other.parameters, other.moment1, other.moment2)):
            for a, b in zip(group, reference):
                assert np.abs(a.asnumpy() - b.asnumpy()).max() < 1e-6
        assert np.isclose(mine.beta2_power.asnumpy(), other.beta2_power.asnumpy(), rtol=1e-6)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.25, 1.0])
def test_ema_moves_the_averages_where_they_lie(decay, jit, monkeypatch):
    monkeypatch.setitem(native._STATE, "library", str(LIBRARY))
    ema = native._make("ema")
    draw = np.random.default_rng(5)
    shapes = ((3, 5), (20001,), (1,))
    weights, averages = ([draw.normal(size=shape).astype(np.float32) for shape in shapes] for _ in range(2))
    moved = [Parameter(Tensor(average), name=f"average{i}") for i, average in enumerate(averages)]
    fixed = [Parameter(Tensor(weight), name=f"weight{i}") for i, weight in enumerate(weights)]

    def update(count):
        return ema(*moved, *fixed, Tensor([decay], ms.float32), count)

    update = ms.jit(update) if jit else update
    assert update(Tensor([7], ms.int32)).asnumpy() == 7
    for average, weight, new, same in zip(averages, weights, moved, fixed):
        assert np.abs(new.asnumpy() - (decay * average + (1 - decay) * weight)).max() < 1e-6
        assert np.array_equal(same.asnumpy(), weight)
        if decay in (0.0, 1.0):
            assert np.array_equal(new.asnumpy(), average if decay else weight), "to the last bit"


def resident():
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_memory_does_not_grow(monkeypatch):
    ours, _ = cells(monkeypatch, lambda: layers.ConvNextBlock(8, 8))
    x = Tensor(np.zeros((2, 8, 8, 8), np.float32))

    for _ in range(100):
        ours(x).asnumpy()
    before = resident()
    for _ in range(1000):
        ours(x).asnumpy()
    assert resident() - before < 8 * 2**20


def growth_in_training(jit):
    """Bytes by which 1000 steps of a tiny network let the process grow, after 100 to warm up."""
    model, config = Unet(dim=4, dim_mults=(1,), convnext_mult=1), TrainConfig(batch_size=2)
    step = make_train_step(TrainState(model, config), GaussianDiffusion(timesteps=20, schedule="cosine"), jit)
    draw, t = np.random.default_rng(0), np.array([3, 17], np.int32)
    x, noise = (draw.normal(size=(2, 1, 4, 4)).astype(np.float32) for _ in range(2))
    held = []
    for count in (100, 1000):
        for _ in range(count):
            runtime.finish(step(*map(Tensor, (x, t, noise))))
        held.append(resident())
    return held[1] - held[0]


def test_memory_does_not_grow_in_training(monkeypatch):
    monkeypatch.setitem(native._STATE, "library", str(LIBRARY))
    assert growth_in_training(jit=True) < 20e6


@pytest.mark.slow
def test_memory_grows_no_more_than_mindspores_own_in_pynative(monkeypatch):
    """MindSpore 2.8 keeps about 3 KB of each gradient of a single ReLU in PyNative: of a step more than 50 KB."""
    monkeypatch.setitem(native._STATE, "library", str(LIBRARY))
    ours = growth_in_training(jit=False)
    monkeypatch.setattr(native, "enabled", lambda: False)
    assert ours < growth_in_training(jit=False) + 20e6


def test_without_a_library_one_line_says_so(monkeypatch, capsys):
    def missing():
        raise native_build.NativeUnavailable("not built here")

    monkeypatch.setattr(native_build, "find", missing)
    assert reopened(monkeypatch) is None and native.operator("silu") is None
    assert capsys.readouterr().err == "MindSpore's own operators serve: not built here\n"


def test_the_switch(monkeypatch, capsys):
    monkeypatch.setattr(native_build, "find", lambda: LIBRARY)
    assert reopened(monkeypatch) is not None and capsys.readouterr().err == ""
    assert reopened(monkeypatch, wanted="0") is None
    assert capsys.readouterr().err == "MindSpore's own operators serve: MS_DIFFUSION_NATIVE is 0\n"


def test_another_device_has_none(monkeypatch, capsys):
    monkeypatch.setattr(native_build, "find", lambda: LIBRARY)
    monkeypatch.setattr(runtime, "device", lambda: "Ascend")
    assert reopened(monkeypatch) is None
    assert capsys.readouterr().err == "MindSpore's own operators serve: the native kernels are for the CPU\n"


def test_a_library_that_the_system_refuses_is_one_line(tmp_path, monkeypatch, capsys):
    broken = tmp_path / "kernels.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(native_build, "find", lambda: broken)
    assert reopened(monkeypatch) is None
    error = capsys.readouterr().err
    assert error.startswith(f"MindSpore's own operators serve: {broken} cannot be loaded") and error.count("\n") == 1


def test_kernels_that_compute_something_else_do_not_serve(monkeypatch, capsys):
    monkeypatch.setattr(native_build, "find", lambda: LIBRARY)
    make = native._make
    monkeypatch.setattr(native, "_make", lambda name: make("gelu_tanh" if name == "gelu_erf" else name))
    assert reopened(monkeypatch) is None
    error = capsys.readouterr().err
    assert f"the native kernel gelu_erf of {LIBRARY} computes something else here" in error and error.count("\n") == 1
    assert native.operator("silu") is None


def test_slow_convolutions_are_warned_of_once(monkeypatch):
    monkeypatch.setattr(ms, "__version__", "2.10.0")
    message = r"MindSpore 2\.10\.0 .* 50 times slower .* scripts/build_kernels\.py .* mindspore==2\.8\.0"
    with pytest.warns(UserWarning, match=message) as caught:
        assert reopened(monkeypatch, wanted="0") is None and native.operator("silu") is None
    assert len(caught) == 1


@pytest.mark.parametrize(
    "version, wanted, device", [("2.8.0", "0", "CPU"), ("2.10.0", "1", "CPU"), ("2.10.0", "0", "Ascend")]
)
def test_what_is_not_slow_is_not_warned_of(version, wanted, device, monkeypatch, recwarn):
    monkeypatch.setattr(native_build, "find", lambda: LIBRARY)
    monkeypatch.setattr(ms, "__version__", version)
    monkeypatch.setattr(runtime, "device", lambda: device)
    assert (reopened(monkeypatch, wanted) is None) == (wanted == "0")
    assert not [warning for warning in recwarn if "oneDNN" in str(warning.message)]


def reopened(monkeypatch, wanted="1"):
    """An operator of a process that has just begun."""
    monkeypatch.setitem(native._STATE, "library", None)
    monkeypatch.setitem(native._STATE, "operators", {})
    monkeypatch.setenv("MS_DIFFUSION_NATIVE", wanted)
    return native.operator("silu")


def test_a_step_returns_when_it_has_ended_and_sleeps_until_then(monkeypatch):
    """Seconds of work in the graph: the thread that waits for them takes next to no time of the processor."""
    monkeypatch.setitem(native._STATE, "library", str(LIBRARY))
    layer, end = layers.Conv2d(64, 64, 3, bias=True), native.operator("end")

    @ms.jit
    def step(x):
        y = x
        for _ in range(20):
            y = layer(y)
        return ops.depend(y, end(ops.zeros((1,), ms.float32), y))

    x = Tensor(np.zeros((32, 64, 28, 28), np.float32))
    step(x).asnumpy()
    began, used = time.perf_counter(), time.thread_time()
    y = native.asleep(step)(x)
    took, used = time.perf_counter() - began, time.thread_time() - used
    y.asnumpy()
    assert time.perf_counter() - began < took + 0.2 * took + 0.01, "it had not ended"
    assert used < 0.3 * took, "it did not sleep"


def test_a_step_that_never_tells_its_end_is_waited_for_in_vain_once(monkeypatch):
    monkeypatch.setitem(native._STATE, "library", str(LIBRARY))
    monkeypatch.setattr(native, "PATIENCE", 0.05)
    began = time.perf_counter()
    assert native.asleep(lambda x: x)(3) == 3
    assert 0.04 < time.perf_counter() - began < 1


def test_the_clocks_count_calls_and_their_time(monkeypatch):
    monkeypatch.setitem(native._STATE, "library", str(LIBRARY))
    silu, image = native.operator("silu"), Tensor(np.ones((8, 64, 64, 64)), ms.float32)
    silu(image).asnumpy()
    calls, seconds = native.clocks()["silu"]
    began = time.perf_counter()
    for _ in range(7):
        silu(image).asnumpy()
    taken = time.perf_counter() - began
    after, later = native.clocks()["silu"]
    assert after == calls + 7 and 0 < later - seconds < taken
    assert later - seconds > 7 * 2**21 / 1e11, "no core does 100 operations in a nanosecond"


def test_without_kernels_there_are_no_clocks(monkeypatch):
    monkeypatch.setattr(native, "enabled", lambda: False)
    assert native.clocks() == {}
