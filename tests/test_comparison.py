"""The comparison with PyTorch: its figures, its verdict on our network, and whether it catches an altered one."""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest
from mindspore import nn, ops
from PIL import Image

from ms_diffusion import layers, train_step
from ms_diffusion.comparison_report import TOLERANCES, Comparison, Row, measure, verdict
from ms_diffusion.config import TUTORIAL, Config, DataConfig, DiffusionConfig, ModelConfig, RuntimeConfig, TrainConfig
from ms_diffusion.data import ImageDataset
from ms_diffusion.errors import UserError
from ms_diffusion.randomness import weights_generator
from ms_diffusion.unet import Unet, build_unet, init_weights

torch = pytest.importorskip("torch", reason="the comparison needs PyTorch: pip install torch==2.13.0 (CPU build)")

from ms_diffusion import comparison  # noqa: E402
from ms_diffusion.comparison import compare, network_weights  # noqa: E402

TINY = [
    "--model.dim=4", "--model.dim_mults=[1]", "--model.convnext_mult=1", "--diffusion.schedule=cosine",
    "--train.batch_size=2", "--train.sample_num=2", "--runtime.device=CPU",
]
SHORT = ["--steps=2", "--sampling_steps=3", "--runtime.mode=pynative"]


def configuration(mode="pynative", size=6, **model):
    return Config(
        model=ModelConfig(**{"dim": 8, "dim_mults": (1, 2), "convnext_mult": 1, **model}),
        diffusion=DiffusionConfig(timesteps=30, schedule="cosine"), data=DataConfig(image_size=size),
        train=TrainConfig(steps=20, batch_size=2, lr=1e-3, sample_num=2), runtime=RuntimeConfig(mode=mode),
    )


def dataset(config):
    images = np.random.default_rng(0).integers(0, 256, (5, *config.image_shape), dtype=np.uint8)
    classes = config.model.num_classes
    return ImageDataset(images, "noise", np.arange(5, dtype=np.int32) % classes if classes else None)


def first_weights(config):
    model = build_unet(config.model)
    init_weights(model, weights_generator(0))
    return network_weights(model)


def checks(result):
    return list(dict.fromkeys(row.check for row in result.rows))


# ---- The figures ----


def test_the_figures_of_a_known_difference():
    theirs = np.array([1.0, -2.0, 3.0, 4.0])
    row = measure("loss", "x", theirs + np.array([0.1, -0.2, 0.0, 0.4]), theirs, 0.15)
    assert (row.size, row.tolerance, row.passed) == (4, 0.15, False)
    assert row.max_abs == pytest.approx(0.4) and row.mean_abs == pytest.approx(0.7 / 4)
    assert row.relative_l2 == pytest.approx(math.sqrt(0.01 + 0.04 + 0.16) / math.sqrt(30))
    ours = [1.1, -2.2, 3.0, 4.4]
    assert row.cosine == pytest.approx((1.1 + 4.4 + 9 + 17.6) / math.sqrt(30 * sum(x * x for x in ours)))
    assert row.share == 0.5 and row.used == pytest.approx(0.4 / 0.15)


@pytest.mark.parametrize("offset, passed, share", [(0.009, True, 1.0), (0.011, False, 0.0)])
def test_an_offset_on_either_side_of_the_tolerance(offset, passed, share):
    row = measure("loss", "x", np.ones((3, 5)) + offset, np.ones((3, 5)), 0.01)
    assert (row.passed, row.share) == (passed, share)
    for figure in (row.max_abs, row.mean_abs, row.relative_l2):
        assert figure == pytest.approx(offset)
    assert row.cosine == pytest.approx(1)


def test_units():
    """A unit for each number, and the root mean square instead of the largest."""
    theirs = np.array([1.0, 100.0])
    each = measure("loss", "x", theirs * 1.05, theirs, 0.1, unit=theirs)
    assert each.used == pytest.approx(0.5) and each.share == 1
    together = measure("gradients", "x", np.array([3.0, 4.1]), np.array([3.0, 4.0]), 0.02, unit=5.0, rms=True)
    assert together.used == pytest.approx(0.1 / math.sqrt(2) / (0.02 * 5)) and together.share == 1
    assert together.relative_l2 == pytest.approx(0.02)


@pytest.mark.parametrize(
    "ours, theirs, tolerance, passed",
    [
        ([0.0, 0.0], [0.0, 0.0], 0.0, True), ([1e-9, 0.0], [0.0, 0.0], 0.0, False), ([math.nan], [1.0], 1.0, False),
        ([math.inf], [1.0], 1.0, False), ([1.0, 1.0], [1.0], 1.0, False),
    ],
)
def test_edges(ours, theirs, tolerance, passed):
    row = measure("loss", "x", np.array(ours), np.array(theirs), tolerance)
    assert row.passed is passed
    if passed:
        assert (row.cosine, row.relative_l2, row.share) == (1, 0, 1)


def test_the_summary_is_the_worst_of_each_figure():
    def row(name, errors):
        return measure("gradients", name, np.ones(len(errors)) + errors, np.ones(len(errors)), 0.1)

    rows = [row("good", [0.0]), row("bad", [0.3, 0.0, 0.0])]
    (together, worst, count), = Comparison(rows).summary()
    assert (worst.name, count, together.size, together.passed) == ("bad", 2, 4, False)
    assert together.max_abs == pytest.approx(0.3) and together.mean_abs == pytest.approx(0.3 / 4)
    assert together.share == 0.75 and together.relative_l2 == pytest.approx(0.3 / math.sqrt(3))


def test_the_verdict_prefers_the_layer():
    good, table = measure("loss", "a", np.ones(1), np.ones(1), 1.0), Row("schedule tables", "betas", note="why")
    layer = measure("layer outputs", "ups.0", np.ones(1), np.zeros(1), 0.5)
    assert verdict(Comparison([good])).startswith("PASSED")
    assert "first past its tolerance is schedule tables, betas (why)" in verdict(Comparison([good, table]))
    message = verdict(Comparison([table, layer]))
    assert message == "FAILED: the first layer that broke is ups.0 (layer output: 2 times the tolerance of 0.5)"


# ---- Our network ----


@pytest.mark.parametrize("preset", [{}, TUTORIAL], ids=["baseline", "tutorial"])
@pytest.mark.parametrize("block", ["convnext", "resnet"])
def test_our_network_is_pytorchs(block, preset):
    config = configuration(block=block, **preset)
    result = compare(build_unet(config.model), first_weights(config), config, dataset(config), steps=3,
                     sampling_steps=5)
    assert checks(result) == list(TOLERANCES), "every check, in order"
    assert result.passed, verdict(result)
    used = {row.check: row.used for row, _, _ in result.summary()}
    assert max(used.values()) < 0.5, "as good as float32 allows, not just within"
    assert [row.name for row in result.rows if row.check == "sampling"] == [f"t = {t}" for t in (4, 3, 2, 1, 0)]
    assert len(result.losses[0]) == len(result.losses[1]) == 3
    assert result.samples[0].shape == result.samples[1].shape == (2, *config.image_shape)
    assert "first step moves" in result.notes[0]


@pytest.mark.parametrize("mode", ["graph", "pynative"])
def test_a_conditional_network_is_pytorchs(mode):
    config = configuration(mode, num_classes=3)
    result = compare(build_unet(config.model), first_weights(config), config, dataset(config), steps=3,
                     sampling_steps=3)
    assert result.passed, verdict(result)
    assert "label_emb" in {row.name for row in result.rows if row.check == "layer outputs"}


def test_graph_mode_without_time_and_with_groups_of_one_channel():
    """A bias before a norm of a single channel has no gradient at all: what rounding leaves of it is no error."""
    config = configuration("graph", size=7, dim=4, dim_mults=(1,), block="resnet", with_time_emb=False)
    result = compare(build_unet(config.model), first_weights(config), config, dataset(config), steps=2,
                     sampling_steps=3)
    assert result.passed, verdict(result)
    assert min(row.cosine for row in result.rows if row.check == "gradients") < 0.9, "no case of it here"


def test_a_stricter_factor_fails():
    config = configuration(dim_mults=(1,))
    result = compare(build_unet(config.model), first_weights(config), config, dataset(config), steps=1,
                     sampling_steps=2, tolerance=1e-6)
    assert not result.passed and result.first_broken.tolerance == pytest.approx(1e-11)


# ---- An altered network ----


class Rewired(Unet):
    """The network with its wires changed: skips in the wrong half, or the attention in the middle left out."""

    def __init__(self, fault, **options):
        super().__init__(**options)
        self.fault = fault

    def construct(self, x, time):
        x, t = self.init_conv(x), self.time_mlp(time)
        skips = []
        for block1, block2, attention, downsample in self.downs:
            skips.append(attention(block2(block1(x, t), t)))
            x = downsample(skips[-1])
        x = self.mid_block1(x, t)
        x = self.mid_block2(x if self.fault == "attention" else self.mid_attn(x), t)
        for block1, block2, attention, upsample in self.ups:
            halves = (skips.pop(), x) if self.fault == "skip" else (x, skips.pop())
            x = upsample(attention(block2(block1(ops.concat(halves, axis=1), t), t)))
        return self.final_conv(x)


class WrongAxis(layers.Attention):
    """Softmax over the queries."""

    def construct(self, x):
        b, _, h, w = x.shape
        q, k, v = ops.chunk(self.to_qkv(x).reshape((b, 3 * self.heads, -1, h * w)), 3, axis=1)
        attention = ops.softmax(self.matmul_at(q * self.scale, k), -2)
        return self.to_out(self.matmul_bt(v, attention).reshape((b, -1, h, w)))


class NoTime(layers.ConvNextBlock):
    """A block that computes the time embedding and forgets to add it."""

    def construct(self, x, time_emb=None):
        self.mlp(time_emb)
        return self.net(self.ds_conv(x)) + self.res_conv(x)


def put(model, path, cell):
    """Replace the layer at `path`, whose parameters then have the names that its place gives them."""
    for name, parameter in cell.parameters_and_names():
        parameter.name = f"{path}.{name}"
    *parents, last = path.split(".")
    parent = model
    for name in parents:
        parent = parent[int(name)] if name.isdigit() else getattr(parent, name)
    if last.isdigit():
        parent[int(last)] = cell
    else:
        setattr(parent, last, cell)
    return model


ALTERED = {
    "gelu": ("downs.0.1.net.2", lambda model: put(model, "downs.0.1.net.2", layers.GELU("tanh"))),
    "bias": ("ups.0.0.ds_conv", lambda model: put(
        model, "ups.0.0.ds_conv", layers.Conv2d(32, 32, 7, bias=False, group=32))),
    "padding": ("downs.1.1.net.4", lambda model: put(model, "downs.1.1.net.4", nn.Conv2d(
        16, 16, 3, pad_mode="same", dilation=2, has_bias=True))),
    "epsilon": ("mid_attn.fn.norm", lambda model: put(model, "mid_attn.fn.norm", nn.GroupNorm(1, 16, eps=1e-3))),
    # What the activations of first weights are too large, or too small, to show.
    "small epsilon": ("mid_attn.fn.norm", lambda model: put(model, "mid_attn.fn.norm", nn.GroupNorm(1, 16, eps=1e-6))),
    "hidden gelu": ("downs.0.0.mlp.0", lambda model: put(model, "downs.0.0.mlp.0", layers.GELU("tanh"))),
    "softmax": ("mid_attn.fn.fn", lambda model: put(model, "mid_attn.fn.fn", WrongAxis(16))),
    "time": ("mid_block2", lambda model: put(
        model, "mid_block2", NoTime(16, 16, time_emb_dim=32, mult=1))),
    "skip": ("ups.0.0", lambda model: Rewired("skip", **dataclasses.asdict(model.config))),
    "attention": ("mid_block2", lambda model: Rewired("attention", **dataclasses.asdict(model.config))),
}


@pytest.mark.parametrize("fault", ALTERED)
def test_an_altered_network_is_caught_and_the_layer_named(fault):
    config = configuration()
    layer, alter = ALTERED[fault]
    model = alter(build_unet(config.model))
    result = compare(model, first_weights(config), config, dataset(config), steps=1, sampling_steps=2)
    assert not result.passed
    assert result.first_broken.name == layer
    assert f"the first layer that broke is {layer} (layer" in verdict(result)
    wiring = fault in ("skip", "attention")
    assert result.first_broken.check == ("layer inputs" if wiring else "layer outputs")
    assert [row.name for row in result.rows if row.check == "weights" and not row.passed] == (
        ["ups.0.0.ds_conv.bias"] if fault == "bias" else [])


@pytest.mark.parametrize(
    "change, check",
    [
        ({"adam_eps": 1e-7}, "optimiser step"), ({"lr": 1.05e-3}, "optimiser step"),
        ({"adam_beta1": 0.8}, "loss curve"), ({"beta_end": 0.0201}, "schedule tables"),
    ],
)
def test_an_altered_training_or_process_is_caught(change, check, monkeypatch):
    config = configuration(dim_mults=(1,))
    config = dataclasses.replace(config, diffusion=DiffusionConfig(timesteps=30))
    if check == "schedule tables":
        build = comparison.build_diffusion
        monkeypatch.setattr(comparison, "build_diffusion", lambda c: build(dataclasses.replace(c, **change)))
    else:
        make = train_step.make_optimizer
        monkeypatch.setattr(train_step, "make_optimizer", lambda m, c: make(m, dataclasses.replace(c, **change)))
    result = compare(build_unet(config.model), first_weights(config), config, dataset(config), steps=3,
                     sampling_steps=30)
    assert result.first_broken.check == check and "every layer passed" in verdict(result)


def test_layers_that_only_one_network_has():
    config = configuration(dim_mults=(1,))
    model = build_unet(config.model)
    calls = comparison.record_calls(comparison.torch_twin.Unet(**dataclasses.asdict(config.model)),
                                    np.zeros((1, 1, 6, 6), np.float32), np.zeros(1, np.int32))
    calls.append(dataclasses.replace(calls[-1], path="final_conv.2"))
    *_, row = comparison.compare_layer_outputs(model, calls, 1.0)
    assert (row.name, row.note, row.passed) == ("final_conv.2", "our network has no such layer", False)
    extra = put(model, "final_conv.1", layers.Conv2d(8, 1, 1, bias=True))
    extra.more = layers.Dense(1, 1)
    result = compare(extra, first_weights(config), config, dataset(config), steps=1, sampling_steps=2)
    assert [row.name for row in result.rows if not row.passed] == ["more.weight", "more.bias"]


def test_weights_of_another_shape_are_refused():
    config = configuration(dim_mults=(1,))
    weights = {**first_weights(config), "init_conv.weight": np.zeros((1, 1, 7, 7), np.float32)}
    with pytest.raises(UserError, match=r"init_conv.weight is \(4, 1, 7, 7\) in our network"):
        compare(build_unet(config.model), weights, config, dataset(config))


# ---- The command ----


def test_the_command_writes_its_report(run_script, tmp_path):
    """In graph mode, from nothing to the files; then with trained weights in the same folder."""
    out = tmp_path / "reports" / "tiny"
    status, stdout, stderr = run_script("compare_torch", "--out", out, *TINY, "--steps=2", "--sampling_steps=3")
    assert status == 0, stdout + stderr
    assert stdout.splitlines()[-1] == "PASSED: every check is within its tolerance"
    assert "timesteps: 200" in stdout and "1797 images of digits; CPU, graph mode; first weights of seed 0" in stdout
    names = {"config.yaml", "report.md", "report.json", "loss.png", "layers.png", "samples.png"}
    assert {path.name for path in out.iterdir()} == names and [path.name for path in out.parent.iterdir()] == ["tiny"]
    for name in ("loss.png", "layers.png", "samples.png"):
        assert Image.open(out / name).width > 300
    report = json.loads((out / "report.json").read_text())
    assert report["passed"] and [line["check"] for line in report["summary"]] == list(TOLERANCES)
    assert report["about"]["mode"] == "graph" and report["about"]["torch"] == torch.__version__
    assert "compare_torch.py --out" in report["about"]["command"] and len(report["losses"]["ours"]) == 2
    text = (out / "report.md").read_text()
    for expected in ("mindspore | `2.", "`mid_attn.fn.fn.to_qkv`", "![samples](samples.png)", "graph", "Kingma and Ba"):
        assert expected in text

    before = (out / "report.json").read_bytes()
    status, _, stderr = run_script("compare_torch", "--out", out, *TINY, *SHORT)
    assert status == 2 and "is not empty" in stderr and stderr.count("\n") == 1
    assert (out / "report.json").read_bytes() == before
    run = tmp_path / "run"
    assert run_script("train", "--out", run, *TINY, "--train.steps=5", "--runtime.mode=pynative")[0] == 0
    status, _, stderr = run_script("compare_torch", "--run", run, "--out", tmp_path / "b", *SHORT, "--model.gelu=tanh")
    assert status == 2 and "model.* is another" in stderr and not (tmp_path / "b").exists()
    status, stdout, _ = run_script("compare_torch", "--run", run, "--out", out, "--overwrite", *SHORT)
    assert status == 0 and f"{run} after 5 steps" in stdout
    assert json.loads((out / "report.json").read_text())["config"]["train"]["steps"] == 5


def test_a_wrong_epsilon_in_the_library_is_exit_status_1(run_script, tmp_path, monkeypatch):
    def careless(groups, dim):
        return nn.GroupNorm(groups, dim, eps=1e-3)

    monkeypatch.setattr(layers, "GroupNorm", careless)
    status, stdout, _ = run_script("compare_torch", "--out", tmp_path / "out", *TINY, *SHORT)
    assert status == 1
    assert stdout.splitlines()[-1].startswith("FAILED: the first layer that broke is downs.0.0.net.0 (layer output: ")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert not report["passed"] and report["first_broken"]["name"] == "downs.0.0.net.0"


def test_without_pytorch(run_script, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    status, _, stderr = run_script("compare_torch", "--out", tmp_path / "out", *TINY, *SHORT)
    assert status == 2 and "pip install torch==2.13.0" in stderr and stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words, message",
    [
        (["--steps=30", "--train.steps=20"], "--steps is 30, more than train.steps, 20"), (["--steps=0"], "steps"),
        (["--sampling_steps=20", "--diffusion.schedule=linear"], "--sampling_steps is 20: diffusion.timesteps is 20"),
        (["--tolerance=0"], "tolerance"), (["--run={tmp}"], "no run folder"), (["--model.dim=7"], "model.dim is 7"),
        (["--run={tmp}", "--config={tmp}/a.yaml"], "leave --config out"), (["--stepz=3"], "--stepz=3"),
        (["--out={tmp}/a.yaml/out"], "cannot write the folder"), (["--out={tmp}", "--overwrite"], "no report.json"),
        (["--out={tmp}/a.yaml"], "is not empty"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(words, message, run_script, tmp_path):
    (tmp_path / "a.yaml").write_text("train: {batch_size: 2}\n")
    words = [word.format(tmp=tmp_path) for word in words]
    status, _, stderr = run_script("compare_torch", "--out", tmp_path / "out", *TINY, *words)
    assert status == 2 and message in stderr.splitlines()[-1], stderr
    assert stderr.startswith("error: ") and stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]


def test_network_weights_are_copies():
    model = build_unet(ModelConfig(dim=8, dim_mults=(1,)))
    init_weights(model, weights_generator(0))
    weights = network_weights(model)
    weights["init_conv.bias"] += 1
    assert not np.array_equal(model.init_conv.bias.asnumpy(), weights["init_conv.bias"])
