"""Graphs that MindSpore prints, and what its documentation says of their operators."""

import json
import sys

import pytest

from ms_diffusion import operator_support
from ms_diffusion.operator_support import check, documentation, nodes, printed

# Each function's graph is printed under its name, with the argument (2, 3, 8, 8) unless it says otherwise.
FUNCTIONS = '''
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ms_diffusion import config, runtime
from ms_diffusion.operator_support import print_graph

runtime.setup(config.RuntimeConfig(device="CPU"))
x = Tensor(np.ones((2, 3, 8, 8), np.float32))
table64 = Tensor(np.ones(8))
convolution = nn.Conv2d(3, 4, 3, pad_mode="pad", padding=1, has_bias=True)
norm = nn.GroupNorm(2, 4)
half = nn.Conv2d(3, 4, 3, pad_mode="pad", padding=1).to_float(ms.bfloat16)


def twice(x):
    return x


custom = ops.Custom(twice, lambda x: x, lambda x: x, "pyfunc")


def plain(x):
    return ops.exp(x) * 2.5 + x


def float64(x):
    return x * table64


def cpu_only(x):
    return ops.fmax(x, x + 1)


def not_ascend(x):
    return ops.digamma(x)


def own(x):
    return custom(x)


def python(x):
    return x + Tensor(np.sum(x.asnumpy()))


def sizes(x):
    return ops.nonzero(x)


def branch(x):
    if x.sum() > 0:
        x = ops.exp(x)
    return x


def bfloat16(x):
    return half(x)


def loss(x):
    return norm(convolution(x)).sum()


gradients_of = ms.value_and_grad(loss, None, [*convolution.trainable_params(), *norm.trainable_params()])


def gradients(x):
    return gradients_of(x)


class Dynamic(nn.Cell):
    @ms.jit
    def construct(self, x):
        return ops.relu(x)


dynamic = Dynamic()
dynamic.set_inputs(Tensor(shape=[None, 3, 8, 8], dtype=ms.float32))
steps = {function.__name__: ms.jit(function) for function in
         (plain, float64, cpu_only, not_ascend, own, python, sizes, branch, bfloat16, gradients)}
for name, step in {**steps, "dynamic": dynamic}.items():
    print_graph(step, (x,), Path(sys.argv[-1], name))
'''
TINY = """
model: {dim: 8, dim_mults: [1, 2], convnext_mult: 1, gelu: tanh, attention_norm: layer, scale_values: true}
diffusion: {timesteps: 30, loss: huber}
"""
COUNTED = '''
import functools
import os
import sys
from pathlib import Path

from ms_diffusion import checkpoint, config, data, runtime, sampling, training

runtime.setup(config.RuntimeConfig(device="CPU"))
settings = config.load(None, [
    "--model.dim=8", "--model.dim_mults=[1]", "--model.convnext_mult=1", "--diffusion.timesteps=30", "--train.steps=5",
    "--train.batch_size=500", "--train.sample_every=2", "--train.sample_num=3", "--train.checkpoint_every=2",
])
dataset = data.make_dataset(settings.data, 1)
assert len(dataset) % 500, "an epoch that the batches do not divide"
folder = Path(sys.argv[-1])
checkpoint.create_run(folder / "run", settings, runtime.versions(), False)
os.environ["MS_DEV_SAVE_GRAPHS_PATH"] = str(folder / "training")
training.train(settings, dataset, folder / "run")
run = checkpoint.load_run(folder / "run")
os.environ["MS_DEV_SAVE_GRAPHS_PATH"] = str(folder / "sampling")
step = run.diffusion.reverse_step(run.model, True)
loop = functools.partial(run.diffusion.p_sample_loop, step)
images, _ = sampling.sample(loop, run.diffusion.timesteps, settings.image_shape, 5, 0, batch_size=2)
assert len(images) == 5
'''


def run_file(folder, text):
    """The graphs that a file of this text prints."""
    file = folder / "functions.py"  # MindSpore compiles only what stands in a file
    file.write_text(text)
    return printed([sys.executable, str(file)])


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    return run_file(tmp_path_factory.mktemp("graphs"), FUNCTIONS)


def offences(graphs, name, target):
    return {row.name: row.offences for row in check({name: graphs[name]}, target) if row.offences}


@pytest.mark.parametrize("target", operator_support.TARGETS)
@pytest.mark.parametrize("name", ["plain", "branch", "gradients"])
def test_documented_operators_pass(name, target, graphs):
    assert not offences(graphs, name, target)


def test_every_operator_is_listed_and_nothing_else(graphs):
    assert {row.name for row in check({"": graphs["plain"]}, "CPU")} == {"Exp", "Muls", "Add"}
    # exp stands in the branch, which is a graph of its own
    assert {"Exp", "Greater", "SumExt"} == {row.name for row in check({"": graphs["branch"]}, "CPU")}
    forward = {"Conv2D", "BiasAdd", "GroupNorm", "SumExt"}
    gradient = {"Conv2DBackpropFilter", "BiasAddGrad", "GroupNormGrad"}
    rows = {row.name: row for row in check({"": graphs["gradients"]}, "Ascend")}
    assert forward | gradient <= rows.keys()
    assert rows["GroupNormGrad"].entries == ("gradient of mindspore.ops.auto_generate.GroupNorm",)
    assert rows["Conv2D"].entries == ("mindspore.ops.Conv2D",) and rows["Conv2D"].dtypes == ("float32",)


@pytest.mark.parametrize("target", operator_support.TARGETS)
def test_float64_is_an_offence_on_every_target(target, graphs):
    assert offences(graphs, "float64", target) == {"Mul": ("float64",), "Return": ("float64",)}


@pytest.mark.parametrize("name, operator", [("dynamic", "ReLU"), ("sizes", "NonZero")])
def test_a_dynamic_shape_is_an_offence(name, operator, graphs):
    assert "a dynamic shape" in offences(graphs, name, "CPU")[operator]


def test_an_operator_documented_for_other_devices_is_an_offence(graphs):
    assert offences(graphs, "cpu_only", "CPU") == {}
    for target in ("Ascend", "GPU"):
        says = f"not documented for {target}: mindspore.ops.Fmax names only CPU"
        assert offences(graphs, "cpu_only", target) == {"Fmax": (says,)}
    assert not offences(graphs, "not_ascend", "GPU")
    assert "names only GPU, CPU" in offences(graphs, "not_ascend", "Ascend")["Digamma"][0]


@pytest.mark.parametrize("name, operator", [("own", "Custom"), ("python", "PyExecute")])
def test_what_no_page_names_is_an_offence_everywhere(name, operator, graphs):
    for target in operator_support.TARGETS:
        assert f"not documented for {target}: no page of MindSpore names it" in offences(graphs, name, target)[operator]


def test_a_type_that_the_cpu_cannot_run_is_checked_all_the_same(graphs):
    rows = {row.name: row for row in check({"": graphs["bfloat16"]}, "Ascend")}
    assert rows["Conv2D"].dtypes == ("bfloat16",) and not rows["Conv2D"].offences


def test_the_documentation_is_that_of_the_installed_mindspore():
    assert documentation("Conv2D") == ("mindspore.ops.Conv2D", ("Ascend", "GPU", "CPU"))
    assert documentation("AllReduce") == ("mindspore.ops.AllReduce", ("Ascend", "GPU", "CPU"))
    assert documentation("Exp") == ("mindspore.ops.exp", ("Ascend", "GPU", "CPU"))  # its page refers to the function's
    assert documentation("Muls")[0] == "mindspore.ops.mul"
    assert documentation("GroupNormGrad") == documentation("NoSuchOperator") == ("", ())


def test_a_graph_in_another_form_is_refused(graphs):
    text = graphs["plain"]
    assert len(nodes(text)) == 4  # and the return
    for other in (text.replace("PrimFunc_Exp(", "PrimFunc_Exp<"), text.replace("Total number of cnodes", "Nodes"), ""):
        with pytest.raises(ValueError, match="prints graphs in a form that is not known"):
            nodes(other)


def test_a_process_that_fails_tells_why(tmp_path):
    with pytest.raises(RuntimeError, match="no such thing"):
        run_file(tmp_path, "raise SystemExit('no such thing')")


@pytest.mark.parametrize("target", operator_support.TARGETS)
def test_the_command(target, run_script, tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    words = ["--target", target, "--config", tmp_path / "tiny.yaml", "--json", tmp_path / "table.json"]
    status, out, err = run_script("check_operators", *words)
    assert status == 0, out + err
    assert f"documented for {target}" in out and out.splitlines()[-1].endswith("offenders: none")
    rows = {row["name"]: row for row in json.loads((tmp_path / "table.json").read_text())}
    assert {"Conv2D", "Conv2DTranspose", "GroupNorm", "Softmax", "BatchMatMul", "Gather"} <= rows.keys()
    assert [label.split(": ")[1] for label in rows["Conv2D"]["graphs"]] == ["sampling", "training"]
    assert [label.split(": ")[1] for label in rows["Adam"]["graphs"]] == ["training"]
    # the GELU that `layers` takes there
    assert ("GeLU" in rows, "Sigmoid" in rows) == ((False, True) if target == "CPU" else (True, False))


def test_offenders_are_named_and_the_status_is_1(graphs, run_script, monkeypatch):
    monkeypatch.setattr(operator_support, "graphs_of", lambda paths, target: {
        "one.yaml: training": graphs["plain"], "one.yaml: sampling": graphs["cpu_only"],
        "two.yaml: training": graphs["float64"],
    })
    status, out, _ = run_script("check_operators", "--target", "Ascend")
    assert status == 1
    assert "offender: Fmax: not documented for Ascend" in out and "(in one.yaml: sampling)" in out
    assert "offender: Mul: float64 (in two.yaml: training)" in out
    assert out.splitlines()[-1].endswith("offenders: 3")  # and the float64 that is returned


def test_mistakes_are_one_line(run_script, tmp_path):
    for words, message in (
        (["--target=TPU"], "TPU"), ([], "target"), (["--target=CPU", "--config", tmp_path / "no.yaml"], "no.yaml"),
        (["--target=CPU", "--json", tmp_path / "a.txt"], "must end in .json"),
    ):
        status, _, err = run_script("check_operators", *words)
        assert status == 2 and message in err and err.count("\n") == 1


def test_each_step_compiles_once(tmp_path):
    """Training whose batches do not divide the data, with pictures; sampling with a remainder."""
    made = run_file(tmp_path, COUNTED)
    assert sorted(made) == ["sampling", "training 1", "training 2"]  # the second draws the pictures on the way
    adam = [any(node.name == "Adam" for node in nodes(text)) for text in made.values()]
    assert sorted(adam) == [False, False, True]
