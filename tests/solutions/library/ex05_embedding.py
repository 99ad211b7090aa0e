import numpy as np

from ms_diffusion.layers import SinusoidalPositionEmbeddings


def frequencies(dim):
    return SinusoidalPositionEmbeddings(dim).frequencies.asnumpy().astype(np.float64)


def sinusoidal_embedding(t, dim):
    return SinusoidalPositionEmbeddings(dim)(t)
