from mindspore import nn, ops


def split_heads(qkv, heads):
    b, c, h, w = qkv.shape
    q, k, v = (part.reshape((b, heads, c // 3 // heads, h * w)) for part in ops.chunk(qkv, 3, axis=1))
    return q, k, v


def linear_attention(q, k, v):
    q = ops.softmax(q, -2) * q.shape[2] ** -0.5
    k = ops.softmax(k, -1)
    context = ops.BatchMatMul(transpose_b=True)(k, v)
    return ops.BatchMatMul(transpose_a=True)(context, q)


class LinearAttention(nn.Cell):
    def __init__(self, dim, heads=4, dim_head=32):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Conv2d(dim, 3 * heads * dim_head, 1, has_bias=False)
        self.to_out = nn.SequentialCell(nn.Conv2d(heads * dim_head, dim, 1, has_bias=True), nn.GroupNorm(1, dim))

    def construct(self, x):
        b, _, h, w = x.shape
        q, k, v = split_heads(self.to_qkv(x), self.heads)
        out = linear_attention(q, k, v)
        return self.to_out(out.reshape((b, -1, h, w)))
