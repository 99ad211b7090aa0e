"""The same network and the same process written for PyTorch: what `ms_diffusion` is compared with.

Only the comparison, the benchmark and the tests import this file: torch is a development requirement. It shares
with the library nothing but the options and their checks (`ModelConfig`, `DiffusionConfig`); the formulas are written
once more, PyTorch's way. Modules and attributes have the names of `unet.py` and `layers.py`, so that
`downs.0.2.fn.fn.to_qkv.weight` is the same weight in both; `torch_bridge` knows the few parameters named otherwise.

Images are float32 (B, C, H, W), `t` is an integer tensor (B,) with 0..T-1 for the paper's 1..T, `model` is any
callable `model(x_t, t)`, and nothing is random but the first weights.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Callable, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import nn

from ms_diffusion.config import TUTORIAL, DiffusionConfig, ModelConfig
from ms_diffusion.errors import UserError

# ---- The blocks ----


def gelu(form: str) -> nn.GELU:
    """GELU, exact ("erf") or by tanh ("tanh")."""
    return nn.GELU(approximate="tanh" if form == "tanh" else "none")


def make_norm(kind: str, dim: int) -> nn.Module:
    """GroupNorm of one group ("group"), or `LayerNorm` without ("layer") or with a bias ("layer_bias")."""
    return nn.GroupNorm(1, dim, eps=1e-5) if kind == "group" else LayerNorm(dim, bias=kind == "layer_bias")


def Upsample(dim: int, conv_bias: bool = True) -> nn.ConvTranspose2d:
    """Double height and width."""
    return nn.ConvTranspose2d(dim, dim, 4, stride=2, padding=1, bias=conv_bias)


def Downsample(dim: int, conv_bias: bool = True) -> nn.Conv2d:
    """Halve height and width."""
    return nn.Conv2d(dim, dim, 4, stride=2, padding=1, bias=conv_bias)


class Residual(nn.Module):
    """fn(x) + x."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.fn(x) + x


class SinusoidalPositionEmbeddings(nn.Module):
    """Sines, then cosines, of t at dim / 2 frequencies from 1 to 1/10000."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # Rounded to float32 only here: PyTorch's usual float32 frequencies are off by 4e-5 of an angle at t = 1000.
        frequencies = torch.logspace(0, -4, dim // 2, base=10, dtype=torch.float64).float()
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """(B,) -> (B, dim)."""
        angles = t[:, None].float() * self.frequencies[None, :]
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Block(nn.Module):
    """3x3 convolution, group norm, optional scale and shift, SiLU."""

    def __init__(self, dim: int, dim_out: int, groups: int = 1, conv_bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, dim_out, 3, padding=1, bias=conv_bias)
        self.norm = nn.GroupNorm(groups, dim_out, eps=1e-5)
        self.act = nn.SiLU()

    def forward(
        self, x: torch.Tensor, scale_shift: Optional[Tuple[torch.Tensor, torch.Tensor]] = None
    ) -> torch.Tensor:
        """(B, dim, H, W), and scale and shift each (B, dim_out, 1, 1) -> (B, dim_out, H, W)."""
        x = self.norm(self.proj(x))
        if scale_shift is not None:
            scale, shift = scale_shift
            x = x * (1 + scale) + shift
        return self.act(x)


class ResnetBlock(nn.Module):
    """Two `Block`s with the time embedding added between them."""

    def __init__(
        self, dim: int, dim_out: int, *, time_emb_dim: Optional[int] = None, groups: int = 4, conv_bias: bool = True
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_emb_dim, dim_out)) if time_emb_dim is not None else None
        self.block1 = Block(dim, dim_out, groups, conv_bias)
        self.block2 = Block(dim_out, dim_out, groups, conv_bias)
        self.res_conv = nn.Conv2d(dim, dim_out, 1, bias=conv_bias) if dim != dim_out else nn.Identity()

    def forward(self, x: torch.Tensor, time_emb: Optional[torch.Tensor] = None) -> torch.Tensor:
        """(B, dim, H, W), (B, time_emb_dim) -> (B, dim_out, H, W)."""
        h = self.block1(x)
        if self.mlp is not None and time_emb is not None:
            h = h + self.mlp(time_emb)[:, :, None, None]
        return self.block2(h) + self.res_conv(x)


class ConvNextBlock(nn.Module):
    """7x7 depthwise convolution plus time embedding, then two widening 3x3 ones."""

    def __init__(
        self, dim: int, dim_out: int, *, time_emb_dim: Optional[int] = None, mult: int = 2, norm: bool = True,
        norm_kind: str = "group", conv_bias: bool = True, gelu_form: str = "erf",
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(gelu(gelu_form), nn.Linear(time_emb_dim, dim)) if time_emb_dim is not None else None
        self.ds_conv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim, bias=conv_bias)
        self.net = nn.Sequential(
            make_norm(norm_kind, dim) if norm else nn.Identity(),
            nn.Conv2d(dim, dim_out * mult, 3, padding=1, bias=conv_bias),
            gelu(gelu_form),
            make_norm(norm_kind, dim_out * mult),
            nn.Conv2d(dim_out * mult, dim_out, 3, padding=1, bias=conv_bias),
        )
        self.res_conv = nn.Conv2d(dim, dim_out, 1, bias=conv_bias) if dim != dim_out else nn.Identity()

    def forward(self, x: torch.Tensor, time_emb: Optional[torch.Tensor] = None) -> torch.Tensor:
        """(B, dim, H, W), (B, time_emb_dim) -> (B, dim_out, H, W)."""
        h = self.ds_conv(x)
        if self.mlp is not None and time_emb is not None:
            h = h + self.mlp(time_emb)[:, :, None, None]
        return self.net(h) + self.res_conv(x)


class LayerNorm(nn.Module):
    """Normalise each pixel over its channels, with a gain g and, if `bias`, a bias b; biased variance."""

    def __init__(self, dim: int, bias: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.g = nn.Parameter(torch.ones(1, dim, 1, 1))
        self.b = nn.Parameter(torch.zeros(1, dim, 1, 1)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        variance, mean = torch.var_mean(x, dim=1, unbiased=False, keepdim=True)
        x = (x - mean) / (variance + self.eps).sqrt() * self.g
        return x if self.b is None else x + self.b


class PreNorm(nn.Module):
    """fn(norm(x))."""

    def __init__(self, dim: int, fn: nn.Module, norm: str = "group") -> None:
        super().__init__()
        self.fn = fn
        self.norm = make_norm(norm, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.fn(self.norm(x))


def split_heads(qkv: torch.Tensor, heads: int) -> Tuple[torch.Tensor, ...]:
    """(B, 3 * heads * d, H, W) -> q, k and v, each (B, heads, d, H * W)."""
    return tuple(part.unflatten(1, (heads, -1)).flatten(3) for part in qkv.chunk(3, dim=1))


class Attention(nn.Module):
    """Multi-head self-attention over the pixels."""

    def __init__(self, dim: int, heads: int = 4, dim_head: int = 32) -> None:
        super().__init__()
        self.heads = heads
        self.scale = dim_head**-0.5
        self.to_qkv = nn.Conv2d(dim, heads * dim_head * 3, 1, bias=False)
        self.to_out = nn.Conv2d(heads * dim_head, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        q, k, v = split_heads(self.to_qkv(x), self.heads)
        attention = torch.einsum("bhdi,bhdj->bhij", q * self.scale, k).softmax(dim=-1)
        out = torch.einsum("bhij,bhdj->bhdi", attention, v)
        return self.to_out(out.flatten(1, 2).unflatten(2, x.shape[2:]))


class LinearAttention(nn.Module):
    """Attention whose cost grows linearly with the pixels: keys meet values before they meet queries."""

    def __init__(
        self, dim: int, heads: int = 4, dim_head: int = 32, *, scale_values: bool = False, norm: str = "group"
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale = dim_head**-0.5
        self.scale_values = scale_values
        self.to_qkv = nn.Conv2d(dim, heads * dim_head * 3, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(heads * dim_head, dim, 1), make_norm(norm, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        height, width = x.shape[2:]
        q, k, v = split_heads(self.to_qkv(x), self.heads)
        q = q.softmax(dim=-2) * self.scale
        k = k.softmax(dim=-1)
        if self.scale_values:
            v = v / (height * width)
        context = torch.einsum("bhdn,bhen->bhde", k, v)
        out = torch.einsum("bhde,bhdn->bhen", context, q)
        return self.to_out(out.flatten(1, 2).unflatten(2, (height, width)))


# ---- The network ----


class Unet(nn.Module):
    """Predicts the noise in x_t.

    The options are the fields of `ModelConfig`, and so are their defaults. Raises `UserError` for a value that cannot
    be.
    """

    def __init__(self, dim: int = ModelConfig.dim, **options: Any) -> None:
        super().__init__()
        config = ModelConfig(dim=dim, **options)
        self.config = config
        time_dim = dim * 4 if config.with_time_emb else None
        init_dim = config.init_dim if config.init_dim is not None else dim // 3 * 2
        out_dim = config.out_dim if config.out_dim is not None else config.channels
        dims = [init_dim] + [dim * mult for mult in config.dim_mults]
        in_out = list(zip(dims, dims[1:]))

        block = {
            "convnext": partial(
                ConvNextBlock, mult=config.convnext_mult, norm_kind=config.norm, conv_bias=config.conv_bias,
                gelu_form=config.gelu,
            ),
            "resnet": partial(ResnetBlock, groups=config.resnet_groups, conv_bias=config.conv_bias),
        }[config.block]

        def attend(dim: int) -> Residual:
            attention = LinearAttention(dim, scale_values=config.scale_values, norm=config.attention_norm)
            return Residual(PreNorm(dim, attention, config.norm))

        self.init_conv = nn.Conv2d(config.channels, init_dim, 7, padding=3)
        self.time_mlp = None
        if time_dim is not None:
            self.time_mlp = nn.Sequential(
                SinusoidalPositionEmbeddings(dim), nn.Linear(dim, time_dim), gelu(config.gelu),
                nn.Linear(time_dim, time_dim),
            )

        self.downs = nn.ModuleList()
        for dim_in, dim_out in in_out:
            self.downs.append(nn.ModuleList([
                block(dim_in, dim_out, time_emb_dim=time_dim),
                block(dim_out, dim_out, time_emb_dim=time_dim),
                attend(dim_out),
                Downsample(dim_out, config.conv_bias) if len(self.downs) + 1 < len(in_out) else nn.Identity(),
            ]))

        self.mid_block1 = block(dims[-1], dims[-1], time_emb_dim=time_dim)
        self.mid_attn = Residual(PreNorm(dims[-1], Attention(dims[-1]), config.norm))
        self.mid_block2 = block(dims[-1], dims[-1], time_emb_dim=time_dim)

        self.ups = nn.ModuleList()
        for dim_in, dim_out in reversed(in_out[1:]):
            self.ups.append(nn.ModuleList([
                block(dim_out * 2, dim_in, time_emb_dim=time_dim),
                block(dim_in, dim_in, time_emb_dim=time_dim),
                attend(dim_in),
                Upsample(dim_in, config.conv_bias),
            ]))

        self.final_conv = nn.Sequential(block(dims[1], dim), nn.Conv2d(dim, out_dim, 1, bias=config.conv_bias))
        self.label_emb = nn.Embedding(config.num_classes + 1, time_dim) if config.num_classes else None

    @classmethod
    def tutorial(cls, dim: int = ModelConfig.dim, **options: Any) -> Unet:
        """The MindSpore tutorial's network in PyTorch."""
        return cls(dim, **{**TUTORIAL, **options})

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: Optional[torch.Tensor] = None) -> torch.Tensor:
        """(B, channels, H, W), integer (B,) and labels (B,), None for num_classes in all -> (B, out_dim, H, W)."""
        x = self.init_conv(x)
        emb = self.time_mlp(t) if self.time_mlp is not None else None
        if self.label_emb is not None:
            emb = emb + self.label_emb(torch.full_like(t, self.config.num_classes).long() if y is None else y.long())

        skips = []
        for block1, block2, attention, downsample in self.downs:
            x = attention(block2(block1(x, emb), emb))
            skips.append(x)
            x = downsample(x)

        x = self.mid_block1(x, emb)
        x = self.mid_attn(x)
        x = self.mid_block2(x, emb)

        for block1, block2, attention, upsample in self.ups:
            x = torch.cat([x, skips.pop()], dim=1)
            x = attention(block2(block1(x, emb), emb))
            x = upsample(x)
        return self.final_conv(x)


# ---- The process ----


def make_betas(config: DiffusionConfig) -> torch.Tensor:
    """beta_t of the schedule that `config` names, float64 (T,)."""
    T = config.timesteps
    if config.schedule == "cosine":
        offset = 0.008
        steps = torch.arange(T + 1, dtype=torch.float64) / T
        alphas_cumprod = torch.cos((steps + offset) / (1 + offset) * math.pi / 2).square()
        return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=0.999)
    start, end = config.beta_start, config.beta_end
    if config.schedule == "linear":
        betas = torch.linspace(start, end, T, dtype=torch.float64)
    elif config.schedule == "quadratic":
        betas = torch.linspace(math.sqrt(start), math.sqrt(end), T, dtype=torch.float64).square()
    else:
        betas = torch.linspace(-6, 6, T, dtype=torch.float64).sigmoid() * (end - start) + start
    return betas * 1000 / T if config.scale_betas else betas


def extract(table: torch.Tensor, t: torch.Tensor, x_shape: Tuple[int, ...]) -> torch.Tensor:
    """table[t] as (B, 1, 1, ...)."""
    return table.gather(0, t.long()).reshape(len(t), *[1] * (len(x_shape) - 1))


class GaussianDiffusion(nn.Module):
    """The process.

    The options are the fields of `DiffusionConfig`, and so are their defaults. The tables are float32 (T,), from
    float64. Raises `UserError` for a value that cannot be.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        config = DiffusionConfig(**options)
        beyond = {
            "objective": config.objective != "eps", "variance": config.variance == "learned",
            "loss_weight": config.loss_weight not in ("constant", "p2"),
        }
        for name in (name for name, asked in beyond.items() if asked):
            raise UserError(
                f"diffusion.{name} is {getattr(config, name)!r}: the PyTorch baseline has nothing like it, so there is "
                "nothing to compare with"
            )
        self.config = config
        self.timesteps = config.timesteps

        # Everything follows from log alpha-bar, so that no 1 - alpha-bar loses digits.
        betas = make_betas(config)
        log_alphas_cumprod = torch.log1p(-betas).cumsum(0)
        log_alphas_cumprod_prev = F.pad(log_alphas_cumprod[:-1], (1, 0))
        variance = -torch.expm1(log_alphas_cumprod)  # of x_t given x_0: 1 - alpha-bar_t
        variance_prev = -torch.expm1(log_alphas_cumprod_prev)
        snr = 1 / torch.expm1(-log_alphas_cumprod)
        posterior_variance = betas * variance_prev / variance
        model_variance = posterior_variance if config.variance == "fixed_small" else betas

        def logarithm(variance: torch.Tensor) -> torch.Tensor:
            """Where the variance at t = 0 is 0, that at t = 1 counts."""
            return torch.cat([variance[int(variance[0] == 0)].reshape(1), variance[1:]]).log()

        tables = {
            "sqrt_alphas_cumprod": (log_alphas_cumprod / 2).exp(),
            "sqrt_one_minus_alphas_cumprod": variance.sqrt(),
            "sqrt_recip_alphas_cumprod": (-log_alphas_cumprod / 2).exp(),
            "sqrt_recipm1_alphas_cumprod": snr.rsqrt(),
            "posterior_mean_coef1": betas * (log_alphas_cumprod_prev / 2).exp() / variance,
            "posterior_mean_coef2": (1 - betas).sqrt() * variance_prev / variance,
            "posterior_variance": posterior_variance,
            "model_variance": model_variance,
            "model_std": model_variance.sqrt(),
            "posterior_log_variance": logarithm(posterior_variance),
            "model_log_variance": logarithm(model_variance),
            "loss_weight": (config.p2_k + snr).pow(-config.p2_gamma),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.float())

    def q_sample(self, x_start: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """x_t of x_0 and the noise."""
        signal = extract(self.sqrt_alphas_cumprod, t, x_start.shape) * x_start
        return signal + extract(self.sqrt_one_minus_alphas_cumprod, t, x_start.shape) * noise

    def p_losses(
        self, model: Callable, x_start: torch.Tensor, t: torch.Tensor, noise: torch.Tensor, *labels: torch.Tensor
    ) -> torch.Tensor:
        """The scalar training loss: l1, l2 or huber, weighted by the p2 weight of each t."""
        predicted = model(self.q_sample(x_start, t, noise), t, *labels)
        distance = {"l1": F.l1_loss, "l2": F.mse_loss, "huber": F.smooth_l1_loss}[self.config.loss]
        loss = distance(predicted, noise, reduction="none")
        return (loss.flatten(1).mean(1) * self.loss_weight[t.long()]).mean()

    def p_mean_variance(
        self, model: Callable, x_t: torch.Tensor, t: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean and variance (B, 1, 1, 1) of the reverse step, and the x_0 they follow from."""
        x_start = (
            extract(self.sqrt_recip_alphas_cumprod, t, x_t.shape) * x_t
            - extract(self.sqrt_recipm1_alphas_cumprod, t, x_t.shape) * model(x_t, t)
        )
        if self.config.clip_x_start:
            x_start = x_start.clamp(-1, 1)
        mean = (
            extract(self.posterior_mean_coef1, t, x_t.shape) * x_start
            + extract(self.posterior_mean_coef2, t, x_t.shape) * x_t
        )
        return mean, extract(self.model_variance, t, x_t.shape), x_start

    def p_sample(self, model: Callable, x_t: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """x_{t-1}; at t = 0 the mean, without noise."""
        mean, _, _ = self.p_mean_variance(model, x_t, t)
        nonzero = (t > 0).reshape(-1, 1, 1, 1)
        return mean + nonzero * extract(self.model_std, t, x_t.shape) * noise
