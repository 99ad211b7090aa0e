"""Exercise 6: the ConvNeXt block."""

from __future__ import annotations

from typing import Callable, Optional

import numpy as np

from course.grader.check import AsTensor, Both, Call, Check, Mistake, Part
from course.grader.checks.for_cells import channels, conv, draw, gelu, gelu_tanh, norm

FILE = "ex06_convnext.py"
TITLE = Both("The ConvNeXt block", "ConvNeXt 块")
MULT = 2


def parts(rng: np.random.Generator) -> list[Part]:
    """A norm, then blocks that change the number of channels and that do not."""
    dim, dim_out, time = (int(size) for size in rng.choice(np.arange(3, 8), size=3, replace=False))
    return [
        Part("6.1", "group_norm", 3, [_group_norm(rng)]),
        Part("6.2", "ConvNextBlock.__init__", 3, [_layers(dim, dim_out, time), _layers(dim, dim, time)]),
        Part("6.3", "ConvNextBlock.construct", 4, [
            _block(rng, dim, dim_out, time), _block(rng, dim, dim, time), _block(rng, dim, dim_out, None),
        ]),
    ]


def _group_norm(rng: np.random.Generator) -> Check:
    x = 2 * draw(rng, 3, 4, 2, 5) + channels(draw(rng, 3, 4))  # images and channels that differ
    gamma, beta, eps = draw(rng, 4), draw(rng, 4), float(rng.uniform(0.2, 0.5))

    def over(axes: tuple, deviation: Callable = lambda variance: np.sqrt(variance + eps), unbiased: int = 0):
        centred = x - x.mean(axes, keepdims=True)
        variance = x.var(axes, keepdims=True, ddof=unbiased)
        return centred / deviation(variance) * channels(gamma) + channels(beta)

    image = (1, 2, 3)
    return Check(
        Call("group_norm", AsTensor(x), AsTensor(gamma), AsTensor(beta), eps), norm(x.astype(float), gamma, beta, eps),
        mistakes=[
            Mistake(
                over(image, unbiased=1), "the unbiased variance: divide by the number of values, not by one less",
                "这是无偏方差：应除以数值的个数，不是个数减一",
            ),
            Mistake(
                over((2, 3)), "each channel was normalised by itself: mean and variance are over all channels too",
                "每个通道各自做了归一化：均值和方差也要取遍所有通道",
            ),
            Mistake(
                over((1,)), "each pixel was normalised by itself: mean and variance are over all pixels too",
                "每个像素各自做了归一化：均值和方差也要取遍所有像素",
            ),
            Mistake(
                over((0, 2, 3)), "this is batch normalisation: each image has its own mean and variance",
                "这是批归一化：每幅图像有自己的均值和方差",
            ),
            Mistake(
                over((0, 1, 2, 3)), "one mean for the whole batch: each image has its own",
                "整个批次共用了一个均值：每幅图像应有自己的",
            ),
            Mistake(
                over(image, lambda variance: variance + eps), "divided by the variance: the square root is missing",
                "除以了方差：漏了平方根",
            ),
            Mistake(
                over(image, lambda variance: np.sqrt(variance) + eps),
                "eps stands under the root: sqrt(variance + eps)",
                "eps 在根号里面：sqrt(variance + eps)",
            ),
            Mistake(over(image, np.sqrt), "eps is missing: sqrt(variance + eps)", "漏了 eps：sqrt(variance + eps)"),
            Mistake(
                norm(x.astype(float), np.ones(4), np.zeros(4), eps), "gamma and beta are missing", "漏了 gamma 和 beta",
            ),
        ],
    )


def _shapes(dim: int, dim_out: int, time: Optional[int], mult: int = MULT) -> dict[str, tuple]:
    wide = dim_out * mult
    shapes = {"mlp.1.weight": (dim, time), "mlp.1.bias": (dim,)} if time else {}
    shapes.update({
        "ds_conv.weight": (dim, 1, 7, 7), "ds_conv.bias": (dim,), "net.0.gamma": (dim,), "net.0.beta": (dim,),
        "net.1.weight": (wide, dim, 3, 3), "net.1.bias": (wide,), "net.3.gamma": (wide,), "net.3.beta": (wide,),
        "net.4.weight": (dim_out, wide, 3, 3), "net.4.bias": (dim_out,),
    })
    if dim != dim_out:
        shapes.update({"res_conv.weight": (dim_out, dim, 1, 1), "res_conv.bias": (dim_out,)})
    return shapes


def _layers(dim: int, dim_out: int, time: int) -> Check:
    right = _shapes(dim, dim_out, time)
    names = [*_shapes(dim, dim + 1, time)]  # res_conv is asked for even where there must be none
    of_convs = [name for name in right if name.endswith("bias") and name != "mlp.1.bias"]

    def rows(shapes: dict[str, tuple]) -> np.ndarray:
        listed = [[*shapes.get(name, ()), 0, 0, 0, 0][:4] for name in names]
        return np.array([*listed, [len(shapes), 0, 0, 0]], np.float64)

    def without(left_out: list[str]) -> np.ndarray:
        return rows({name: shape for name, shape in right.items() if name not in left_out})

    if dim == dim_out:
        connection = Mistake(
            rows({**right, "res_conv.weight": (dim, dim, 1, 1), "res_conv.bias": (dim,)}),
            "res_conv is nn.Identity() where dim and dim_out are the same",
            "dim 与 dim_out 相同时 res_conv 是 nn.Identity()",
        )
    else:
        connection = Mistake(
            without(["res_conv.weight", "res_conv.bias"]),
            "res_conv is missing: x has dim channels and the output dim_out",
            "漏了 res_conv：x 有 dim 个通道，输出有 dim_out 个",
        )
    return Check(
        Call("shapes", names, dim, dim_out, time, harness=True), rows(right), returns="any",
        mistakes=[
            connection,
            Mistake(
                without(of_convs), "the convolutions have no bias: MindSpore's default is has_bias=False",
                "卷积没有偏置：MindSpore 默认 has_bias=False",
            ),
            Mistake(
                rows({**right, "ds_conv.weight": (dim, dim, 7, 7)}), "ds_conv is not depthwise: group=dim",
                "ds_conv 不是逐通道卷积：group=dim",
            ),
            Mistake(
                rows({**right, "ds_conv.weight": (dim, 1, 3, 3)}), "ds_conv has a 7x7 kernel, not 3x3",
                "ds_conv 的卷积核是 7x7，不是 3x3",
            ),
            Mistake(
                rows(_shapes(dim, dim_out, time, mult=1)),
                "the first 3x3 convolution widens to dim_out * mult channels",
                "第一个 3x3 卷积要扩展到 dim_out * mult 个通道",
            ),
            *([] if dim == dim_out else [Mistake(
                rows({**right, "mlp.1.weight": (dim_out, time), "mlp.1.bias": (dim_out,)}),
                "mlp ends in dim channels: it is added before net changes them",
                "mlp 的输出是 dim 个通道：它在 net 改变通道数之前相加",
            )]),
            Mistake(
                lambda shapes: shapes.shape == (len(names) + 1, 4)
                and not all(shapes[names.index(name), 0] for name in right),
                "a layer is missing or has another name: see the table in the docstring",
                "缺少某一层或层名不同：请看文档字符串中的表",
            ),
        ],
    )


def _block(rng: np.random.Generator, dim: int, dim_out: int, time: Optional[int]) -> Check:
    weights = {name: draw(rng, *shape) for name, shape in _shapes(dim, dim_out, time).items()}
    weights = {name: value / np.sqrt(value[0].size).astype(np.float32) for name, value in weights.items()}
    x, emb = 2 * draw(rng, 2, dim, 6, 5), draw(rng, 2, time) if time else None

    def block(
        act: Callable = gelu, emb: Optional[np.ndarray] = emb, residual: str = "x", place: str = "h"
    ) -> np.ndarray:
        w = {name: value.astype(np.float64) for name, value in weights.items()}
        condition = 0.0 if emb is None else channels(act(emb.astype(float)) @ w["mlp.1.weight"].T + w["mlp.1.bias"])
        h = conv(x + condition if place == "x" else x, w["ds_conv.weight"], w["ds_conv.bias"])
        h = {"h": h + condition, "x": h, "times": h * condition}[place]
        out = norm(h, w["net.0.gamma"], w["net.0.beta"])
        out = act(conv(out, w["net.1.weight"], w["net.1.bias"]))
        out = conv(norm(out, w["net.3.gamma"], w["net.3.beta"]), w["net.4.weight"], w["net.4.bias"])
        kept = {"x": x, "h": h, "none": None}[residual]
        if kept is None:
            return out
        return out + (conv(kept, w["res_conv.weight"], w["res_conv.bias"]) if dim != dim_out else kept)

    with_time = [] if time is None else [
        Mistake(block(emb=None), "the time embedding is not added", "没有加上时间编码"),
        Mistake(
            block(place="x"), "the time embedding is added after ds_conv, not before it",
            "时间编码应在 ds_conv 之后相加，不是之前",
        ),
        Mistake(
            block(place="times"), "the time embedding is added to h, not multiplied with it",
            "时间编码应与 h 相加，不是相乘",
        ),
    ]
    tensors = AsTensor(x), None if emb is None else AsTensor(emb)
    return Check(
        Call("output", [*weights.items()], dim, dim_out, time, *tensors, harness=True), block(), tolerance=1e-5,
        mistakes=[
            Mistake(
                block(residual="none"), "the residual connection is missing: + res_conv(x)",
                "漏了残差连接：+ res_conv(x)",
            ),
            Mistake(
                block(residual="h"), "the residual connection starts from x, before ds_conv",
                "残差连接从 x 开始，在 ds_conv 之前",
            ),
            Mistake(
                block(gelu_tanh), "GELU by its tanh approximation: nn.GELU(approximate=False)",
                "GELU 用了 tanh 近似：请用 nn.GELU(approximate=False)",
            ),
            Mistake(block(lambda x: np.maximum(x, 0)), "ReLU where GELU is asked for", "应为 GELU，却用了 ReLU"),
            *with_time,
        ],
    )
