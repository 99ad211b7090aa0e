"""What the benchmark measures: layers that the network has, and networks that can be."""

import dataclasses

import pytest
from mindspore import Tensor

from ms_diffusion import layers, workloads
from ms_diffusion.config import Config, DataConfig, DiffusionConfig, ModelConfig
from ms_diffusion.errors import UserError

torch = pytest.importorskip("torch", reason="the benchmark's other side: pip install torch==2.13.0 (CPU build)")

from ms_diffusion import torch_twin  # noqa: E402

CONFIG = Config(model=ModelConfig(dim=4, dim_mults=(1, 2), convnext_mult=3), data=DataConfig(image_size=8))


def test_operators_are_layers_of_the_network_at_their_shapes():
    seen = set()

    def key(layer, x, y):
        return type(layer).__name__, getattr(layer, "kernel_size", None), tuple(x.shape), tuple(y.shape)

    twin = torch_twin.Unet(**vars(CONFIG.model))
    for layer in twin.modules():
        layer.register_forward_hook(lambda layer, inputs, output: seen.add(key(layer, inputs[0], output)))
    twin(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int32))
    lacking = set()
    for operator in workloads.operators(CONFIG, "a.yaml", 2).operators:
        ours, layer = (
            operator.inside(getattr(side, operator.maker)(**operator.options)) for side in (layers, torch_twin)
        )
        x = torch.zeros(operator.shape)
        assert ours(Tensor(x.numpy())).shape == tuple(layer(x).shape), operator
        if key(layer, x, layer(x)) not in seen:
            lacking.add(operator.name)
    assert lacking == {"SiLU", "layer norm"}, "what only other options would use"


@pytest.mark.parametrize(
    "kinds, expected",
    [
        (workloads.STEPS, [("training", 1), ("training", 2), ("forward", 1), ("forward", 2), ("sampling", 64)]),
        (["forward"], [("forward", 1), ("forward", 2)]),
        (["sampling", "training", "training"], [("training", 1), ("training", 2), ("sampling", 64)]),
    ],
)
def test_steps_are_restricted(kinds, expected):
    assert [(load.kind, load.batch_size) for load in workloads.steps(CONFIG, "a.yaml", kinds, [1, 2])] == expected


def test_only_sampling_needs_its_timesteps():
    few = dataclasses.replace(CONFIG, diffusion=DiffusionConfig(timesteps=5, schedule="cosine"))
    assert len(workloads.steps(few, "a.yaml", ["training", "forward"], [1])) == 2
    with pytest.raises(UserError, match="a.yaml: diffusion.timesteps is 5"):
        workloads.steps(few, "a.yaml", ["sampling"], [1])


def test_growth_changes_width_and_image():
    loads = workloads.growth(CONFIG, "a.yaml", [1, 2], [4, 8], [4, 6])
    assert [(load.config.model.dim, load.shape) for load in loads] == [
        (dim, (batch, 1, size, size)) for dim in (4, 6) for size in (4, 8) for batch in (1, 2)]
