from ms_diffusion import layers


def group_norm(x, gamma, beta, eps=1e-5):
    norm = layers.GroupNorm(1, x.shape[1])
    norm.eps, norm.native = eps, None
    norm.gamma.set_data(gamma)
    norm.beta.set_data(beta)
    return norm(x)


def ConvNextBlock(dim, dim_out, time_emb_dim=None, mult=2):
    return layers.ConvNextBlock(dim, dim_out, time_emb_dim=time_emb_dim, mult=mult)
