"""scripts/convert_weights.py as a person runs it."""

import importlib.util

import numpy as np
import pytest
from safetensors.numpy import save_file

from ms_diffusion.config import ModelConfig
from ms_diffusion.torch_bridge import to_torch
from ms_diffusion.unet import build_unet
from ms_diffusion.weight_files import Weights, read_weights, write_weights

CONFIG = ModelConfig(dim=4, dim_mults=(1, 2), block="resnet", conv_bias=False, resnet_groups=2)


def numbers():
    generator = np.random.default_rng(0)
    parameters = build_unet(CONFIG).parameters_and_names()
    return {name: generator.standard_normal(parameter.shape, np.float32) for name, parameter in parameters}


@pytest.fixture
def convert(run_script, tmp_path, monkeypatch):
    """Run the script in a folder that holds a.safetensors, PyTorch's names without options."""
    monkeypatch.chdir(tmp_path)
    save_file(to_torch(numbers(), CONFIG), "a.safetensors")
    return lambda *words: run_script("convert_weights", *words)


def fails(result, message):
    status, out, err = result
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert message in err


def test_it_says_what_it_did_and_what_it_assumed(convert, tmp_path):
    status, out, err = convert("a.safetensors", "b.ckpt", "--resnet_groups", 2, "--scale_values", "false")
    assert (status, err) == (0, "")
    notes, network, names = out.splitlines()
    assert notes == ("a.safetensors: assumed gelu=erf: the file does not say it and weights do not show it; "
                     "give what differs")
    total = sum(value.size for value in numbers().values())
    assert network == f"{total:,} weights of {CONFIG}"
    assert names == "PyTorch's names in a.safetensors, MindSpore's in b.ckpt"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.ckpt"]

    status, out, err = convert("b.ckpt", "c.safetensors")
    assert (status, err) == (0, "") and out.count("\n") == 2
    assert "MindSpore's names in b.ckpt, PyTorch's in c.safetensors" in out
    read = read_weights("c.safetensors")
    assert read.config == CONFIG and read.names == "torch"
    assert all(np.array_equal(read.tensors[name], value) for name, value in numbers().items())


def test_every_option_reaches_the_file(convert):
    assert convert("a.safetensors", "b.safetensors", "--names", "torch", "--gelu", "tanh", "--scale_values", "true",
                   "--resnet_groups", 1)[0] == 0
    read = read_weights("b.safetensors")
    assert (read.config.gelu, read.config.scale_values, read.config.resnet_groups) == ("tanh", True, 1)
    assert read.names == "torch"
    save_file({"a": np.zeros(1), **{f"ema.{name}": value for name, value in numbers().items()}}, "c.safetensors")
    status, out, _ = convert("c.safetensors", "d.ckpt", "--prefix", "ema.")
    assert status == 0 and "assumed gelu=erf, resnet_groups=4, scale_values=False" in out
    assert "c.safetensors: left out 1 entries that are not the network's\n" in out


def test_nothing_is_overwritten_unless_told(convert, tmp_path):
    (tmp_path / "b.ckpt").write_text("precious")
    fails(convert("a.safetensors", "b.ckpt"), "b.ckpt exists: choose another name, or replace it with --overwrite")
    assert (tmp_path / "b.ckpt").read_text() == "precious"
    assert convert("a.safetensors", "b.ckpt", "--overwrite")[0] == 0
    assert convert("b.ckpt", "b.ckpt", "--overwrite")[0] == 0, "also onto itself"
    assert len(read_weights("b.ckpt").tensors) == len(numbers())


def test_mistakes_are_one_line(convert, tmp_path):
    fails(convert("a.safetensors", "b.onnx"), "b.onnx must end in .pt, .pth, .safetensors, .ckpt")
    fails(convert("nothing.ckpt", "b.ckpt"), "nothing.ckpt: there is no such file")
    fails(convert("a.safetensors", "nowhere/b.ckpt"), "there is no folder nowhere; make it first")
    fails(convert("a.safetensors", "b.ckpt", "--names", "torch"), "b.ckpt has mindspore's names: leave names=torch out")
    fails(convert("a.safetensors", "b.ckpt", "--names", "jax"), '"names"')
    fails(convert("a.safetensors"), "arguments are required: dst")
    fails(convert("a.safetensors", "b.ckpt", "--resnet_groups", 3), "model.resnet_groups is 3: it must divide")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_weights_that_do_not_fit_write_nothing(convert, tmp_path):
    state = to_torch(numbers(), CONFIG)
    del state["mid_block1.block1.norm.bias"]
    save_file({**state, "zebra": np.zeros(1, np.float32)}, "b.safetensors")
    fails(convert("b.safetensors", "c.ckpt"), "b.safetensors: the weights do not fit the network; "
          "missing: mid_block1.block1.norm.bias; extra: zebra")
    assert not (tmp_path / "c.ckpt").exists()


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch: requirements-dev.txt")
def test_to_pytorch_and_back_is_the_same_file(convert, tmp_path):
    write_weights("first.ckpt", Weights(numbers(), CONFIG))
    assert convert("first.ckpt", "second.pt")[0] == 0
    assert convert("second.pt", "third.ckpt")[0] == 0
    assert (tmp_path / "first.ckpt").read_bytes() == (tmp_path / "third.ckpt").read_bytes()
