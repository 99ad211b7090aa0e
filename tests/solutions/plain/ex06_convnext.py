from mindspore import nn, ops


def group_norm(x, gamma, beta, eps=1e-5):
    axes = (1, 2, 3)
    centred = x - x.mean(axis=axes, keep_dims=True)
    variance = ops.square(centred).mean(axis=axes, keep_dims=True)
    return centred / ops.sqrt(variance + eps) * gamma.reshape((1, -1, 1, 1)) + beta.reshape((1, -1, 1, 1))


def conv(dim, dim_out, size, group=1):
    return nn.Conv2d(dim, dim_out, size, pad_mode="pad", padding=size // 2, group=group, has_bias=True)


class ConvNextBlock(nn.Cell):
    def __init__(self, dim, dim_out, time_emb_dim=None, mult=2):
        super().__init__()
        wide = dim_out * mult
        self.mlp = None
        if time_emb_dim is not None:
            self.mlp = nn.SequentialCell(nn.GELU(approximate=False), nn.Dense(time_emb_dim, dim))
        self.ds_conv = conv(dim, dim, 7, group=dim)
        self.net = nn.SequentialCell(
            nn.GroupNorm(1, dim), conv(dim, wide, 3), nn.GELU(approximate=False),
            nn.GroupNorm(1, wide), conv(wide, dim_out, 3),
        )
        self.res_conv = conv(dim, dim_out, 1) if dim != dim_out else nn.Identity()

    def construct(self, x, time_emb=None):
        h = self.ds_conv(x)
        if self.mlp is not None and time_emb is not None:
            condition = self.mlp(time_emb)
            h = h + condition.reshape((*condition.shape, 1, 1))
        return self.net(h) + self.res_conv(x)
