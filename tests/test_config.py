import dataclasses
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import yaml

from ms_diffusion import config as configuration
from ms_diffusion.config import Config, DataConfig, DiffusionConfig, ModelConfig, RuntimeConfig, TrainConfig, load
from ms_diffusion.errors import UserError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
FIELDS = [(group.name, field.name) for group in dataclasses.fields(Config)
          for field in dataclasses.fields(getattr(Config(), group.name))]


def write(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def another(group, name):
    """A legal value of an option that is not its default, as a word of the command line."""
    special = {
        "dim_mults": "[1,1]", "resnet_groups": "2", "lr_min": "1e-06", "lr": "0.5", "beta_start": "0.001",
        "beta_end": "0.03", "out_dim": "1", "adam_beta1": "0.5", "adam_beta2": "0.5", "ema_decay": "0.5",
        "label_drop": "0.5",
        "folder": "somewhere", "cache": "elsewhere", "image_size": "16", "init_dim": "6", "dim": "32",
    }
    if name in special:
        return special[name]
    default = getattr(getattr(Config(), group), name)
    hint = get_type_hints(type(getattr(Config(), group)))[name]
    if get_origin(hint) is Literal:
        return next(choice for choice in get_args(hint) if choice not in (default, "images"))
    if isinstance(default, bool):
        return str(not default).lower()
    return str(1 if default is None else default + 1)


@pytest.mark.parametrize("group, name", [f for f in FIELDS if f != ("model", "channels")])
def test_every_option_is_reached_from_the_command_line(group, name):
    word = another(group, name)
    needs = {"folder": ["--data.name=mnist"], "zero_terminal_snr": ["--diffusion.objective=v"]}.get(name, [])
    changed = getattr(getattr(load(None, [f"--{group}.{name}={word}", *needs]), group), name)
    default = getattr(getattr(Config(), group), name)
    assert changed != default
    assert str(changed) == word.replace("true", "True").replace("false", "False") or name == "dim_mults"


def test_channels_are_reached_from_the_command_line():
    assert load(None, ["--model.channels", "3"]).image_shape == (3, 8, 8)


def test_every_option_is_in_the_help_with_its_default(run_script):
    status, out, _ = run_script("train", "--help")
    assert status == 0
    words = " ".join(out.split())
    for group, name in FIELDS:
        default = getattr(getattr(Config(), group), name)
        shown = "null" if default is None else str(default)
        line = words.split(f"--{group}.{name} ")[-1].split(" --")[0]
        assert f"default: {shown})" in line, f"{group}.{name}: {line}"
        meaning = line.split("(type")[0].split(maxsplit=1)
        assert len(meaning) == 2 and len(meaning[1]) > 10, f"{group}.{name} says nothing"


def test_order_is_default_yaml_command_line(tmp_path):
    path = write(tmp_path, "train: {steps: 7, lr: 2e-3}\nmodel: {dim_mults: [1, 2]}")
    config = load(path, ["--train.steps", "9"])
    assert (config.train.steps, config.train.lr, config.model.dim_mults) == (9, 0.002, (1, 2))
    assert config.train.batch_size == TrainConfig.batch_size


@pytest.mark.parametrize("options", [[], ["--model.dim_mults=[1,2]", "--data.cache=x", "--train.lr_decay_steps=5"]])
def test_the_resolved_configuration_reads_back(tmp_path, options):
    config = load(None, options)
    assert load(write(tmp_path, configuration.to_yaml(config))) == config


@pytest.mark.parametrize(
    "text, key",
    [
        ("train: {stepz: 5}", "stepz"), ("trian: {steps: 5}", "trian"), ("train: {steps: many}", "train.steps"),
        ("train: {steps: 1.5}", "train.steps"), ("train: {lr: fast}", "train.lr"),
        ("data: {horizontal_flip: 3}", "data.horizontal_flip"), ("model: {gelu: relu}", "model.gelu"),
        ("model: {dim_mults: 3}", "model.dim_mults"), ("runtime: {device: TPU}", "runtime.device"),
        ("train: [1", "config.yaml"), ("- 1", "config.yaml"),
    ],
)
def test_unknown_keys_and_wrong_types_are_named(tmp_path, text, key):
    with pytest.raises(UserError, match=key) as caught:
        load(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.yaml"):
        load(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    "word, key",
    [
        ("--data.image_size=9", "data.image_size is 9: it must be a multiple of 4"),
        ("--data.image_size=0", "data.image_size is 0"), ("--model.out_dim=2", "model.out_dim is 2"),
        ("--data.name=images", "data.folder is None"),
        ("--data.folder=x", "data.name=digits reads no folder"), ("--data.cache=", "data.cache is ''"),
        ("--train.steps=0", "train.steps is 0"),
        ("--train.batch_size=0", "train.batch_size is 0"), ("--train.lr=0", "train.lr"),
        ("--train.lr_min=1", "train.lr_min"), ("--train.lr_decay_steps=0", "train.lr_decay_steps is 0"),
        ("--train.adam_beta1=1", "train.adam_beta1"), ("--train.adam_eps=0", "train.adam_eps"),
        ("--train.max_grad_norm=-1", "train.max_grad_norm"), ("--train.loss_scale=0.5", "train.loss_scale"),
        ("--train.loss_scale_factor=1", "train.loss_scale_factor"), ("--train.seed=-1", "train.seed"),
        ("--diffusion.min_snr_gamma=0", "diffusion.min_snr_gamma"),
        ("--diffusion.offset_noise=-1", "diffusion.offset_noise"),
        ("--diffusion.zero_terminal_snr=true", "diffusion.zero_terminal_snr is True.*choose diffusion.objective=v"),
        ("--model.convnext_mult=0", "model.convnext_mult"), ("--diffusion.timesteps=1", "diffusion.timesteps is 1"),
    ],
)
def test_values_that_cannot_be_are_named(word, key):
    with pytest.raises(UserError, match=key):
        load(None, [word])


@pytest.mark.parametrize(
    "words, message",
    [
        (["loss_weight=min_snr", "p2_gamma=1"], "diffusion.p2_gamma is 1.0: .* diffusion.loss_weight is min_snr"),
        (["loss_weight=vlb", "loss=huber"], "diffusion.loss is 'huber': .* choose diffusion.loss=l2"),
    ],
)
def test_options_that_contradict_each_other_are_named(words, message):
    with pytest.raises(UserError, match=message):
        load(None, [f"--diffusion.{word}" for word in words])


def test_learned_variance_doubles_the_output(tmp_path):
    config = load(None, ["--diffusion.variance=learned", "--model.channels=3"])
    assert config.model.out_dim == 6
    assert load(write(tmp_path, configuration.to_yaml(config))) == config
    with pytest.raises(UserError, match="model.out_dim is 3: it must be null or 6, twice model.channels"):
        load(None, ["--diffusion.variance=learned", "--model.channels=3", "--model.out_dim=3"])


@pytest.mark.parametrize(
    "make, key",
    [
        (lambda: ModelConfig(block="transformer"), "model.block is 'transformer'"),
        (lambda: ModelConfig(gelu="relu"), "model.gelu"), (lambda: DiffusionConfig(loss="l3"), "diffusion.loss"),
        (lambda: DiffusionConfig(schedule="cubic"), "diffusion.schedule"),
        (lambda: DataConfig(name="imagenet"), "data.name"), (lambda: RuntimeConfig(device="TPU"), "runtime.device"),
    ],
)
def test_choices_are_checked_in_a_python_program_too(make, key):
    with pytest.raises(UserError, match=key):
        make()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_opens_with_its_command_and_states_only_what_differs(path):
    text = path.read_text()
    commands = ("python scripts/train.py", "bash scripts/train_distributed.sh 8")
    assert text.startswith(tuple(f"# {command} --config configs/{path.name}" for command in commands))
    config, default = load(path), Config()
    for group, options in yaml.safe_load(text).items():
        for name in options:
            assert getattr(getattr(config, group), name) != getattr(getattr(default, group), name), f"{group}.{name}"


def test_fashion_mnist_is_the_tutorials_recipe():
    config = load(Path(__file__).parents[1] / "configs" / "fashion_mnist.yaml")
    assert config.model == ModelConfig(dim=28, channels=1, dim_mults=(1, 2, 4), **configuration.TUTORIAL)
    assert (config.train.batch_size, config.diffusion.timesteps, config.data.image_size) == (16, 200, 28)
    assert config.diffusion == DiffusionConfig(schedule="linear", loss="huber", scale_betas=False)
    assert (config.train.lr, config.train.lr_min, config.train.steps) == (1e-4, 1e-7, 10 * 3750)
