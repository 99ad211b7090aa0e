"""A graph from the disk must be the one that would be compiled now, or there must be none."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ms_diffusion import checkpoint, graph_cache, graphs, native, runtime

ROOT = Path(__file__).parents[1]
TINY = [
    "--model.dim=4", "--model.dim_mults=[1]", "--model.convnext_mult=1", "--diffusion.timesteps=30",
    "--train.batch_size=4", "--train.log_every=1", "--train.steps=4", "--train.checkpoint_every=2",
    "--train.sample_every=2", "--train.sample_num=2", "--runtime.device=CPU",
]
KEPT = """
import sys
import time

began = time.time()
import numpy as np
from mindspore import Parameter, Tensor, ops
from ms_diffusion import graph_cache, graphs, runtime
from ms_diffusion.config import RuntimeConfig

assert -0.02 < began - graph_cache._began() < 5
runtime.setup(RuntimeConfig(device="CPU"))
graphs.keep(sys.argv[2], "")
a, b, secret = (Parameter(Tensor(np.float32(value)), name=name) for value, name in ((3, "a"), (5, "b"), (7, "secret")))
twin = Parameter(Tensor(np.float32(9)), name="a")
factor = float(sys.argv[2])

def add(x):
    ops.assign(a, a + x)
    return a * factor

def subtract(x):
    return (b - x) * factor

def unnamed(x):
    return secret * x

def mistaken(x):
    return twin * x

functions = {
    "add": graphs.compiled(add, "add", [a, b]), "subtract": graphs.compiled(subtract, "subtract", [a, b]),
    "unnamed": graphs.compiled(unnamed, "unnamed", [a]), "mistaken": graphs.compiled(mistaken, "mistaken", [a]),
    "again": graphs.compiled(subtract, "add", [a, b]),
}
for name in sys.argv[1].split(","):
    print(name, functions[name](Tensor(np.float32(1))), functions[name](Tensor(np.float32(1))), a.asnumpy())
"""


def environment(cache, **variables):
    names = ("MS_DIFFUSION_GRAPHS", "MS_DIFFUSION_CACHE")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    return {**clean, "MS_DIFFUSION_CACHE": str(cache), "PYTHONPATH": str(ROOT), **variables}


def python(*words, **variables):
    result = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, env=environment(**variables)
    )
    assert result.returncode == 0, result.stderr
    assert "PIPELINE(" not in result.stderr, "MindSpore's warnings of its compile cache"
    return result.stdout


def write(path, text):
    path.write_text(text)
    time.sleep(0.05)  # else it might have changed after the start of the process that follows: it starts in ticks


def entries(cache):
    """What tells a graph that was read from one that was written: its inode."""
    return {path.name: path.stat().st_ino for path in (cache / "graphs").glob("*")}


def test_a_run_from_the_disk_is_the_same_run(tmp_path):
    """Losses, pictures, weights, moments and scale are equal bit for bit: compiled, kept, read, and resumed."""
    cache, script = tmp_path / "cache", ROOT / "scripts" / "train.py"
    cache.mkdir()
    if native.library():
        (cache / "native").symlink_to(Path(native.library()).parent)
    python(script, "--out", tmp_path / "plain", *TINY, cache=cache, MS_DIFFUSION_GRAPHS="0")
    assert not (cache / "graphs").exists(), "it was switched off"
    python(script, "--out", tmp_path / "kept", *TINY, cache=cache)
    kept = entries(cache)
    assert len(kept) == 2, "the reverse step and the training step"
    python(script, "--out", tmp_path / "read", *TINY, cache=cache)
    shutil.copytree(tmp_path / "plain", tmp_path / "resumed")
    (tmp_path / "resumed" / "checkpoints" / "step_00000004.safetensors").unlink()
    for path in (cache / "graphs").glob("*"):
        os.utime(path, (1, 1))
    python(script, "--resume", tmp_path / "resumed", cache=cache)
    assert entries(cache) == kept, "they were read, not written"
    assert all(path.stat().st_mtime > 1 for path in (cache / "graphs").glob("*")), "they were read"
    expected = contents(tmp_path / "plain")
    assert len(expected) > 100
    for name in ("kept", "read", "resumed"):
        assert contents(tmp_path / name) == expected, name


def contents(folder):
    """Every number of a run but its times."""
    found = {path.name: path.read_bytes() for path in (folder / "samples").iterdir()}
    for path in (folder / "checkpoints").iterdir():
        found |= {(path.name, name): tensor.tobytes() for name, tensor in checkpoint.read_checkpoint(path)[1].items()}
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        for varying in ("seconds_per_step", "images_per_second", "memory_mb"):
            del line[varying]
        found[line["step"]] = line
    return found


def test_each_guidance_has_a_graph_of_its_own(tmp_path):
    """Weights of guidance, by the network or by a classifier, in one cache: the images are those made without it."""
    cache, scripts, npz = tmp_path / "cache", ROOT / "scripts", tmp_path / "samples.npz"
    cache.mkdir()
    if native.library():
        (cache / "native").symlink_to(Path(native.library()).parent)
    for script in ("train", "train_classifier"):
        words = [word for word in TINY if "sample" not in word and "checkpoint" not in word]
        python(scripts / f"{script}.py", "--out", tmp_path / script, *words, "--model.num_classes=10", cache=cache)
    before, found = entries(cache), {}
    words = ["--run", tmp_path / "train", "--label=1,2", "--num=2", "--sampler=ddim", "--steps=3"]

    def images(guidance, *others, **variables):
        known = set(entries(cache))
        outputs = ["--out", tmp_path / "a.png", "--npz", npz]
        python(scripts / "sample.py", *words, *guidance, *outputs, cache=cache, **variables)
        return np.load(npz)["samples"], len(set(entries(cache)) - known)

    for more in ([], ["--classifier", tmp_path / "train_classifier"]):
        for weight in (1, 3):
            guidance = [f"--guidance={weight}", *more]
            expected, made = images(guidance, MS_DIFFUSION_GRAPHS="0")
            assert made == 0
            kept, made = images(guidance)
            assert made == 1 and np.array_equal(kept, expected)
            assert not [other for other in found.values() if np.array_equal(other, expected)], "the weight matters"
            found[weight, len(more)] = expected
    again, made = images(["--guidance=1"])
    assert made == 0 and np.array_equal(again, found[1, 0])
    assert len(entries(cache)) == len(before) + 4


def test_each_graph_finds_its_own_parameters_and_options(tmp_path):
    script, cache = tmp_path / "script.py", tmp_path / "cache"
    write(script, KEPT)
    first = python(script, "add,subtract,unnamed,mistaken,again", 2, cache=cache)
    assert first.splitlines() == [
        "add 8.0 10.0 5.0", "subtract 8.0 8.0 5.0", "unnamed 7.0 7.0 5.0", "mistaken 9.0 9.0 5.0", "again 8.0 8.0 5.0",
    ]
    kept = entries(cache)
    assert len(kept) == 2, "not those with a Parameter that was not named, nor the second of a name"

    swapped = python(script, "subtract,again,mistaken,unnamed,add", 2, cache=cache)
    expected = [line if line.startswith("add") else re.sub("5.0$", "3.0", line) for line in first.splitlines()]
    assert sorted(swapped.splitlines()) == sorted(expected), "a is 3 until it is added to"
    assert entries(cache) == kept, "the order in the process does not matter"

    damaged, other = sorted((cache / "graphs").iterdir())
    content = damaged.read_bytes()
    damaged.write_bytes(other.read_bytes())  # whole, but the graph of another function
    other.write_bytes(other.read_bytes()[:-1])
    assert python(script, "add,subtract,unnamed,mistaken,again", 2, cache=cache) == first
    assert entries(cache).keys() == kept.keys() and all(entries(cache)[name] != kept[name] for name in kept)
    assert len(damaged.read_bytes()) == len(content)

    write(script, KEPT.replace("(b - x)", "(b + x)"))
    changed = python(script, "subtract,add", 3, cache=cache)
    assert changed.splitlines() == ["subtract 18.0 18.0 3.0", "add 12.0 15.0 5.0"]
    assert len(entries(cache)) == 4


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.delenv("MS_DIFFUSION_GRAPHS")
    monkeypatch.setenv("MS_DIFFUSION_CACHE", str(tmp_path))
    monkeypatch.setattr(graphs, "_GRAPHS", {})
    monkeypatch.setattr(sys.modules["__main__"], "__file__", __file__, raising=False)  # a pytest worker has none
    monkeypatch.setattr(graph_cache, "_began", lambda: time.time() + 1)  # who edits while the tests run is not punished
    return tmp_path / "graphs"


def parts(configuration="a: 1", library=""):
    graphs._GRAPHS.clear()
    graphs.keep(configuration, library)
    return graph_cache.key(graphs._GRAPHS["parts"]) if graphs._GRAPHS else None


def test_the_key_changes_with_all_that_a_graph_follows_from(store, monkeypatch, tmp_path):
    first = parts()
    assert first is not None and parts() == first
    assert parts("a: 2") != first and parts(library="/kernels-1.so") != first
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    second = parts()
    assert second != first
    monkeypatch.setattr(sys, "version", sys.version.replace("(", "(another ", 1))
    third = parts()
    assert third != second

    package = tmp_path / "package"
    shutil.copytree(graph_cache.PACKAGE, package)
    monkeypatch.setattr(graph_cache, "PACKAGE", package)
    keys = [parts()]
    for name in ("layers.py", "kernels/new.h", "kernels/new.cpp"):
        with open(package / name, "a") as file:
            file.write("// changed\n")
        keys.append(parts())
    assert None not in keys and len({third, *keys}) == 5


@pytest.mark.parametrize("name, value", [("MS_DIFFUSION_GRAPHS", "0"), ("MS_COMPILER_CACHE_ENABLE", "1")])
def test_it_is_off(name, value, store, monkeypatch):
    monkeypatch.setenv(name, value)
    assert parts() is None and not store.exists()


def test_it_is_off_where_it_was_never_tried(store, monkeypatch):
    assert parts() is not None
    with monkeypatch.context() as other:
        other.setattr(graphs.ms, "__version__", "2.8.1")
        assert parts() is None
    monkeypatch.setitem(runtime._SETUP, "device", "Ascend")
    assert parts() is None


def test_sources_that_changed_after_the_start_are_not_trusted(store, monkeypatch):
    assert parts() is not None
    monkeypatch.setattr(graph_cache, "_began", lambda: (ROOT / "ms_diffusion" / "layers.py").stat().st_ctime)
    assert parts() is None
    monkeypatch.delattr(sys.modules["__main__"], "__file__")
    assert graph_cache.program() is None, "a console has no script"


def test_an_entry_is_what_was_written_or_nothing(tmp_path):
    store = tmp_path / "graphs"
    assert graph_cache.read(store, "k") == b""
    graph_cache.write(store, "k", b"one\ngraph")
    assert graph_cache.read(store, "k") == b"one\ngraph"
    assert [path.name for path in store.iterdir()] == ["graph-k"]
    whole = (store / "graph-k").read_bytes()
    for damaged in (whole[:-1], whole[1:], b"", b"\n", whole.replace(b"one", b"two")):
        (store / "graph-k").write_bytes(damaged)
        assert graph_cache.read(store, "k") == b"", damaged
    (store / "graph-j").write_bytes(whole)
    assert graph_cache.read(store, "j") == b"", "the entry of another key"
    graph_cache.write(store, "k", b"again")
    assert graph_cache.read(store, "k") == b"again"
    graph_cache.remove(store, "k")
    graph_cache.remove(store, "k")
    assert graph_cache.read(store, "k") == b""


def test_the_graphs_used_last_are_kept(tmp_path):
    now = time.time()
    (tmp_path / "writing-killed").touch()
    (tmp_path / "somebody's").touch()
    for number in range(graph_cache.KEPT):
        graph_cache.write(tmp_path, str(number), b"graph")
        os.utime(tmp_path / f"graph-{number}", (now - 9999 + number,) * 2)
    assert graph_cache.read(tmp_path, "0") == b"graph", "reading makes it young"
    os.utime(tmp_path / "writing-killed", (1, 1))
    (tmp_path / "writing-now").touch()
    graph_cache.write(tmp_path, "new", b"graph")
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == graph_cache.KEPT + 2 and {"somebody's", "writing-now"} <= names
    assert {"graph-0", "graph-new"} <= names and not {"graph-1", "writing-killed"} & names


def test_a_folder_that_cannot_be_written_is_left_alone(tmp_path):
    (tmp_path / "file").touch()
    graph_cache.write(tmp_path / "file" / "graphs", "k", b"graph")
    assert graph_cache.read(tmp_path / "file" / "graphs", "k") == b""
