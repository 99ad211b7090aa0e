SHAPE = "part.reshape((b, heads, c // 3 // heads, h * w)) for part in ops.chunk(qkv, 3, axis=1)"
HEADS_FIRST = "part.reshape((b, heads, -1, h * w)) for part in ops.chunk(qkv.reshape((b, heads, -1, h * w)), 3, 2)"
SOFTMAX_Q = "ops.softmax(q, -2) * q.shape[2] ** -0.5"
MISTAKES = [
    ("7.1", "h * w))", "h * w)).swapaxes(2, 3)", "d stands before the pixels"),
    ("7.1", "h * w))", "h * w)).swapaxes(1, 2)", "the heads stand before d"),
    ("7.1", SHAPE, HEADS_FIRST, "chunk first, then heads"),
    ("7.1", "heads, c // 3 // heads, h * w))", "c // 3 // heads, heads, h * w)).swapaxes(1, 2)", "side by side"),
    ("7.1", "h * w))", "h, w))", "the pixels become one axis"),
    ("7.1", "part.reshape((b", "part.swapaxes(2, 3).reshape((b", "row by row"),
    ("7.1", "return q, k, v", "return v, k, q", "the order is q, k, v"),
    ("7.2", "ops.softmax(q, -2)", "ops.softmax(q, -1)", "the softmax of q runs over the wrong axis"),
    ("7.2", "ops.softmax(k, -1)", "ops.softmax(k, -2)", "the softmax of k runs over the wrong axis"),
    ("7.2", "ops.softmax(q, -2)", "q", "the softmax of q is missing"),
    ("7.2", "k = ops.softmax(k, -1)", "pass", "the softmax of k is missing"),
    ("7.2", " * q.shape[2] ** -0.5", "", "the factor d ** -0.5 is missing"),
    ("7.2", SOFTMAX_Q, "ops.softmax(q * q.shape[2] ** -0.5, -2)", "after its softmax"),
    ("7.2", "** -0.5", "** -1.0", "not 1 / d"),
    ("7.2", "ops.BatchMatMul(transpose_a=True)(context", "ops.BatchMatMul()(context", "the wrong way round"),
    ("7.2", "(k, v)\n", "(k, v / v.shape[3])\n", "no division by the number of pixels"),
    ("7.3", "return self.to_out(", "return x + self.to_out(", "no residual connection"),
    ("7.3", "out.reshape", "out.swapaxes(1, 2).reshape", "put together in the wrong order"),
    ("7.3", "out.reshape", "out.swapaxes(2, 3).reshape", "pixels and channels are mixed up"),
    ("7.3", "self.to_out(out", "self.to_out[0](out", "the norm in to_out is not used"),
    ("7.3", "q, k, v = split_heads", "k, q, v = split_heads", "q and k are swapped"),
    ("7.3", "has_bias=False", "has_bias=True", "besides to_qkv.bias"),
]
