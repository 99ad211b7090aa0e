"""Exercise 7: linear attention."""

from __future__ import annotations

import numpy as np

from course.grader.check import AsTensor, Both, Call, Check, Mistake, Part
from course.grader.checks.for_cells import conv, draw, norm, softmax

FILE = "ex07_linear_attention.py"
TITLE = Both("Linear attention", "线性注意力")


def parts(rng: np.random.Generator) -> list[Part]:
    """Heads, channels and pixels of numbers that differ."""
    heads, d, height, width = (int(size) for size in rng.choice(np.arange(2, 7), size=4, replace=False))
    dim = int(rng.integers(7, 10))
    qkv = draw(rng, 2, 3 * heads * d, height, width)
    q, k, v = (draw(rng, 2, heads, d, height * width) for _ in range(3))
    return [
        Part("7.1", "split_heads", 3, [_split(qkv, heads)]),
        Part("7.2", "linear_attention", 4, [_attention(q, k, v)]),
        Part("7.3", "LinearAttention", 3, [_layer(rng, dim, heads, d, draw(rng, 2, dim, height, width))]),
    ]


def _split(qkv: np.ndarray, heads: int) -> Check:
    b, channels, h, w = qkv.shape
    d = channels // 3 // heads

    def cut(*axes: int, order: str) -> list[np.ndarray]:
        """q, k and v where the channels are read as these axes, c being the part, h the head."""
        return list(np.einsum(f"b{order}n->cbhdn", qkv.reshape(b, *axes, h * w)))

    right = cut(3, heads, d, order="chd")
    return Check(
        Call("split_heads", AsTensor(qkv), heads), right,
        mistakes=[
            Mistake(
                [part.swapaxes(2, 3) for part in right], "d stands before the pixels: (B, heads, d, H * W)",
                "d 在像素之前：(B, heads, d, H * W)",
            ),
            Mistake(
                [part.swapaxes(1, 2) for part in right], "the heads stand before d: (B, heads, d, H * W)",
                "头在 d 之前：(B, heads, d, H * W)",
            ),
            Mistake(
                cut(heads, 3, d, order="hcd"), "the channels are all of q, all of k, all of v: chunk first, then heads",
                "通道依次是全部 q、全部 k、全部 v：先 chunk，再分头",
            ),
            Mistake(
                cut(3, d, heads, order="cdh"),
                "the d channels of one head lie side by side: reshape to (B, heads, d, N)",
                "同一个头的 d 个通道是相邻的：reshape 成 (B, heads, d, N)",
            ),
            Mistake(
                [part.reshape(b, heads, d, h, w) for part in right], "the pixels become one axis of H * W",
                "所有像素要合成一个长度 H * W 的轴",
            ),
            Mistake(
                [part.reshape(b, heads, d, h, w).swapaxes(3, 4).reshape(part.shape) for part in right],
                "the pixels come row by row: no transpose of H and W", "像素按行排列：不要转置 H 和 W",
            ),
            Mistake(right[::-1], "the order is q, k, v", "顺序是 q, k, v"),
        ],
    )


def _attend(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, over_q: int = -2, over_k: int = -1, before: float = 0.0,
    after: float = -0.5, transposed: bool = False,
) -> np.ndarray:
    """In float64; `before` and `after` the softmax q is multiplied by these powers of d; axis 0: no softmax."""
    q, k, v = (array.astype(np.float64) for array in (q, k, v))
    d = q.shape[2]
    q = q * d**before
    q = (softmax(q, over_q) if over_q else q) * d**after
    context = np.einsum("bhdn,bhen->bhde", softmax(k, over_k) if over_k else k, v)
    return np.einsum("bhed,bhdn->bhen" if transposed else "bhde,bhdn->bhen", context, q)


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> Check:
    return Check(
        Call("linear_attention", AsTensor(q), AsTensor(k), AsTensor(v)), _attend(q, k, v),
        mistakes=[
            Mistake(
                _attend(q, k, v, -1, -2),
                "both softmaxes run over the wrong axis: q over d (-2), k over the pixels (-1)",
                "两个 softmax 的轴都错了：q 沿 d (-2)，k 沿像素 (-1)",
            ),
            Mistake(
                _attend(q, k, v, over_q=-1), "the softmax of q runs over the wrong axis: over d (-2)",
                "q 的 softmax 轴错了：沿 d (-2)",
            ),
            Mistake(
                _attend(q, k, v, over_k=-2), "the softmax of k runs over the wrong axis: over the pixels (-1)",
                "k 的 softmax 轴错了：沿像素 (-1)",
            ),
            Mistake(
                _attend(q, k, v, over_q=0), "the softmax of q is missing", "漏了 q 的 softmax",
            ),
            Mistake(
                _attend(q, k, v, over_k=0), "the softmax of k is missing", "漏了 k 的 softmax",
            ),
            Mistake(
                _attend(q, k, v, after=0), "the factor d ** -0.5 is missing", "漏了因子 d ** -0.5",
            ),
            Mistake(
                _attend(q, k, v, before=-0.5, after=0), "q is multiplied by d ** -0.5 after its softmax, not before",
                "q 在 softmax 之后才乘 d ** -0.5，不是之前",
            ),
            Mistake(
                _attend(q, k, v, after=-1), "d ** -0.5, one over the square root of d, not 1 / d",
                "是 d ** -0.5，即 d 的平方根分之一，不是 1 / d",
            ),
            Mistake(
                _attend(q, k, v, transposed=True), "the context is used the wrong way round: context^T q",
                "context 用反了：应为 context^T q",
            ),
            Mistake(
                _attend(q, k, v) / q.shape[-1], "no division by the number of pixels: softmaxed keys sum to 1 already",
                "不要再除以像素数：softmax 之后的键之和已是 1",
            ),
        ],
    )


def _layer(rng: np.random.Generator, dim: int, heads: int, d: int, x: np.ndarray) -> Check:
    inner = heads * d
    weights = {
        "to_qkv.weight": draw(rng, 3 * inner, dim, 1, 1) / np.float32(np.sqrt(dim)),
        "to_out.0.weight": draw(rng, dim, inner, 1, 1), "to_out.0.bias": draw(rng, dim) / np.float32(10),
        "to_out.1.gamma": draw(rng, dim), "to_out.1.beta": draw(rng, dim),
    }
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    b, _, height, width = x.shape
    q, k, v = np.split(conv(x, w["to_qkv.weight"], np.zeros(3 * inner)).reshape(b, 3 * heads, d, -1), 3, axis=1)
    attended = _attend(q, k, v)

    def out(attended: np.ndarray, normed: bool = True) -> np.ndarray:
        projected = conv(attended.reshape(b, inner, height, width), w["to_out.0.weight"], w["to_out.0.bias"])
        return norm(projected, w["to_out.1.gamma"], w["to_out.1.beta"]) if normed else projected

    return Check(
        Call("output", [*weights.items()], dim, heads, d, AsTensor(x), harness=True), out(attended),
        mistakes=[
            Mistake(
                out(attended) + x, "no residual connection here: the network has one around the layer",
                "这里没有残差连接：网络在这一层外面已有一个",
            ),
            Mistake(
                out(attended.swapaxes(1, 2)),
                "the heads are put together in the wrong order: (B, heads, d, N) as it is",
                "各头拼接的顺序错了：直接用 (B, heads, d, N)",
            ),
            Mistake(
                out(attended.swapaxes(2, 3)),
                "pixels and channels are mixed up: reshape (B, heads, d, N), nothing transposed",
                "像素与通道混淆了：直接 reshape (B, heads, d, N)，不要转置",
            ),
            Mistake(
                out(attended, normed=False), "the norm in to_out is not used", "没有用 to_out 中的归一化",
            ),
            Mistake(
                out(_attend(k, q, v)), "q and k are swapped", "q 与 k 写反了",
            ),
        ],
    )
