"""Our layers, network and process against the PyTorch twin: the same weights, inputs, t and noise."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from ms_diffusion import layers, schedules
from ms_diffusion.config import TUTORIAL, DiffusionConfig, ModelConfig
from ms_diffusion.diffusion import GaussianDiffusion
from ms_diffusion.errors import UserError
from ms_diffusion.torch_bridge import torch_names
from ms_diffusion.unet import Unet, init_weights

torch = pytest.importorskip("torch", reason="the twin needs PyTorch: pip install -r requirements-dev.txt")

from ms_diffusion import torch_twin  # noqa: E402

WORST = {}
"""Largest error of each kind of comparison; printed at the end with -s."""


@pytest.fixture(scope="module", autouse=True)
def report():
    yield
    print(*(f"\n{name}: {error:.2g}" for name, error in sorted(WORST.items())), sep="")


def within(name, error, tolerance):
    WORST[name] = max(WORST.get(name, 0.0), float(error))
    assert error <= tolerance


def random(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def fill(ours, theirs, seed=0):
    """Give both the same random weights, norms included, by name; returns our parameters by PyTorch's names."""
    generator = np.random.default_rng(seed)
    init_weights(ours, generator)
    names, parameters = torch_names(ours), dict(ours.parameters_and_names())
    for name, parameter in parameters.items():
        if name.rpartition(".")[2] in ("gamma", "beta", "g", "b"):
            noise = 0.3 * generator.standard_normal(parameter.shape)
            parameter.set_data(Tensor(parameter.asnumpy() + noise, ms.float32))
    state = {names[name]: torch.from_numpy(parameter.asnumpy().copy()) for name, parameter in parameters.items()}
    theirs.load_state_dict(state, strict=True)
    return {names[name]: parameter for name, parameter in parameters.items()}


# ---- Layers ----


def cases(dim):
    """[name, torch module, our module, arguments, inputs]: inputs are shapes, or an array as it is."""
    wide, t = (2, dim, 7, 5), np.array([0, 1, 57, 999], np.int32)
    emb = {"dim": dim, "time_emb_dim": 4 * dim}
    yield [
        "Sinusoidal", torch_twin.SinusoidalPositionEmbeddings, layers.SinusoidalPositionEmbeddings, {"dim": dim}, [t],
    ]
    for form in ("erf", "tanh"):
        yield [f"GELU {form}", torch_twin.gelu, layers.GELU, {"form": form}, [wide]]
        yield [
            f"ConvNextBlock {form}", torch_twin.ConvNextBlock, layers.ConvNextBlock,
            {**emb, "dim_out": dim, "gelu_form": form, "conv_bias": form == "erf"}, [wide, (2, 4 * dim)],
        ]
    for bias in (True, False):
        arguments = {"dim": dim, "conv_bias": bias}
        yield [f"Upsample {bias}", torch_twin.Upsample, layers.Upsample, arguments, [(2, dim, 3, 5)]]
        yield [f"Downsample {bias}", torch_twin.Downsample, layers.Downsample, arguments, [(2, dim, 6, 10)]]
        yield [
            f"ResnetBlock {bias}", torch_twin.ResnetBlock, layers.ResnetBlock,
            {**emb, "dim_out": dim + 8, "conv_bias": bias}, [wide, (2, 4 * dim)],
        ]
    yield ["Block", torch_twin.Block, layers.Block, {"dim": dim, "dim_out": 8, "groups": 4}, [wide]]
    for norm in ("group", "layer", "layer_bias"):
        yield [f"norm {norm}", torch_twin.make_norm, layers.make_norm, {"kind": norm, "dim": dim}, [wide]]
        yield [
            f"ConvNextBlock {norm}", torch_twin.ConvNextBlock, layers.ConvNextBlock,
            {**emb, "dim_out": dim + 8, "mult": 1, "norm_kind": norm}, [wide, (2, 4 * dim)],
        ]
        for scale in (True, False):
            yield [
                f"LinearAttention {norm} {scale}", torch_twin.LinearAttention, layers.LinearAttention,
                {"dim": dim, "scale_values": scale, "norm": norm}, [wide],
            ]
    yield ["Attention", torch_twin.Attention, layers.Attention, {"dim": dim}, [wide]]
    yield [
        "ConvNextBlock bare", torch_twin.ConvNextBlock, layers.ConvNextBlock, {"dim": dim, "dim_out": 4, "norm": False},
        [wide],
    ]
    yield ["Residual PreNorm", *(
        lambda dim, side=side: side.Residual(side.PreNorm(dim, side.Attention(dim))) for side in (torch_twin, layers)
    ), {"dim": dim}, [wide]]


def both_modes(id, *values, slow_graph=False):
    """The case in PyNative and in graph mode; what compiles long is among the slow tests."""
    yield pytest.param(*values, False, id=f"{id}-pynative")
    yield pytest.param(*values, True, id=f"{id}-graph", marks=[pytest.mark.slow] * slow_graph)


@pytest.mark.parametrize("case, jit", [
    parameters for dim in (8, 64) for case in cases(dim)
    for parameters in both_modes(f"{case[0]} {dim}", case)
])
def test_layer(case, jit):
    name, theirs, ours, arguments, inputs = case
    theirs, ours = theirs(**arguments), ours(**arguments)
    fill(ours, theirs)
    inputs = [x if isinstance(x, np.ndarray) else random(x, seed) for seed, x in enumerate(inputs)]
    with torch.no_grad():
        expected = theirs(*map(torch.from_numpy, inputs)).numpy()
    out = (ms.jit(ours) if jit else ours)(*map(Tensor, inputs)).asnumpy()
    assert out.shape == expected.shape and out.dtype == expected.dtype == np.float32
    within(f"layer {name}", np.abs(out - expected).max(), 1e-5)


def test_block_with_scale_and_shift(jit):
    theirs, ours = torch_twin.Block(8, 12, 3), layers.Block(8, 12, 3)
    fill(ours, theirs)
    inputs = [random(shape, seed) for seed, shape in enumerate([(2, 8, 5, 3), (2, 12, 1, 1), (2, 12, 1, 1)])]

    def scaled(x, scale, shift):
        return ours(x, (scale, shift))

    x, scale, shift = map(torch.from_numpy, inputs)
    out = (ms.jit(scaled) if jit else scaled)(*map(Tensor, inputs)).asnumpy()
    within("layer Block", np.abs(out - theirs(x, (scale, shift)).detach().numpy()).max(), 1e-5)


# ---- The network ----

RESNET = {"block": "resnet"}
ANNOTATED = {"norm": "layer_bias", "attention_norm": "layer_bias"}
NETWORKS = [  # name, options, height and width, whether graph mode is among the slow tests
    ["torch", {"dim": 8, "dim_mults": (1, 2)}, (8, 12), False],
    ["tutorial", {"dim": 64, "dim_mults": (1,), **TUTORIAL}, (7, 5), False],
    ["torch resnet", {"dim": 64, "dim_mults": (1,), **RESNET}, (5, 7), False],
    ["tutorial resnet", {"dim": 8, "dim_mults": (1, 2), **RESNET, **TUTORIAL}, (6, 10), False],
    ["annotated", {"dim": 8, "dim_mults": (1, 2), **ANNOTATED}, (8, 8), True],
    ["torch, one stage", {"dim": 8, "dim_mults": (1,)}, (3, 5), True],
    ["torch resnet, two stages", {"dim": 8, "dim_mults": (1, 2), **RESNET}, (4, 6), True],
    ["tutorial, colours", {"dim": 28, "dim_mults": (1, 1, 2), "channels": 3, "out_dim": 2, "init_dim": 10, **TUTORIAL},
     (4, 8), True],
    ["no time", {"dim": 8, "dim_mults": (1, 2), "with_time_emb": False, "convnext_mult": 1}, (6, 2), True],
]


@pytest.mark.parametrize("options, size, jit", [
    parameters for name, options, size, slow in NETWORKS
    for parameters in both_modes(name, options, size, slow_graph=slow)
])
def test_unet_output_and_the_gradient_of_every_parameter(options, size, jit):
    ours, theirs = Unet(**options), torch_twin.Unet(**options)
    parameters = fill(ours, theirs)
    x, t = random((2, ours.config.channels, *size), 1), np.array([3, 180], np.int32)
    target = random((2, theirs.config.out_dim or theirs.config.channels, *size), 2)

    def loss(x, t, target):
        out = ours(x, t)
        return ops.mean(ops.square(out - target)), out

    step = ms.value_and_grad(loss, None, list(parameters.values()), has_aux=True)
    (_, out), gradients = (ms.jit(step) if jit else step)(Tensor(x), Tensor(t), Tensor(target))
    expected = theirs(torch.from_numpy(x), torch.from_numpy(t))
    (expected - torch.from_numpy(target)).square().mean().backward()

    within("U-Net output", np.abs(out.asnumpy() - expected.detach().numpy()).max(), 1e-4)
    assert parameters.keys() == dict(theirs.named_parameters()).keys()
    for name, gradient in zip(parameters, gradients):
        expected = theirs.get_parameter(name).grad.numpy()
        within("gradient, relative L2", np.linalg.norm(gradient.asnumpy() - expected) / np.linalg.norm(expected), 1e-3)


@pytest.mark.parametrize("preset, count", [(torch_twin.Unet, 2_996_315), (torch_twin.Unet.tutorial, 2_992_180)])
def test_parameter_counts(preset, count):
    """Published for the post's and the tutorial's sizes."""
    assert sum(parameter.numel() for parameter in preset().parameters()) == count


@pytest.mark.parametrize("options", [options for _, options, _, _ in NETWORKS], ids=[name for name, *_ in NETWORKS])
def test_every_module_has_the_name_of_our_cell(options):
    ours, theirs = Unet(**options), torch_twin.Unet(**options)
    cells = {name: type(cell).__name__ for name, cell in ours.cells_and_names() if name}
    modules = {name: type(module).__name__ for name, module in theirs.named_modules() if name}
    if not len(theirs.ups):
        del modules["ups"]  # MindSpore does not list an empty CellList
    renamed = {"SequentialCell": "Sequential", "CellList": "ModuleList", "Dense": "Linear",
               "Upsample": "ConvTranspose2d"}
    assert {name: renamed.get(kind, kind) for name, kind in cells.items()} == modules
    assert list(torch_names(ours).values()) == list(theirs.state_dict())


def test_the_twin_has_our_options_and_our_checks():
    assert torch_twin.Unet(dim=12).config == ModelConfig(dim=12)
    assert torch_twin.GaussianDiffusion(timesteps=50).config == DiffusionConfig(timesteps=50)
    with pytest.raises(UserError, match="model.dim is 7"):
        torch_twin.Unet(dim=7)
    with pytest.raises(UserError, match="diffusion.timesteps is 1"):
        torch_twin.GaussianDiffusion(timesteps=1)


@pytest.mark.parametrize("options", [{"objective": "v"}, {"variance": "learned"}, {"loss_weight": "min_snr"}], ids=str)
def test_what_the_twin_lacks_is_refused(options):
    (name, value), = options.items()
    with pytest.raises(UserError, match=f"diffusion.{name} is '{value}': the PyTorch baseline has nothing like it"):
        torch_twin.GaussianDiffusion(**options)


# ---- The process ----

TABLES = [
    "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
    "posterior_mean_coef1", "posterior_mean_coef2", "posterior_variance",
]


@pytest.mark.parametrize("timesteps", [2, 25, 200, 1000])
@pytest.mark.parametrize("scale_betas", [True, False])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "quadratic", "sigmoid"])
def test_tables(schedule, scale_betas, timesteps):
    options = {"schedule": schedule, "timesteps": timesteps, "scale_betas": scale_betas and timesteps > 20}
    expected = schedules.make_schedule(DiffusionConfig(**options))
    theirs = torch_twin.GaussianDiffusion(**options)
    for name in TABLES:
        table = getattr(expected, name)
        error = np.abs(getattr(theirs, name).numpy() - table)
        assert np.all(error[table == 0] == 0)
        within("table, relative", (error[table != 0] / np.abs(table[table != 0])).max(), 1e-6)


@pytest.mark.parametrize("options", [
    {"variance": "fixed_small"}, {"variance": "fixed_large"}, {"p2_gamma": 0.5, "p2_k": 2.0}, {"p2_gamma": 1.0},
], ids=str)
def test_tables_of_the_choices(options):
    ours, theirs = GaussianDiffusion(**options), torch_twin.GaussianDiffusion(**options)
    for name in (*TABLES, "model_variance", "model_std", "posterior_log_variance", "model_log_variance", "loss_weight"):
        table = getattr(ours, name).asnumpy()
        error = np.abs(getattr(theirs, name).numpy() - table)
        assert table.shape == (200,) and np.all(error <= 1e-6 * np.abs(table)), name


def model(x, t):
    """A prediction that depends on x and t, written once for both frameworks."""
    return 0.9 * x - 0.004 * t.reshape((-1, 1, 1, 1)) * x * x


T = np.array([0, 1, 100, 199], np.int32)


@pytest.mark.parametrize("options", [
    {"loss": "l1"}, {"loss": "l2"}, {"loss": "huber"}, {"loss": "huber", "p2_gamma": 1.0, "p2_k": 0.5},
], ids=str)
def test_p_losses(options, jit):
    ours, theirs = GaussianDiffusion(**options), torch_twin.GaussianDiffusion(**options)
    x, noise = random((4, 2, 3, 5), 0), random((4, 2, 3, 5), 1)

    def loss(x, t, noise):
        return ours.p_losses(model, x, t, noise)

    out = (ms.jit(loss) if jit else loss)(*map(Tensor, (x, T, noise)))
    expected = theirs.p_losses(model, *map(torch.from_numpy, (x, T, noise)))
    assert out.shape == expected.shape == ()
    within("loss, relative", abs(out.item() / expected.item() - 1), 1e-6)


@pytest.mark.parametrize("options", [
    {"variance": "fixed_small"}, {"variance": "fixed_large", "clip_x_start": False}, {"schedule": "cosine"},
], ids=str)
def test_p_sample_and_what_it_is_made_of(options, jit):
    ours, theirs = GaussianDiffusion(**options), torch_twin.GaussianDiffusion(**options)
    x, noise = random((4, 2, 3, 5), 0), random((4, 2, 3, 5), 1)
    out = ours.reverse_step(model, jit)(*map(Tensor, (x, T, noise))).asnumpy()
    torches = [torch.from_numpy(array) for array in (x, T, noise)]
    expected = theirs.p_sample(model, *torches).numpy()
    within("p_sample", np.abs(out - expected).max(), 1e-5 * max(1, np.abs(expected).max()))
    assert np.array_equal(theirs.p_sample(model, *torches[:2], 0 * torches[2])[0], expected[0]), "no noise at t = 0"

    for out, expected in (
        *zip(ours.p_mean_variance(model, Tensor(x), Tensor(T)), theirs.p_mean_variance(model, *torches[:2])),
        [ours.q_sample(*map(Tensor, (x, T, noise))), theirs.q_sample(*torches)],
    ):
        assert out.shape == expected.shape
        within("mean, variance, x_0, q_sample", np.abs(out.asnumpy() - expected.numpy()).max(),
               1e-5 * max(1, expected.abs().max()))
