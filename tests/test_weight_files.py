"""Weight files of every kind: there and back bit for bit, and nothing half right."""

import importlib.util
import os
import pickle
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from safetensors import safe_open
from safetensors.numpy import save_file

import ms_diffusion
from ms_diffusion import checkpoint, weight_files
from ms_diffusion.config import TUTORIAL, Config, DataConfig, ModelConfig
from ms_diffusion.errors import UserError
from ms_diffusion.torch_bridge import to_torch
from ms_diffusion.unet import build_unet
from ms_diffusion.weight_files import Weights, load_model, read_weights, write_weights

CONFIG = ModelConfig(dim=4, dim_mults=(1, 2), gelu="tanh")  # tanh is what a guess would miss
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs PyTorch: pip install -r requirements-dev.txt"
)
KINDS = [
    pytest.param("a.pt", None, marks=needs_torch, id="pt"),
    pytest.param("a.pth", None, marks=needs_torch, id="pth"),
    pytest.param("a.safetensors", "torch", id="safetensors-torch"),
    pytest.param("a.safetensors", "mindspore", id="safetensors-mindspore"),
    pytest.param("a.ckpt", None, id="ckpt"),
]


def tensors(config=CONFIG, seed=0):
    """Any bit patterns, infinities and NaNs included."""
    generator = np.random.default_rng(seed)
    return {
        name: generator.integers(0, 2**32, parameter.shape, np.uint32).view(np.float32)
        for name, parameter in build_unet(config).parameters_and_names()
    }


def numbers(config=CONFIG, seed=0):
    generator = np.random.default_rng(seed)
    return {
        name: 0.1 * generator.standard_normal(parameter.shape, np.float32)
        for name, parameter in build_unet(config).parameters_and_names()
    }


def bits(arrays):
    return {name: (value.dtype, value.shape, value.tobytes()) for name, value in arrays.items()}


def foreign(**changes):
    """A file's content as another program has it: PyTorch's names, no options."""
    return {**to_torch(numbers(), CONFIG), **changes}


# ---- There and back ----


@pytest.mark.parametrize("first, first_names", KINDS)
@pytest.mark.parametrize("second, second_names", KINDS)
def test_there_and_back_is_the_same_bit_for_bit(first, first_names, second, second_names, tmp_path):
    """The weights and even the file."""
    there, between, back = (tmp_path / folder for folder in "abc")
    for folder in (there, between, back):
        folder.mkdir()
    weights = Weights(tensors(), CONFIG)
    write_weights(there / first, weights, first_names)
    write_weights(between / second, read_weights(there / first), second_names)
    read = read_weights(between / second)
    write_weights(back / first, read, first_names)
    assert read.config == CONFIG and not read.assumed and not read.left_out
    assert bits(read.tensors) == bits(weights.tensors) and list(read.tensors) == list(weights.tensors)
    assert (there / first).read_bytes() == (back / first).read_bytes()


@pytest.mark.parametrize("source, source_names", KINDS)
def test_safetensors_get_the_other_sides_names_unless_told(source, source_names, tmp_path):
    write_weights(tmp_path / source, Weights(tensors(), CONFIG), source_names)
    weights = read_weights(tmp_path / source)
    assert weights.names == (source_names or {".ckpt": "mindspore"}.get((tmp_path / source).suffix, "torch"))
    assert write_weights(tmp_path / "b.safetensors", weights) != weights.names
    with safe_open(tmp_path / "b.safetensors", framework="numpy") as file:
        keys = set(file.keys())
    assert keys == ({*weights.tensors} if weights.names == "torch" else {*to_torch(weights.tensors, CONFIG)})
    assert write_weights(tmp_path / "b.safetensors", weights, weights.names) == weights.names


@needs_torch
def test_pytorch_reads_the_file_by_itself(tmp_path):
    import torch

    from ms_diffusion import torch_twin

    write_weights(tmp_path / "a.pt", Weights(numbers(), CONFIG))
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    twin = torch_twin.Unet(**content["config"])
    assert twin.config == CONFIG and twin.load_state_dict(content["state_dict"], strict=True)

    model = load_model(tmp_path / "a.pt")
    x, t = np.random.default_rng(0).standard_normal((2, 1, 6, 4)).astype(np.float32), np.array([1, 99], np.int32)
    expected = twin(torch.from_numpy(x), torch.from_numpy(t)).detach().numpy()
    assert np.abs(model(Tensor(x), Tensor(t)).asnumpy() - expected).max() < 1e-4


def test_mindspore_reads_the_file_by_itself(tmp_path):
    path = write_and_name(tmp_path / "a.ckpt")
    model = build_unet(CONFIG)
    missing, extra = ms.load_param_into_net(model, ms.load_checkpoint(path))
    assert missing == [] and extra == ["ms_diffusion.model"]
    assert bits(numbers()) == bits({name: p.asnumpy() for name, p in model.parameters_and_names()})
    assert os.stat(path).st_mode & 0o600 == 0o600


def write_and_name(path, config=CONFIG, names=None):
    write_weights(path, Weights(numbers(config), config), names)
    return str(path)


# ---- load_model ----


@pytest.mark.parametrize("name, names", KINDS)
def test_load_model_needs_the_file_alone(name, names, tmp_path, recwarn):
    model = ms_diffusion.load_model(write_and_name(tmp_path / name, names=names))
    assert model.config == CONFIG and not model.training and not recwarn.list
    assert bits(numbers()) == bits({name: p.asnumpy() for name, p in model.parameters_and_names()})


def test_load_model_says_what_it_assumed(tmp_path):
    save_file(foreign(), tmp_path / "a.safetensors")
    with pytest.warns(UserWarning, match="a.safetensors: assumed gelu=erf, scale_values=False: the file does"):
        assert load_model(tmp_path / "a.safetensors").config.gelu == "erf"
    with pytest.warns(UserWarning, match="assumed scale_values=False"):
        assert load_model(tmp_path / "a.safetensors", gelu="tanh").config == CONFIG


def test_a_run_folder_and_its_checkpoint_are_sources(tmp_path, recwarn):
    config = Config(model=CONFIG, data=DataConfig(image_size=8))
    folder = checkpoint.create_run(tmp_path / "run", config, {})
    with pytest.raises(UserError, match="run has no checkpoint yet: let it train"):
        read_weights(folder)
    for step in (3, 20):
        weights = {f"model.{name}": value for name, value in numbers(seed=step).items()}
        path = checkpoint.save_checkpoint(folder, step, {**weights, "optimizer.step": np.ones(1, np.int32)}, config)
    for source in (folder, path):
        read = read_weights(source)
        assert (read.config, read.names) == (CONFIG, "mindspore") and bits(read.tensors) == bits(numbers(seed=20))
        assert (read.assumed, read.left_out) == ("", 1)
    assert load_model(folder).config == CONFIG and not recwarn.list
    with pytest.raises(UserError, match="no run folder: it has no config.yaml"):
        read_weights(tmp_path)


def test_a_runs_moving_average_is_taken_where_there_is_one(tmp_path):
    config = Config(model=CONFIG, data=DataConfig(image_size=8))
    folder = checkpoint.create_run(tmp_path / "run", config, {})
    both = {f"{kind}.{name}": value for seed, kind in ((1, "model"), (2, "ema"))
            for name, value in numbers(seed=seed).items()}
    path = checkpoint.save_checkpoint(folder, 3, both, config)
    assert bits(read_weights(folder).tensors) == bits(numbers(seed=2))
    assert bits(read_weights(folder, "model.").tensors) == bits(numbers(seed=1))
    later = path.with_name("step_00000004.safetensors")
    later.write_bytes(path.read_bytes()[:-1])
    assert bits(read_weights(folder).tensors) == bits(numbers(seed=2)), "a damaged newest one is passed over"
    with pytest.raises(UserError, match="cannot read .*step_00000004"):
        read_weights(later)


# ---- Files of other programs ----


@needs_torch
def test_a_plain_state_dict_of_pytorch(tmp_path):
    import torch

    config = ModelConfig(dim=4, dim_mults=(1, 2), **TUTORIAL)
    state = {name: torch.from_numpy(value) for name, value in to_torch(numbers(config), config).items()}
    name = "downs.0.0.net.1.weight"
    state[name] = torch.from_numpy(state[name].numpy().T.copy("C")).permute(3, 2, 1, 0)  # equal, but not in C order
    assert not state[name].is_contiguous()
    state["init_conv.weight"] = torch.nn.Parameter(state["init_conv.weight"])
    torch.save(state, tmp_path / "a.pth")
    read = read_weights(tmp_path / "a.pth")
    assert read.config == config and bits(read.tensors) == bits(numbers(config))
    assert read.assumed == (
        "assumed gelu=tanh, scale_values=True: the file does not say it and weights do not show it; give what differs"
    )


def test_a_plain_checkpoint_of_mindspore(tmp_path):
    model = build_unet(CONFIG)
    checkpoint.load_weights(model, {f"model.{name}": value for name, value in numbers().items()}, tmp_path)
    ms.save_checkpoint(model, str(tmp_path / "a.ckpt"))
    read = read_weights(tmp_path / "a.ckpt", gelu="tanh", scale_values=False)
    assert read.config == CONFIG and not read.assumed and bits(read.tensors) == bits(numbers())
    ms.save_checkpoint(model, str(tmp_path / "b.ckpt"), append_dict={"epoch": 3, "note": "mine"})
    with pytest.raises(UserError, match=r"b.ckpt: not float32 arrays: note \(str\)$"):
        read_weights(tmp_path / "b.ckpt")


@needs_torch
def test_a_network_among_other_things_is_chosen_by_its_prefix(tmp_path):
    """The form of denoising-diffusion-pytorch's Trainer."""
    import torch

    states = {"model": {}, "ema": {"betas": torch.ones(20)}}
    for seed, state in enumerate(states.values()):
        weights = to_torch(numbers(seed=seed), CONFIG)
        state.update({f"denoise_fn.{name}": torch.from_numpy(value) for name, value in weights.items()})
    torch.save({"step": 7, **states, "scaler": {"growth": 2.0}}, tmp_path / "model-1.pt")
    with pytest.raises(UserError, match=r"its names have a prefix: give as prefix one of ema.denoise_fn., model.d"):
        read_weights(tmp_path / "model-1.pt")
    with pytest.raises(UserError, match=r"give as prefix one of ema.denoise_fn., "):
        read_weights(tmp_path / "model-1.pt", "ema.")
    read = read_weights(tmp_path / "model-1.pt", "ema.denoise_fn.")
    assert bits(read.tensors) == bits(numbers(seed=1))
    assert read.left_out == len(numbers()) + 3
    write_and_name(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="nothing in it has a name that begins with 'ema.'"):
        read_weights(tmp_path / "a.safetensors", "ema.")


# ---- Refusals ----


@pytest.mark.parametrize("change, message", [
    ({"zebra": np.zeros(2, np.float32)}, "extra: zebra$"),
    ({"init_conv.bias": np.zeros(3, np.float32)}, r"misshapen: init_conv.bias \(3,\) instead of \(2,\)$"),
    ({"init_conv.bias": np.zeros(2, np.float16)}, r"not float32: init_conv.bias \(float16\)$"),
])
def test_what_does_not_fit_is_named_with_the_file(change, message, tmp_path):
    save_file(foreign(**change), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=f"a.safetensors: the weights do not fit the network; {message}"):
        read_weights(tmp_path / "a.safetensors")


@needs_torch
def test_two_entries_of_one_name_are_refused(tmp_path):
    import torch

    state = {name: torch.from_numpy(value) for name, value in foreign().items()}
    torch.save({**state, "init_conv": {"bias": torch.zeros(2)}}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="a.pt: two of its entries have the same name"):
        read_weights(tmp_path / "a.pt")


@needs_torch
def test_types_that_numpy_has_not_are_named(tmp_path):
    import safetensors.torch
    import torch

    state = {name: torch.from_numpy(value) for name, value in foreign().items()}
    state["init_conv.bias"] = state["init_conv.bias"].to(torch.float8_e4m3fn)
    torch.save(state, tmp_path / "a.pt")
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"a.pt: not float32 arrays: init_conv.bias \(torch.float8_e4m3fn\)$"):
        read_weights(tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a.safetensors: not float32 arrays: init_conv.bias \(F8_E4M3\)$"):
        read_weights(tmp_path / "a.safetensors")


def test_options_that_the_file_contradicts_are_refused(tmp_path):
    path = write_and_name(tmp_path / "a.safetensors")
    assert read_weights(path, gelu="tanh").config == CONFIG
    with pytest.raises(UserError, match="gelu is 'tanh' in the file and 'erf' was asked for: leave it out"):
        read_weights(path, gelu="erf")


@pytest.mark.parametrize("options, message", [
    ("dim: 4\ncolour: red", "unexpected keyword argument 'colour'"), ("dim: 7", "model.dim is 7"), ("- 1", "'get'"),
    ("a: [", "while parsing"), ("dim: x", "'>='"),
])
def test_damaged_options_are_one_line(options, message, tmp_path):
    save_file(foreign(), tmp_path / "a.safetensors", {"ms_diffusion.model": options})
    with pytest.raises(UserError, match=f"a.safetensors: its options do not fit this version.*{message}") as caught:
        read_weights(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [
    pytest.param("a.pt", marks=needs_torch), "a.safetensors", "a.ckpt",
])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"rubbish" * 99])
def test_a_damaged_file_is_named_in_one_line(name, damage, tmp_path):
    path = write_and_name(tmp_path / name)
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(damage(content))
    with pytest.raises(UserError, match=f"cannot read .*{name}") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


@needs_torch
def test_code_in_a_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"init_conv.weight": Trap()}, protocol=2))
    with pytest.raises(UserError, match=r"cannot read a.pt with torch.load\(weights_only=True\): .*state_dict\(\)$"):
        read_weights("a.pt")
    assert not (tmp_path / "trapped").exists()


def test_names_of_files(tmp_path):
    with pytest.raises(UserError, match="a.onnx must end in .pt, .pth, .safetensors, .ckpt or be a run folder$"):
        read_weights("a.onnx")
    with pytest.raises(UserError, match="a.onnx must end in .pt, .pth, .safetensors, .ckpt$"):
        write_weights("a.onnx", Weights(numbers(), CONFIG))
    with pytest.raises(UserError, match="a.ckpt: there is no such file"):
        read_weights(tmp_path / "a.ckpt")


def test_names_that_a_kind_does_not_have(tmp_path):
    for name, own, other in (("a.ckpt", "mindspore", "torch"), ("a.pt", "torch", "mindspore")):
        with pytest.raises(UserError, match=f"{name} has {own}'s names: leave names={other} out"):
            write_weights(tmp_path / name, Weights(numbers(), CONFIG), other)
    assert not list(tmp_path.iterdir())


def test_without_pytorch_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pt").write_bytes(b"")
    for action in (lambda: read_weights(tmp_path / "a.pt"),
                   lambda: write_weights(tmp_path / "b.pt", Weights(numbers(), CONFIG))):
        with pytest.raises(UserError, match=r"\.pt is a PyTorch file, and PyTorch is not installed: pip install torch"):
            action()
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    write_and_name(tmp_path / "a.safetensors", names="torch")
    assert load_model(tmp_path / "a.safetensors").config == CONFIG


@pytest.mark.parametrize("name", [pytest.param("a.pt", marks=needs_torch), "a.safetensors", "a.ckpt"])
def test_a_disk_that_refuses_leaves_the_file_as_it_was(name, tmp_path, monkeypatch):
    path = tmp_path / name
    path.write_text("precious")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weight_files.os, "fsync", full)
    with pytest.raises(UserError, match=f"cannot write .*{name}: .*No space left on device"):
        write_weights(path, Weights(numbers(), CONFIG))
    assert path.read_text() == "precious" and [file.name for file in tmp_path.iterdir()] == [name]
