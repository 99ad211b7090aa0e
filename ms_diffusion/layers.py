"""The blocks of the network: NCHW float32 in, NCHW float32 out.

Every MindSpore layer states its arguments, because the defaults differ from PyTorch's and are announced to change.
Where there are native kernels (`native.operator`), they compute the same from the same parameters.
After `set_precision` the convolutions, dense layers and matrix products compute in half precision; their operands are
cast on the way in and their results on the way out, so norms, softmax, activations and sums stay in float32.
"""

from __future__ import annotations

import math
from typing import Optional, Tuple

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from ms_diffusion import native, runtime
from ms_diffusion.config import ModelConfig
from ms_diffusion.errors import UserError

_HALVES = {"fp16": mstype.float16, "bf16": mstype.bfloat16}


def set_precision(model: nn.Cell, precision: str) -> None:
    """Let the convolutions, dense layers and matrix products of `model` compute in "fp32", "fp16" or "bf16".

    For the model's first call and before it is compiled. The weights stay float32; Micikevicius et al. 2017, section 3.
    """
    for _, cell in model.cells_and_names():
        if isinstance(cell, (Conv2d, Upsample, Dense, Attention, LinearAttention)):
            cell.half = _HALVES.get(precision)


class Conv2d(nn.Conv2d):
    """A convolution that keeps the size at stride 1 and halves it at stride 2 with kernel 4."""

    def __init__(
        self, dim: int, dim_out: int, kernel_size: int, *, bias: bool, stride: int = 1, group: int = 1
    ) -> None:
        super().__init__(
            in_channels=dim, out_channels=dim_out, kernel_size=kernel_size, stride=stride, pad_mode="pad",
            padding=(kernel_size - 1) // 2, dilation=1, group=group, has_bias=bias, data_format="NCHW",
        )
        kind = "depthwise" if group > 1 else "halving" if stride == 2 else "convolution"
        self.native = native.operator(f"{kind}_bias" if bias else kind)
        self.half = None

    def construct(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> (B, dim_out, H / stride, W / stride)."""
        if self.half is not None:
            out = ops.cast(self.conv2d(ops.cast(x, self.half), ops.cast(self.weight, self.half)), mstype.float32)
            return out + self.bias.reshape((1, -1, 1, 1)) if self.has_bias else out
        if self.native is None or x.dtype != mstype.float32:
            return super().construct(x)
        if self.has_bias:
            return self.native(x, self.weight, self.bias)
        return self.native(x, self.weight)


class Dense(nn.Dense):
    """A linear layer with bias."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__(in_channels=dim, out_channels=dim_out, has_bias=True, activation=None)
        self.half = None

    def construct(self, x: Tensor) -> Tensor:
        """(B, dim) -> (B, dim_out)."""
        if self.half is not None:
            out = self.matmul(ops.cast(x, self.half), ops.cast(self.weight, self.half))
            return ops.cast(out, mstype.float32) + self.bias
        return super().construct(x)


class GroupNorm(nn.GroupNorm):
    """Group normalisation with gain and bias; biased variance; Wu and He 2018."""

    def __init__(self, groups: int, dim: int) -> None:
        super().__init__(
            num_groups=groups, num_channels=dim, eps=1e-5, affine=True, gamma_init="ones", beta_init="zeros"
        )
        self.native = native.operator("group_norm")

    def construct(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> (B, dim, H, W)."""
        if self.native is None or x.dtype != mstype.float32:
            return super().construct(x)
        return self.native(x, self.gamma.reshape((self.num_groups, -1)), self.beta)[0]


def make_norm(kind: str, dim: int) -> nn.Cell:
    """GroupNorm of one group ("group"), or `LayerNorm` without ("layer") or with a bias ("layer_bias")."""
    return GroupNorm(1, dim) if kind == "group" else LayerNorm(dim, bias=kind == "layer_bias")


class GELU(nn.GELU):
    """GELU, exact ("erf") or by tanh ("tanh"); Hendrycks and Gimpel 2016."""

    def __init__(self, form: str) -> None:
        super().__init__(approximate=form == "tanh")
        self.native = native.operator(f"gelu_{form}")
        self.by_sigmoid = form == "tanh" and runtime.device() == "CPU"

    def construct(self, x: Tensor) -> Tensor:
        """Element by element."""
        if self.native is not None and x.dtype == mstype.float32:
            return self.native(x)
        if self.by_sigmoid:
            # x (1 + tanh u) / 2 = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3): on a CPU MindSpore's sigmoid
            # uses vectors, its GELU does not, and a training step was 13 % shorter.
            return x * ops.sigmoid(x * (1.5957691216 + 0.0713548163 * x * x))
        return super().construct(x)


class SiLU(nn.SiLU):
    """x sigmoid(x); Hendrycks and Gimpel 2016, Elfwing et al. 2017."""

    def __init__(self) -> None:
        super().__init__()
        self.native = native.operator("silu")

    def construct(self, x: Tensor) -> Tensor:
        """Element by element."""
        if self.native is None or x.dtype != mstype.float32:
            return super().construct(x)
        return self.native(x)


class Upsample(nn.Conv2dTranspose):
    """Double height and width by a transposed 4x4 convolution of stride 2."""

    def __init__(self, dim: int, conv_bias: bool = ModelConfig.conv_bias) -> None:
        super().__init__(
            in_channels=dim, out_channels=dim, kernel_size=4, stride=2, pad_mode="pad", padding=1, output_padding=0,
            dilation=1, group=1, has_bias=conv_bias,
        )
        self.native = native.operator("doubling_bias" if conv_bias else "doubling")
        self.half = None

    def construct(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> (B, dim, 2 H, 2 W)."""
        if self.half is not None:
            b, dim, h, w = x.shape
            x, weight = ops.cast(x, self.half), ops.cast(self.weight, self.half)
            out = ops.cast(self.conv2d_transpose(x, weight, (b, dim, 2 * h, 2 * w)), mstype.float32)
            return out + self.bias.reshape((1, -1, 1, 1)) if self.has_bias else out
        if self.native is None or x.dtype != mstype.float32:
            return super().construct(x)
        if self.has_bias:
            return self.native(x, self.weight, self.bias)
        return self.native(x, self.weight)


def Downsample(dim: int, conv_bias: bool = ModelConfig.conv_bias) -> Conv2d:
    """Halve height and width by a 4x4 convolution of stride 2."""
    return Conv2d(dim, dim, 4, stride=2, bias=conv_bias)


class Residual(nn.Cell):
    """fn(x) + x."""

    def __init__(self, fn: nn.Cell) -> None:
        super().__init__()
        self.fn = fn

    def construct(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.fn(x) + x


class SinusoidalPositionEmbeddings(nn.Cell):
    """Sines and cosines of t at dim / 2 frequencies from 1 to 1/10000; Vaswani et al. 2017, section 3.5.

    As in the tutorial the last frequency is exactly 1/10000 and the sines stand before the cosines.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 4 or dim % 2:
            raise UserError(f"SinusoidalPositionEmbeddings: dim is {dim}: it must be even and at least 4")
        half = dim // 2
        self.frequencies = Tensor(np.exp(-math.log(10000) * np.arange(half) / (half - 1)), mstype.float32)

    def construct(self, t: Tensor) -> Tensor:
        """(B,) -> (B, dim)."""
        angles = ops.cast(t, mstype.float32).reshape((-1, 1)) * self.frequencies
        return ops.concat((ops.sin(angles), ops.cos(angles)), axis=-1)


class Block(nn.Cell):
    """3x3 convolution, group norm, optional scale and shift, SiLU: half a ResNet block."""

    def __init__(self, dim: int, dim_out: int, groups: int = 1, conv_bias: bool = ModelConfig.conv_bias) -> None:
        super().__init__()
        self.proj = Conv2d(dim, dim_out, 3, bias=conv_bias)
        self.norm = GroupNorm(groups, dim_out)
        self.act = SiLU()

    def construct(self, x: Tensor, scale_shift: Optional[Tuple[Tensor, Tensor]] = None) -> Tensor:
        """(B, dim, H, W), and scale and shift each (B, dim_out, 1, 1) -> (B, dim_out, H, W)."""
        x = self.norm(self.proj(x))
        if scale_shift is not None:
            scale, shift = scale_shift
            x = x * (scale + 1) + shift
        return self.act(x)


class ResnetBlock(nn.Cell):
    """Two `Block`s with the time embedding added between them; He et al. 2015, Ho et al. 2020 appendix B."""

    def __init__(
        self, dim: int, dim_out: int, *, time_emb_dim: Optional[int] = None,
        groups: int = ModelConfig.resnet_groups, conv_bias: bool = ModelConfig.conv_bias,
    ) -> None:
        super().__init__()
        self.mlp = None
        if time_emb_dim is not None:
            self.mlp = nn.SequentialCell([SiLU(), Dense(time_emb_dim, dim_out)])
        self.block1 = Block(dim, dim_out, groups, conv_bias)
        self.block2 = Block(dim_out, dim_out, groups, conv_bias)
        self.res_conv = Conv2d(dim, dim_out, 1, bias=conv_bias) if dim != dim_out else nn.Identity()

    def construct(self, x: Tensor, time_emb: Optional[Tensor] = None) -> Tensor:
        """(B, dim, H, W), (B, time_emb_dim) -> (B, dim_out, H, W)."""
        h = self.block1(x)
        if self.mlp is not None and time_emb is not None:
            condition = self.mlp(time_emb)
            h = h + condition.reshape((*condition.shape, 1, 1))
        return self.block2(h) + self.res_conv(x)


class ConvNextBlock(nn.Cell):
    """7x7 depthwise convolution plus time embedding, then two widening 3x3 ones; after Liu et al. 2022."""

    def __init__(
        self, dim: int, dim_out: int, *, time_emb_dim: Optional[int] = None, mult: int = ModelConfig.convnext_mult,
        norm: bool = True, norm_kind: str = ModelConfig.norm, conv_bias: bool = ModelConfig.conv_bias,
        gelu_form: str = ModelConfig.gelu,
    ) -> None:
        super().__init__()
        self.mlp = None
        if time_emb_dim is not None:
            self.mlp = nn.SequentialCell([GELU(gelu_form), Dense(time_emb_dim, dim)])
        self.ds_conv = Conv2d(dim, dim, 7, bias=conv_bias, group=dim)
        self.net = nn.SequentialCell([
            make_norm(norm_kind, dim) if norm else nn.Identity(),
            Conv2d(dim, dim_out * mult, 3, bias=conv_bias),
            GELU(gelu_form),
            make_norm(norm_kind, dim_out * mult),
            Conv2d(dim_out * mult, dim_out, 3, bias=conv_bias),
        ])
        self.res_conv = Conv2d(dim, dim_out, 1, bias=conv_bias) if dim != dim_out else nn.Identity()

    def construct(self, x: Tensor, time_emb: Optional[Tensor] = None) -> Tensor:
        """(B, dim, H, W), (B, time_emb_dim) -> (B, dim_out, H, W)."""
        h = self.ds_conv(x)
        if self.mlp is not None and time_emb is not None:
            condition = self.mlp(time_emb)
            h = h + condition.reshape((*condition.shape, 1, 1))
        return self.net(h) + self.res_conv(x)


class LayerNorm(nn.Cell):
    """Normalise each pixel over its channels, with a gain g and, if `bias`, a bias b; biased variance."""

    def __init__(self, dim: int, bias: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.g = Parameter(Tensor(np.ones((1, dim, 1, 1)), mstype.float32), name="g")
        self.b = Parameter(Tensor(np.zeros((1, dim, 1, 1)), mstype.float32), name="b") if bias else None
        self.native = native.operator("layer_norm")

    def construct(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.native is None or x.dtype != mstype.float32:
            centred = x - ops.mean(x, 1, True)
            variance = ops.mean(ops.square(centred), 1, True)
            x = centred * ops.rsqrt(variance + self.eps) * self.g
        else:
            x = self.native(x, self.g)[0]
        return x if self.b is None else x + self.b


class PreNorm(nn.Cell):
    """fn(norm(x)); `norm` is one of `make_norm`'s."""

    def __init__(self, dim: int, fn: nn.Cell, norm: str = ModelConfig.norm) -> None:
        super().__init__()
        self.fn = fn
        self.norm = make_norm(norm, dim)

    def construct(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.fn(self.norm(x))


def _product(matmul: ops.BatchMatMul, a: Tensor, b: Tensor, half: Optional[mstype.Type]) -> Tensor:
    if half is None:
        return matmul(a, b)
    return ops.cast(matmul(ops.cast(a, half), ops.cast(b, half)), mstype.float32)


class Attention(nn.Cell):
    """Multi-head self-attention over the pixels; Vaswani et al. 2017, eq. 1."""

    def __init__(self, dim: int, heads: int = 4, dim_head: int = 32) -> None:
        super().__init__()
        self.heads = heads
        self.scale = dim_head**-0.5
        self.to_qkv = Conv2d(dim, heads * dim_head * 3, 1, bias=False)
        self.to_out = Conv2d(heads * dim_head, dim, 1, bias=True)
        self.native = native.operator("attention")
        self.matmul_at = ops.BatchMatMul(transpose_a=True, transpose_b=False)
        self.matmul_bt = ops.BatchMatMul(transpose_a=False, transpose_b=True)
        self.half = None

    def construct(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        b, _, h, w = x.shape
        qkv = self.to_qkv(x).reshape((b, 3 * self.heads, -1, h * w))
        if self.native is None or self.half is not None or x.dtype != mstype.float32:
            q, k, v = ops.chunk(qkv, 3, axis=1)  # each (B, heads, d, N)
            attention = ops.softmax(_product(self.matmul_at, q * self.scale, k, self.half), -1)  # (B, heads, N, N)
            out = _product(self.matmul_bt, v, attention, self.half)  # (B, heads, d, N)
        else:
            out = self.native(qkv, ops.full((1,), self.scale, dtype=mstype.float32))
        return self.to_out(out.reshape((b, -1, h, w)))


class LinearAttention(nn.Cell):
    """Attention whose cost grows linearly with the pixels; Shen et al. 2018 (Efficient Attention), eq. 4.

    `scale_values` divides v by height * width; `norm` is one of `make_norm`'s.
    """

    def __init__(
        self, dim: int, heads: int = 4, dim_head: int = 32, *,
        scale_values: bool = ModelConfig.scale_values, norm: str = ModelConfig.attention_norm,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale = dim_head**-0.5
        self.scale_values = scale_values
        self.to_qkv = Conv2d(dim, heads * dim_head * 3, 1, bias=False)
        self.to_out = nn.SequentialCell([
            Conv2d(heads * dim_head, dim, 1, bias=True),
            make_norm(norm, dim),
        ])
        self.native = native.operator("linear_attention")
        self.matmul_at = ops.BatchMatMul(transpose_a=True, transpose_b=False)
        self.matmul_bt = ops.BatchMatMul(transpose_a=False, transpose_b=True)
        self.half = None

    def construct(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        b, _, h, w = x.shape
        qkv = self.to_qkv(x).reshape((b, 3 * self.heads, -1, h * w))
        # The scalings of q and v are applied to the small context: it is linear in both.
        scale = self.scale / (h * w) if self.scale_values else self.scale
        if self.native is None or self.half is not None or x.dtype != mstype.float32:
            q, k, v = ops.chunk(qkv, 3, axis=1)  # each (B, heads, d, N)
            # Softmaxed keys sum to 1, so no sum here exceeds the largest value: nothing to overflow in fp16.
            context = _product(self.matmul_bt, ops.softmax(k, -1), v, self.half) * scale  # (B, heads, d, d)
            out = _product(self.matmul_at, context, ops.softmax(q, -2), self.half)  # (B, heads, d, N)
        else:
            out = self.native(qkv, ops.full((1,), scale, dtype=mstype.float32))
        return self.to_out(out.reshape((b, -1, h, w)))
