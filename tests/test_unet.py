import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ms_diffusion.errors import UserError
from ms_diffusion.unet import Unet, count_parameters, init_weights

SMALL = {"dim": 8, "dim_mults": (1, 2)}


def network(**options):
    model = Unet(**{**SMALL, **options})
    init_weights(model, np.random.default_rng(0))
    return model


def inputs(channels=1, height=8, width=8, batch=2):
    x = np.random.default_rng(1).standard_normal((batch, channels, height, width))
    return Tensor(x, ms.float32), Tensor([3, 150][:batch], ms.int32)


def test_published_parameter_counts():
    assert count_parameters(Unet(dim=28, channels=1, dim_mults=(1, 2, 4))) == 2_996_315
    assert count_parameters(Unet.tutorial(dim=28, channels=1, dim_mults=(1, 2, 4))) == 2_992_180


def test_tutorial_keeps_its_switches_and_takes_options():
    config = Unet.tutorial(dim=8, channels=3, gelu="erf").config
    assert (config.conv_bias, config.scale_values, config.attention_norm) == (False, True, "layer")
    assert (config.channels, config.gelu) == (3, "erf")


@pytest.mark.parametrize("options", [{}, {"block": "resnet"}, {"dim_mults": (1, 2, 4), "with_time_emb": False}])
def test_parameter_names_are_unique(options):
    names = [parameter.name for parameter in network(**options).get_parameters()]
    assert len(names) == len(set(names)) > 20
    assert "downs.0.0.ds_conv.weight" in names or "downs.0.0.block1.proj.weight" in names


@pytest.mark.parametrize(
    "options",
    [
        {}, {"block": "resnet"}, {"with_time_emb": False}, {"dim_mults": (2, 3)}, {"dim_mults": (1,)},
        {"conv_bias": False, "gelu": "tanh", "scale_values": True, "attention_norm": "layer"},
        {"init_dim": 5, "convnext_mult": 3, "channels": 3, "out_dim": 2},
    ],
)
def test_both_modes_agree(options):
    model = network(**options)
    x, t = inputs(options.get("channels", 1))
    eager, compiled = model(x, t).asnumpy(), ms.jit(model)(x, t).asnumpy()
    assert eager.shape == (2, options.get("out_dim", options.get("channels", 1)), 8, 8)
    assert np.isfinite(eager).all() and eager.std() > 1e-3
    assert np.abs(eager - compiled).max() < 1e-5


@pytest.mark.parametrize("size", [(4, 8), (2, 2), (12, 6)])
def test_any_size_that_can_be_halved(size):
    x, t = inputs(1, *size)
    assert network()(x, t).shape == (2, 1, *size)


def test_odd_sizes_where_nothing_is_halved():
    x, t = inputs(1, 5, 7)
    assert network(dim_mults=(1,))(x, t).shape == (2, 1, 5, 7)


def test_time_matters_only_with_its_embedding():
    x, _ = inputs(batch=1)
    x = Tensor(np.repeat(x.asnumpy(), 2, axis=0))
    t = Tensor([3, 150], ms.int32)
    first, second = network()(x, t).asnumpy()
    assert np.abs(first - second).max() > 1e-3
    first, second = network(with_time_emb=False)(x, t).asnumpy()
    assert np.abs(first - second).max() < 1e-6


def test_images_of_a_batch_do_not_mix():
    model = network()
    x, t = inputs()
    alone = model(x[:1], t[:1]).asnumpy()
    assert np.abs(model(x, t).asnumpy()[:1] - alone).max() < 1e-5


@pytest.mark.parametrize(
    "options, key",
    [
        ({"dim": 7}, "model.dim is 7"), ({"dim": 2}, "model.dim is 2"), ({"channels": 0}, "model.channels is 0"),
        ({"dim_mults": ()}, "model.dim_mults"), ({"dim_mults": (1, 0)}, "model.dim_mults"),
        ({"init_dim": 0}, "model.init_dim"), ({"block": "resnet", "resnet_groups": 3}, "model.resnet_groups is 3"),
    ],
)
def test_sizes_that_cannot_be_are_refused_at_construction(options, key):
    with pytest.raises(UserError, match=key):
        Unet(**{**SMALL, **options})


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="dimm"):
        Unet(dim=8, dimm=3)


def test_wrong_images_are_refused(jit):
    model = network()
    function = ms.jit(model) if jit else model
    with pytest.raises(ValueError, match="built for 1 channels and got an image of 3"):
        function(*inputs(3))
    with pytest.raises(ValueError, match="height 9 and width 8 must be multiples of 2"):
        function(*inputs(1, 9, 8))


def test_weights_are_pytorchs_default_uniform():
    model = network(dim=32)
    weight = model.mid_block1.net[1].weight.asnumpy()  # fan_in = 64 * 3 * 3
    bound = (64 * 9) ** -0.5
    assert 0.99 * bound < np.abs(weight).max() <= bound
    assert weight.std() == pytest.approx(bound / np.sqrt(3), rel=0.01)
    assert np.abs(model.mid_block1.net[1].bias.asnumpy()).max() <= bound
    assert np.all(model.mid_block1.net[0].gamma.asnumpy() == 1)


def test_weights_follow_from_the_generator_alone():
    first, second = ([p.asnumpy() for p in network().get_parameters()] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second))
    assert all(np.abs(value).max() > 0 for value, p in zip(first, network().get_parameters()) if "bias" in p.name)


def test_gradient_is_the_slope_of_the_loss(jit):
    """d loss / d weight by value_and_grad against a central difference along a random direction."""
    model = network()
    x, t = inputs()
    parameters = model.trainable_params()

    def loss_of(x, t):
        return model(x, t).square().mean()

    gradient_of = ms.value_and_grad(loss_of, grad_position=None, weights=parameters)
    _, gradients = (ms.jit(gradient_of) if jit else gradient_of)(x, t)
    generator = np.random.default_rng(2)
    directions = [generator.standard_normal(parameter.shape) for parameter in parameters]
    slope = sum(np.sum(d * g.asnumpy()) for d, g in zip(directions, gradients))
    start, losses, h = [p.asnumpy() for p in parameters], [], 2e-4
    for sign in (1, -1):
        for parameter, value, direction in zip(parameters, start, directions):
            parameter.set_data(Tensor(value + sign * h * direction, ms.float32))
        losses.append(float(loss_of(x, t).asnumpy()))
    assert slope == pytest.approx((losses[0] - losses[1]) / (2 * h), rel=1e-2)


# ---- Labels ----


def test_labels_matter_and_no_label_is_the_last_one(jit):
    model = network(num_classes=3)
    x = Tensor(np.repeat(inputs(batch=1)[0].asnumpy(), 4, axis=0))
    t, labels = Tensor([50] * 4, ms.int32), Tensor([0, 1, 2, 3], ms.int32)
    function = ms.jit(model) if jit else model
    told = function(x, t, labels).asnumpy()
    assert min(np.abs(told[i] - told[j]).max() for i in range(4) for j in range(i)) > 1e-3
    untold = (ms.jit(model) if jit else model)(x, t).asnumpy()
    assert np.abs(untold - told[3]).max() < 1e-6


def test_a_dropped_label_trains_the_last_row_alone(jit):
    model = network(num_classes=3)
    x, t = inputs()

    def loss_of(x, t, label):
        return model(x, t, label).square().mean()

    gradient_of = ms.value_and_grad(loss_of, grad_position=None, weights=[model.label_emb.embedding_table])
    for labels, rows in (([3, 3], [3]), ([3, 1], [1, 3])):
        _, (gradient,) = (ms.jit(gradient_of) if jit else gradient_of)(x, t, Tensor(labels, ms.int32))
        assert np.flatnonzero(np.abs(gradient.asnumpy()).max(axis=1)).tolist() == rows


def test_labels_change_no_other_weight():
    without, model = network(), network(num_classes=3)
    others = {name: value.asnumpy() for name, value in model.parameters_and_names()}
    table = others.pop("label_emb.embedding_table")
    assert table.shape == (4, 32) and 0.7 < table.std() < 1.3 and abs(table.mean()) < 0.4
    assert all(np.array_equal(others.pop(name), value.asnumpy()) for name, value in without.parameters_and_names())
    assert not others


def test_labels_of_a_network_without_classes_are_refused(jit):
    model = network()
    with pytest.raises(ValueError, match="built without classes and got labels"):
        (ms.jit(model) if jit else model)(*inputs(), Tensor([0, 0], ms.int32))
    with pytest.raises(UserError, match="model.num_classes is 3: it must be 0 where model.with_time_emb is false"):
        network(num_classes=3, with_time_emb=False)
