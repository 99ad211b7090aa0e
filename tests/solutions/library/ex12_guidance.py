import numpy as np
from mindspore import Tensor, ops

from ms_diffusion.guidance import Guided


def guide(conditional, unconditional, weight):
    def both(x_t, t, y):
        return ops.concat((conditional, unconditional))[: len(y)]

    t = Tensor(np.zeros(len(conditional), np.int32))
    return Guided(both, [0] * len(conditional), weight, null=1)(conditional, t)


def guided_eps(model, x_t, t, labels, weight, null):
    return Guided(model, labels.asnumpy(), weight, null=null)(x_t, t)


def drop_labels(labels, uniform, probability, null):
    dropped = uniform.asnumpy() < probability  # as `batches.draw_condition` does
    return Tensor(np.where(dropped, np.int32(null), labels.asnumpy()))
