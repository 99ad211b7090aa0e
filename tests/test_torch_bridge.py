"""Names both ways and options from weights; no PyTorch is needed for these."""

import dataclasses

import numpy as np
import pytest
from mindspore import nn

from ms_diffusion import layers
from ms_diffusion.config import TUTORIAL, ModelConfig
from ms_diffusion.errors import UserError
from ms_diffusion.torch_bridge import from_torch, infer_config, naming, rename, to_torch, torch_names, unseen_options
from ms_diffusion.unet import Unet, build_unet

SMALL = {"dim": 8, "dim_mults": (1, 2)}
CONFIGS = {
    "torch": ModelConfig(**SMALL),
    "tutorial": ModelConfig(**SMALL, **TUTORIAL),
    "resnet": ModelConfig(**SMALL, block="resnet"),
    "tutorial resnet": ModelConfig(**SMALL, block="resnet", **TUTORIAL),
    "annotated": ModelConfig(**SMALL, norm="layer_bias", attention_norm="layer_bias"),
    "gain only": ModelConfig(**SMALL, norm="layer", conv_bias=False),
    "no time": ModelConfig(**SMALL, with_time_emb=False, convnext_mult=3),
    "sizes": ModelConfig(dim=12, dim_mults=(1, 3, 2), init_dim=5, out_dim=6, channels=3, attention_norm="layer"),
    "labels": ModelConfig(**SMALL, num_classes=10),
    "one stage": ModelConfig(dim=8, dim_mults=(2,), channels=2, conv_bias=False),
    "resnet without time": ModelConfig(**SMALL, block="resnet", norm="layer_bias", with_time_emb=False),
}


def weights(config, seed=0):
    generator = np.random.default_rng(seed)
    parameters = build_unet(config).parameters_and_names()
    return {name: generator.standard_normal(p.shape).astype(np.float32) for name, p in parameters}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def config(request):
    return request.param


def test_only_group_norms_are_renamed():
    assert torch_names(layers.Block(8, 8)) == {
        "proj.weight": "proj.weight", "proj.bias": "proj.bias", "norm.gamma": "norm.weight", "norm.beta": "norm.bias",
    }
    assert torch_names(layers.GroupNorm(1, 4)) == {"gamma": "weight", "beta": "bias"}
    assert torch_names(layers.LayerNorm(4, bias=True)) == {"g": "g", "b": "b"}


def test_the_kind_of_a_cell_decides_not_its_place_or_name():
    class Fused(nn.GroupNorm):
        pass

    class Gain(nn.Cell):
        def __init__(self):
            super().__init__()
            self.gamma = layers.LayerNorm(2).g
            self.norm = nn.CellList([Fused(1, 2), layers.LayerNorm(2)])

    assert torch_names(Gain()) == {
        "gamma": "gamma", "norm.0.gamma": "norm.0.weight", "norm.0.beta": "norm.0.bias", "norm.1.g": "norm.1.g",
    }


def test_there_and_back_whatever_the_order(config):
    ours = weights(config)
    shuffled = dict(np.random.default_rng(0).permutation(np.array(list(ours.items()), dtype=object)))
    theirs = to_torch(shuffled, config)
    assert not [name for name in theirs if name.endswith(("gamma", "beta"))]
    assert len(theirs) == len(ours)
    back = from_torch(dict(reversed(theirs.items())), config)
    assert list(back) == list(ours) and all(back[name] is ours[name] for name in ours)


def test_every_wrong_key_is_listed_in_one_line():
    config = CONFIGS["torch"]
    tensors = weights(config)
    del tensors["init_conv.bias"], tensors["downs.0.0.net.0.gamma"]
    tensors["zebra"] = tensors["ape"] = np.zeros(1, np.float32)
    tensors["time_mlp.1.bias"] = np.zeros((8, 4), np.float32)
    tensors["mid_attn.fn.fn.to_out.bias"] = np.zeros(16)
    with pytest.raises(UserError) as caught:
        to_torch(tensors, config)
    assert str(caught.value) == (
        "the weights do not fit the network; missing: downs.0.0.net.0.gamma, init_conv.bias; extra: ape, zebra; "
        "misshapen: time_mlp.1.bias (8, 4) instead of (32,); not float32: mid_attn.fn.fn.to_out.bias (float64)"
    )
    with pytest.raises(UserError, match="missing: downs.0.0.net.0.bias, downs.0.0.net.0.weight, .* extra: ape, "):
        from_torch(tensors, config)


def test_a_transposed_kernel_is_misshapen():
    config = CONFIGS["torch"]
    tensors = weights(config)
    tensors["downs.0.1.net.1.weight"] = tensors["downs.0.1.net.1.weight"].swapaxes(0, 1)
    with pytest.raises(UserError, match=r"misshapen: downs.0.1.net.1.weight \(8, 16, 3, 3\) instead of \(16, 8"):
        to_torch(tensors, config)


def test_whose_names_they_are():
    config = CONFIGS["torch"]
    ours = weights(config)
    theirs = to_torch(ours, config)
    assert naming(ours, config, "torch") == "mindspore" and naming(theirs, config, "mindspore") == "torch"
    ours.pop("init_conv.weight"), theirs.pop("init_conv.weight")
    assert naming(ours, config, "torch") == "mindspore" and naming(theirs, config, "mindspore") == "torch"
    same = weights(CONFIGS["annotated"])
    assert [naming(same, CONFIGS["annotated"], side) for side in ("torch", "mindspore")] == ["torch", "mindspore"]


# ---- The options ----


def test_the_options_follow_from_the_weights(config):
    """All but the unseen ones, which are guessed: the tutorial's beside its other options, else the defaults."""
    ours = weights(config)
    assert infer_config(ours) == infer_config(to_torch(ours, config)) == config


def test_what_cannot_be_seen_can_be_given():
    tensors = weights(CONFIGS["tutorial resnet"])
    config = infer_config(tensors, gelu="erf", scale_values=False, resnet_groups=2)
    assert (config.gelu, config.scale_values, config.resnet_groups) == ("erf", False, 2)
    assert dataclasses.replace(config, gelu="tanh", scale_values=True, resnet_groups=4) == CONFIGS["tutorial resnet"]
    with pytest.raises(UserError, match="model.resnet_groups is 3: it must divide"):
        infer_config(tensors, resnet_groups=3)


@pytest.mark.parametrize("name, expected", [
    ("torch", {"gelu": "erf", "scale_values": False}),
    ("tutorial", {"gelu": "tanh", "scale_values": True}),
    ("tutorial resnet", {"gelu": "tanh", "scale_values": True, "resnet_groups": 4}),
    ("resnet without time", {"scale_values": False, "resnet_groups": 4}),  # it has no GELU at all
])
def test_unseen_options(name, expected):
    assert unseen_options(CONFIGS[name]) == expected


@pytest.mark.parametrize("name", ["torch", "tutorial resnet", "resnet without time"])
def test_unseen_options_are_what_leaves_the_weights_as_they_are(name):
    """Independent of the list: change each option of the configuration and look whether names or shapes change."""
    config = CONFIGS[name]
    others = {
        "dim": 16, "init_dim": 9, "out_dim": 7, "dim_mults": (1,) if len(config.dim_mults) > 1 else (1, 1),
        "num_classes": 3 if config.with_time_emb else 0,
        "channels": 5, "with_time_emb": not config.with_time_emb, "convnext_mult": 4, "resnet_groups": 1,
        "block": {"convnext": "resnet", "resnet": "convnext"}[config.block], "conv_bias": not config.conv_bias,
        "gelu": {"erf": "tanh", "tanh": "erf"}[config.gelu], "scale_values": not config.scale_values,
        "norm": {"group": "layer"}.get(config.norm, "group"),
        "attention_norm": {"group": "layer"}.get(config.attention_norm, "group"),
    }
    assert others.keys() == {field.name for field in dataclasses.fields(ModelConfig)}
    shapes = {name: value.shape for name, value in weights(config).items()}
    unseen = {
        name for name, value in others.items()
        if {n: v.shape for n, v in weights(dataclasses.replace(config, **{name: value})).items()} == shapes
    }
    without_effect = {"resnet_groups"} if config.block == "convnext" else {"convnext_mult"}
    if config.block == "resnet" and not config.with_time_emb:
        without_effect.add("gelu")
    if not config.with_time_emb:
        without_effect.add("num_classes")  # it cannot be changed
    assert unseen - without_effect == unseen_options(config).keys()


@pytest.mark.parametrize("name", ["torch", "tutorial", "tutorial resnet", "annotated"])
def test_a_file_that_lacks_one_key_is_refused_by_its_name(name):
    config = CONFIGS[name]
    theirs = to_torch(weights(config), config)
    for lost in theirs:
        rest = {key: value for key, value in theirs.items() if key != lost}
        with pytest.raises(UserError, match=rf"missing[^;]* {lost}(,|;|$)"):
            from_torch(rest, infer_config(rest))


def test_weights_of_something_else_are_refused_by_name():
    with pytest.raises(UserError, match="no weights of Unet: missing, or not of 4 dimensions: final_conv.1.weight, "):
        infer_config({"layer1.weight": np.zeros((3, 3), np.float32)})
    tensors = weights(CONFIGS["torch"])
    tensors["final_conv.1.weight"] = np.zeros((1, 6, 1, 1), np.float32)
    with pytest.raises(UserError, match="its channels are multiples of 6, and downs.0 has 8, downs.1 has 16$"):
        infer_config(tensors)
    tensors["final_conv.1.weight"] = np.zeros(8, np.float32)
    with pytest.raises(UserError, match="missing, or not of 4 dimensions: final_conv.1.weight$"):
        infer_config(tensors)


# ---- denoising-diffusion-pytorch 0.11.0 to 0.11.2 ----


def foreign_shapes(dim, dim_mults, channels, mult=2):
    """Names and shapes of that package's Unet(use_convnext=True), written down from its 0.11.2."""
    shapes = {}

    def layer(name, *shape, bias=True):
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    def norm(name, width):
        shapes[f"{name}.g"] = shapes[f"{name}.b"] = (1, width, 1, 1)

    def block(name, width, out, time=True):
        if time:
            layer(f"{name}.mlp.1", width, 4 * dim)
        layer(f"{name}.ds_conv", width, 1, 7, 7)
        norm(f"{name}.net.0", width)
        layer(f"{name}.net.1", out * mult, width, 3, 3)
        norm(f"{name}.net.3", out * mult)
        layer(f"{name}.net.4", out, out * mult, 3, 3)
        if width != out:
            layer(f"{name}.res_conv", out, width, 1, 1)

    def attention(name, width, linear=True):
        norm(f"{name}.fn.norm", width)
        layer(f"{name}.fn.fn.to_qkv", 384, width, 1, 1, bias=False)
        layer(f"{name}.fn.fn.to_out" + ".0" * linear, width, 128, 1, 1)
        if linear:
            norm(f"{name}.fn.fn.to_out.1", width)

    widths = [dim // 3 * 2, *(dim * m for m in dim_mults)]
    last = len(dim_mults) - 1
    layer("init_conv", widths[0], channels, 7, 7)
    layer("time_mlp.1", 4 * dim, dim)
    layer("time_mlp.3", 4 * dim, 4 * dim)
    for i in range(last + 1):
        block(f"downs.{i}.0", widths[i], widths[i + 1])
        block(f"downs.{i}.1", widths[i + 1], widths[i + 1])
        attention(f"downs.{i}.2", widths[i + 1])
        if i < last:
            layer(f"downs.{i}.3", widths[i + 1], widths[i + 1], 4, 4)
    for i in range(last):
        width, out = widths[last + 1 - i], widths[last - i]
        block(f"ups.{i}.0", 2 * width, out)
        block(f"ups.{i}.1", out, out)
        attention(f"ups.{i}.2", out)
        layer(f"ups.{i}.3", out, out, 4, 4)
    block("mid_block1", widths[-1], widths[-1])
    attention("mid_attn", widths[-1], linear=False)
    block("mid_block2", widths[-1], widths[-1])
    block("final_conv.0", dim, dim, time=False)
    layer("final_conv.1", channels, dim, 1, 1)
    return shapes


def foreign(*sizes, **options):
    return {name: np.full(shape, 0.1, np.float32) for name, shape in foreign_shapes(*sizes, **options).items()}


@pytest.mark.parametrize("sizes, mult", [((8, (1, 2), 1), 2), ((12, (1, 1, 3), 3), 1), ((8, (1,), 1), 2)])
def test_the_annotated_form_is_read_without_an_edit(sizes, mult):
    state = foreign(*sizes, mult=mult)
    dim, dim_mults, channels = sizes
    config = infer_config(state)
    assert config == ModelConfig(
        dim=dim, dim_mults=dim_mults, channels=channels, convnext_mult=mult, norm="layer_bias",
        attention_norm="layer_bias",
    )
    ours = from_torch(state, config)
    assert ours.keys() == state.keys() and all(ours[name] is state[name] for name in state)


def test_the_annotated_form_has_as_many_parameters_as_published():
    assert sum(value.size for value in foreign(28, (1, 2, 4), 1).values()) == 2_996_315


def test_its_norms_are_no_group_norms():
    """In a network with GroupNorm each norm is refused by name, and nothing else is."""
    state = foreign(8, (1, 2), 1)
    norms = sorted(name for name in state if name.endswith((".g", ".b")))
    with pytest.raises(UserError) as caught:
        from_torch(state, CONFIGS["torch"])
    message = str(caught.value)
    assert f"extra: {', '.join(norms)}" in message
    assert message.count(".weight") == message.count(".bias") == len(norms) // 2


def test_its_resnet_blocks_are_refused_by_name():
    state = {"downs.0.0.block1.block.0.weight": np.zeros((8, 4, 3, 3)), "downs.0.0.block2.block.1.bias": np.zeros(8)}
    with pytest.raises(UserError) as caught:
        infer_config({**foreign(8, (1, 2), 1), **state})
    assert str(caught.value) == (
        "of denoising-diffusion-pytorch only Unet(use_convnext=True) is read, and these are its ResNet blocks: "
        "downs.0.0.block1.block.0.weight, downs.0.0.block2.block.1.bias"
    )


def test_its_last_block_fits_only_where_the_first_stage_is_as_wide_as_dim():
    """Elsewhere that package's network cannot run: its last block gets other channels than it was made for."""
    state = foreign(8, (2, 2), 1)
    with pytest.raises(UserError, match=r"missing: final_conv.0.res_conv.bias.* misshapen: final_conv.0.ds_conv.bias"):
        from_torch(state, infer_config(state))


def test_rename_to_the_same_side_checks_and_orders():
    config = CONFIGS["torch"]
    ours = weights(config)
    assert list(rename(dict(reversed(ours.items())), config, "mindspore", "mindspore")) == list(ours)
    assert list(ours) == [name for name, _ in Unet(**SMALL).parameters_and_names()]
