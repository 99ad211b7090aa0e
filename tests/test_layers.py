"""Each layer against its formula, written out in NumPy float64."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from scipy.signal import correlate
from scipy.special import erf, softmax

from ms_diffusion import layers
from ms_diffusion.errors import UserError
from ms_diffusion.unet import init_weights

ATOL = 1e-5


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def tensor(x):
    return Tensor(x, ms.float32)


def randomised(cell, seed=0):
    """`cell` with random weights, norms included, so that no gain of one hides a mistake."""
    generator = np.random.default_rng(seed)
    init_weights(cell, generator)
    for parameter in cell.get_parameters():
        if parameter.name.endswith(("gamma", "beta", "g")):
            parameter.set_data(tensor(generator.standard_normal(parameter.shape)))
    return cell


def weight(parameter):
    return parameter.asnumpy().astype(np.float64)


def run(cell, jit, *inputs):
    function = ms.jit(cell) if jit else cell
    return function(*map(tensor, inputs)).asnumpy()


def conv(x, cell):
    """A convolution by scipy's correlation, channel by channel."""
    kernel, pad = weight(cell.weight), cell.weight.shape[-1] // 2
    pad = 1 if cell.weight.shape[-1] == 4 else pad
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    per_group = kernel.shape[1]
    out = []
    for o in range(len(kernel)):
        first = o * per_group if cell.group > 1 else 0
        planes = x[:, first : first + per_group]
        out.append(np.stack([correlate(image, kernel[o], mode="valid")[0] for image in planes]))
    out = np.stack(out, axis=1)[:, :, :: cell.stride[0], :: cell.stride[1]]
    return out + weight(cell.bias)[:, None, None] if cell.has_bias else out


def group_norm(x, cell):
    groups = x.reshape(len(x), cell.num_groups, -1)
    groups = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + 1e-5)
    return groups.reshape(x.shape) * weight(cell.gamma)[:, None, None] + weight(cell.beta)[:, None, None]


def dense(x, cell):
    return x @ weight(cell.weight).T + weight(cell.bias)


def gelu(x, form):
    if form == "erf":
        return x * (1 + erf(x / np.sqrt(2))) / 2
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def silu(x):
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("form", ["erf", "tanh"])
def test_gelu(form, jit):
    x = np.linspace(-6, 6, 1001)
    assert np.abs(run(layers.GELU(form), jit, x) - gelu(x, form)).max() < 1e-6
    assert np.abs(gelu(x, "erf") - gelu(x, "tanh")).max() > 4e-4, "the two forms must be told apart"


def test_sinusoidal_position_embeddings(jit):
    t, dim = np.array([0, 1, 57, 199]), 10
    frequencies = 10000 ** -(np.arange(5) / 4)  # from 1 to 1/10000
    expected = np.concatenate([np.sin(np.outer(t, frequencies)), np.cos(np.outer(t, frequencies))], axis=1)
    cell = layers.SinusoidalPositionEmbeddings(dim)
    function = ms.jit(cell) if jit else cell
    out = function(Tensor(t, ms.int32)).asnumpy()
    assert out.shape == (4, dim)
    assert np.abs(out - expected).max() < 2e-5  # float32 angles of up to 199


@pytest.mark.parametrize("dim", [2, 7, 0])
def test_sinusoidal_position_embeddings_refuse_odd_dim(dim):
    with pytest.raises(UserError, match=f"dim is {dim}: it must be even"):
        layers.SinusoidalPositionEmbeddings(dim)


def test_residual(jit):
    x = random(2, 3, 4, 4)
    assert np.abs(run(layers.Residual(layers.GELU("erf")), jit, x) - (gelu(x, "erf") + x)).max() < 1e-6


def test_layer_norm_is_over_channels_and_biased(jit):
    cell = randomised(layers.LayerNorm(5))
    x = 3 * random(2, 5, 3, 4) + 2
    expected = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * weight(cell.g)
    assert np.abs(run(cell, jit, x) - expected).max() < ATOL


def test_pre_norm(jit):
    cell = randomised(layers.PreNorm(4, layers.GELU("erf")))
    x = 2 * random(2, 4, 3, 3) + 1
    assert np.abs(run(cell, jit, x) - gelu(group_norm(x, cell.norm), "erf")).max() < ATOL


@pytest.mark.parametrize("bias", [True, False])
def test_downsample(bias, jit):
    cell = randomised(layers.Downsample(3, bias))
    x = random(2, 3, 6, 8)
    out = run(cell, jit, x)
    assert out.shape == (2, 3, 3, 4)
    assert np.abs(out - conv(x, cell)).max() < ATOL


@pytest.mark.parametrize("bias", [True, False])
def test_upsample_is_the_transpose_of_downsample(bias, jit):
    """<Down(x), y> = <x, Up(y)> for equal weights: the definition of a transposed convolution."""
    up, down = randomised(layers.Upsample(3, bias)), layers.Downsample(3, conv_bias=False)
    down.weight.set_data(up.weight)
    x, y = random(2, 3, 6, 8), random(2, 3, 3, 4, seed=1)
    out = run(up, jit, y).astype(np.float64)
    assert out.shape == x.shape
    if bias:
        out -= weight(up.bias)[:, None, None]
    assert np.sum(conv(x, down) * y) == pytest.approx(np.sum(x * out), abs=1e-4)


def test_block(jit):
    cell = randomised(layers.Block(3, 8, groups=4))
    x, scale, shift = random(2, 3, 5, 5), random(2, 8, 1, 1, seed=1), random(2, 8, 1, 1, seed=2)
    h = group_norm(conv(x, cell.proj), cell.norm)
    assert np.abs(run(cell, jit, x) - silu(h)).max() < ATOL

    def scaled(x, scale, shift):
        return cell(x, (scale, shift))

    out = (ms.jit(scaled) if jit else scaled)(*map(tensor, (x, scale, shift))).asnumpy()
    assert np.abs(out - silu(h * (scale + 1) + shift)).max() < ATOL


@pytest.mark.parametrize("dim, dim_out", [(3, 8), (8, 8)])
def test_resnet_block(dim, dim_out, jit):
    cell = randomised(layers.ResnetBlock(dim, dim_out, time_emb_dim=6, groups=2))
    x, time_emb = random(2, dim, 5, 5), random(2, 6, seed=1)
    h = silu(group_norm(conv(x, cell.block1.proj), cell.block1.norm))
    h = h + dense(silu(time_emb), cell.mlp[1])[:, :, None, None]
    h = silu(group_norm(conv(h, cell.block2.proj), cell.block2.norm))
    residual = conv(x, cell.res_conv) if dim != dim_out else x
    assert np.abs(run(cell, jit, x, time_emb) - (h + residual)).max() < ATOL


@pytest.mark.parametrize("dim, dim_out", [(3, 4), (4, 4)])
@pytest.mark.parametrize("bias, form, norm", [(True, "erf", True), (False, "tanh", True), (True, "tanh", False)])
def test_conv_next_block(dim, dim_out, bias, form, norm, jit):
    cell = layers.ConvNextBlock(dim, dim_out, time_emb_dim=6, mult=2, norm=norm, conv_bias=bias, gelu_form=form)
    randomised(cell)
    x, time_emb = random(2, dim, 8, 7), random(2, 6, seed=1)
    h = conv(x, cell.ds_conv) + dense(gelu(time_emb, form), cell.mlp[1])[:, :, None, None]
    h = group_norm(h, cell.net[0]) if norm else h
    h = group_norm(gelu(conv(h, cell.net[1]), form), cell.net[3])
    residual = conv(x, cell.res_conv) if dim != dim_out else x
    assert np.abs(run(cell, jit, x, time_emb) - (conv(h, cell.net[4]) + residual)).max() < ATOL


def heads_of(x, cell, heads):
    b, _, h, w = x.shape
    return conv(x, cell.to_qkv).reshape(b, 3, heads, -1, h * w).transpose(1, 0, 2, 3, 4)


def test_attention(jit):
    cell = randomised(layers.Attention(6, heads=2, dim_head=4))
    x = 2 * random(2, 6, 3, 5)
    q, k, v = heads_of(x, cell, 2)
    attention = softmax(np.einsum("bhdi,bhdj->bhij", q, k) * 4**-0.5, axis=-1)
    out = np.einsum("bhij,bhdj->bhdi", attention, v).reshape(2, 8, 3, 5)
    assert np.abs(run(cell, jit, x) - conv(out, cell.to_out)).max() < ATOL


@pytest.mark.parametrize("scale_values, norm", [(False, "group"), (True, "layer")])
def test_linear_attention(scale_values, norm, jit):
    cell = randomised(layers.LinearAttention(6, heads=2, dim_head=4, scale_values=scale_values, norm=norm))
    x = 2 * random(2, 6, 3, 5)
    q, k, v = heads_of(x, cell, 2)
    q, k = softmax(q, axis=-2) * 4**-0.5, softmax(k, axis=-1)
    v = v / 15 if scale_values else v
    context = np.einsum("bhdn,bhen->bhde", k, v)
    out = conv(np.einsum("bhde,bhdn->bhen", context, q).reshape(2, 8, 3, 5), cell.to_out[0])
    if norm == "group":
        expected = group_norm(out, cell.to_out[1])
    else:
        centred = out - out.mean(1, keepdims=True)
        expected = centred / np.sqrt(out.var(1, keepdims=True) + 1e-5) * weight(cell.to_out[1].g)
    assert np.abs(run(cell, jit, x) - expected).max() < 5e-5  # the norm magnifies small outputs


def halved(x):
    return x.astype(np.float16).astype(np.float64)


@pytest.mark.parametrize("make", [
    lambda: layers.Conv2d(5, 7, 3, bias=True), lambda: layers.Conv2d(5, 7, 1, bias=False),
    lambda: layers.Conv2d(5, 5, 7, bias=True, group=5), lambda: layers.Downsample(5),
], ids=["3x3", "1x1", "depthwise", "halving"])
def test_a_convolution_in_fp16_rounds_its_operands_and_its_sum(make, jit):
    cell, x = randomised(make()), random(2, 5, 6, 4)
    layers.set_precision(cell, "fp16")
    out = ms.jit(cell)(tensor(x)) if jit else cell(tensor(x))
    assert out.dtype == ms.float32 and cell.weight.dtype == ms.float32
    cell.weight.set_data(tensor(halved(weight(cell.weight))))
    expected, unrounded = conv(halved(x), cell), conv(x, cell)
    assert np.abs(out.asnumpy() - expected).max() < 2**-10 * np.abs(expected).max()
    assert np.abs(expected - unrounded).max() > 1e-5, "the operands must be such that rounding them shows"


def test_a_dense_layer_and_an_upsampling_in_fp16(jit):
    for make, shape in ((lambda: layers.Dense(6, 9), (3, 6)), (lambda: layers.Upsample(4), (2, 4, 3, 5))):
        x, cell = random(*shape), randomised(make())
        exact = run(randomised(make()), jit, x)
        layers.set_precision(cell, "fp16")
        half = ms.jit(cell)(tensor(x)) if jit else cell(tensor(x))
        assert half.dtype == ms.float32
        # Each of at most 24 products of numbers below 4 is rounded to a part in 2^11.
        assert 1e-5 < np.abs(half.asnumpy() - exact).max() < 24 * 16 * 2.0**-11


@pytest.mark.parametrize("kind", [layers.LinearAttention, layers.Attention])
def test_attention_in_fp16_survives_large_numbers(kind, jit):
    """Inputs of +-100: exponentials of the keys, or sums over 256 pixels, would be infinite in fp16."""
    cell = randomised(kind(64))
    x = 100 * np.sign(random(2, 64, 16, 16))

    def loss(x):
        out = cell(x)
        return (out * out).mean(), out

    gradient = ms.value_and_grad(loss, 0, cell.trainable_params(), has_aux=True)
    outs = []
    for precision in ("fp32", "fp16"):
        layers.set_precision(cell, precision)
        function = ms.jit(lambda_free(gradient)) if jit else gradient
        (_, out), (by_input, by_weights) = function(tensor(x))
        assert all(np.isfinite(value.asnumpy()).all() for value in (out, by_input, *by_weights))
        outs.append(out.asnumpy())
    if kind is layers.LinearAttention:  # the other's softmax chooses one pixel of such numbers, often by a hair
        assert np.abs(outs[0] - outs[1]).max() < 0.02 * np.abs(outs[0]).max()


def lambda_free(gradient):
    def function(x):
        return gradient(x)

    return function


def test_norms_and_activations_stay_in_fp32():
    for cell in (layers.GroupNorm(2, 4), layers.LayerNorm(4), layers.GELU("erf"), layers.SiLU()):
        x = random(2, 4, 3, 3)
        exact = cell(tensor(x)).asnumpy()
        layers.set_precision(cell, "fp16")
        assert np.array_equal(cell(tensor(x)).asnumpy(), exact)
