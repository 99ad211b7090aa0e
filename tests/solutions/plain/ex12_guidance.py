from mindspore import ops


def guide(conditional, unconditional, weight):
    return unconditional + weight * (conditional - unconditional)


def guided_eps(model, x_t, t, labels, weight, null):
    none = ops.full_like(labels, null)
    both = model(ops.concat((x_t, x_t)), ops.concat((t, t)), ops.concat((labels, none)))
    conditional, unconditional = ops.chunk(both, 2)
    return guide(conditional, unconditional, weight)


def drop_labels(labels, uniform, probability, null):
    return ops.select(uniform < probability, ops.full_like(labels, null), labels)
