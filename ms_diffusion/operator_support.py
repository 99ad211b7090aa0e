"""Which operators the compiled steps hold, and whether MindSpore documents them for a device that is not here.

The graph is the one that MindSpore prints at the end of its front end (`..._validate_....ir`): gradients are in it, and
no back end has touched it yet, so that a CPU sees what an Ascend card or a GPU would get. What remains unseen are the
back end's own rewriting, and an operator's limits beyond its device: types, groups, sizes. Where MindSpore's Python
asks for the device, the CPU's answer counts; no layer of this library does but `layers.GELU`, which is told the target.

What is documented is read from the installed MindSpore: the line "Supported Platforms" of the operator, or of the
function that its documentation refers to. An operator that only a gradient needs is MindSpore's own choice, which no
page lists: it counts as the operator whose gradient it is part of, because the graph says which one that is.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence, Union

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.ops import auto_generate

from ms_diffusion import config as configuration
from ms_diffusion import runtime, training
from ms_diffusion.config import RuntimeConfig
from ms_diffusion.layers import GELU
from ms_diffusion.train_step import make_train_step

TARGETS = ("Ascend", "GPU", "CPU")
SCALAR_FORMS = {"Muls": "mul", "ClampScalar": "clamp", "RemainderTensorScalar": "remainder", "PowTensorScalar": "pow"}
"""Operators without a page: what MindSpore makes of a documented function whose second operand is a Python number."""
STRUCTURE = {
    "Return", "MakeTuple", "TupleGetItem", "Depend", "Load", "UpdateState", "Partial", "Switch", "call", "TensorMove",
}
"""What holds a graph together, made by the compiler for every device: calls, tuples, the order of side effects."""
_BATCH = 2  # changes shapes, and no operator
# MindSpore reads these once, at its import. Native kernels are the CPU's.
_PRINTING = {
    "MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_DUMP_IR_PASSES": "validate", "MS_DIFFUSION_NATIVE": "0",
    "MS_DIFFUSION_GRAPHS": "0", "GLOG_v": "3",
}
_STATEMENT = re.compile(r"  (?:%\S+\(.*?\) = )?(?:call @|%\d+\[|(?:PrimFunc_)?(\w+)\()")


@dataclass(frozen=True)
class Node:
    """A kind of node in a graph: nodes that differ in nothing here are one."""

    name: str
    """Of the operator; "call" where another part of the graph is called."""
    gradient_of: str
    """The operator whose gradient it is part of, or empty."""
    dtypes: frozenset[str]
    """Of the tensors that it reads and returns; numbers are no tensors."""
    dynamic: bool
    """Has one of them a size that the graph does not know?"""


@dataclass(frozen=True)
class Row:
    """An operator, over all graphs."""

    name: str
    graphs: tuple[str, ...]
    """Labels of those that hold it."""
    dtypes: tuple[str, ...]
    documented: bool
    """For the target, wherever it stands."""
    entries: tuple[str, ...]
    """What says so, or would have to."""
    offences: tuple[str, ...]


def check(graphs: dict[str, str], target: str) -> list[Row]:
    """The operators of `graphs`, by name, each with what MindSpore documents for `target`.

    `graphs` maps a label to the text that MindSpore printed. A `Row` with `offences` must not go to `target`: an
    operator that is not documented there, a tensor of float64, a size that changes from call to call.
    """
    found: dict[str, dict[str, set[Node]]] = {}
    for label, text in graphs.items():
        for node in set(nodes(text)):
            found.setdefault(node.name, {}).setdefault(label, set()).add(node)
    rows = (_row(name, labels, target) for name, labels in sorted(found.items()))
    return [row for row in rows if row.offences or row.name not in STRUCTURE]


def _row(name: str, labels: dict[str, set[Node]], target: str) -> Row:
    every = frozenset().union(*labels.values())
    entries, offences = set(), []
    if name not in STRUCTURE:
        for gradient_of in sorted({node.gradient_of for node in every}):
            entry, platforms = documentation(name)
            if target not in platforms and gradient_of:
                entry, platforms = documentation(gradient_of)
                entry = f"gradient of {entry or gradient_of}"
            entries.add(entry)
            if target not in platforms:
                says = f"{entry} names only {', '.join(platforms)}" if platforms else "no page of MindSpore names it"
                offences.append(f"not documented for {target}: {says}")
    documented = not offences
    if any("Float64" in node.dtypes for node in every):
        offences.append("float64")
    if any(node.dynamic for node in every):
        offences.append("a dynamic shape")
    dtypes = sorted({dtype.lower() for node in every for dtype in node.dtypes})
    return Row(name, tuple(labels), tuple(dtypes), documented, tuple(sorted(entries - {""})), tuple(offences))


def nodes(text: str) -> list[Node]:
    """Every node of a graph as MindSpore 2.8 prints it.

    A node is a line `  %0(name) = Operator(operands)`, perhaps with tensors' values in the lines after it, then a line
    with the types of operands and results, then its scope, which tells gradients:
    `(Gradients/.../Grad_GroupNorm/...)`. Raises ValueError where that finds another number of nodes than the head of
    the text gives.
    """
    lines, found = iter(text.split("\n")), []
    for line in lines:
        statement = _STATEMENT.match(line)
        if statement is None:
            continue
        types = next((after for after in lines if after.startswith("      : ")), "")
        scope = re.search(r"Fullname with scope: \(Gradients/.*/Grad_(\w+)/", next(lines, ""))
        dtypes = frozenset(re.findall(r"Tensor\)?\[(\w+)\]", types))
        dynamic = re.search(r"[(,] ?-[12][,)]", types) is not None
        found.append(Node(statement[1] or "call", scope[1] if scope else "", dtypes, dynamic))
    if re.findall(r"Total number of cnodes: (\d+)", text) != [str(len(found))]:
        raise ValueError(f"MindSpore {ms.__version__} prints graphs in a form that is not known here")
    return found


def documentation(name: str) -> tuple[str, tuple[str, ...]]:
    """The entry of MindSpore's documentation for the operator `name`, and the platforms it names; ("", ()) for none.

    `Custom` has none: its page tells how to add an operator, and says nothing of the one that was added.
    """
    if name == "Custom":
        return "", ()
    function = SCALAR_FORMS.get(name)
    for module, attribute in [(ops, function)] if function else [(ops, name), (auto_generate, name)]:
        entry, text = _page(module, attribute)
        refers = re.search(r"Refer to :func:`mindspore\.ops\.(\w+)`", text)
        if refers and not _platforms(text):
            entry, text = _page(ops if hasattr(ops, refers[1]) else auto_generate, refers[1])
        if _platforms(text):
            return entry, _platforms(text)
    return "", ()


def _page(module: Any, attribute: str) -> tuple[str, str]:
    return f"{module.__name__}.{attribute}", getattr(getattr(module, attribute, None), "__doc__", None) or ""


def _platforms(text: str) -> tuple[str, ...]:
    line = re.search(r"Supported Platforms:\s*\n\s*(.*)", text)
    return tuple(re.findall(r"``(\w+)``", line[1])) if line else ()


def graphs_of(paths: Sequence[Union[str, Path]], target: str) -> dict[str, str]:
    """The graphs of the training step and the reverse step of each configuration file, as `target` would compile them.

    The labels are "FILE: training" and "FILE: sampling". Compiles on the CPU, in one process for each file.
    """
    for path in paths:
        configuration.load(path)  # a person's mistake is told here
    command = "import sys; from ms_diffusion import operator_support; operator_support.compile_steps(*sys.argv[1:])"
    with ThreadPoolExecutor(runtime.threads()) as pool:
        commands = [[sys.executable, "-c", command, str(Path(path).resolve()), target] for path in paths]
        made = pool.map(printed, commands)
    return {f"{path}: {label}": text for path, labels in zip(paths, made) for label, text in labels.items()}


def printed(command: Sequence[str]) -> dict[str, str]:
    """What the process `command`, given a folder as its last word, prints into it by `print_graph`, by label.

    Raises `RuntimeError` with its last words where it fails.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MS_COMPILER_CACHE")}
    environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, sys.path))
    with tempfile.TemporaryDirectory(prefix="ms_diffusion-operators-") as folder:
        environment.update(_PRINTING, MS_DEV_SAVE_GRAPHS_PATH=folder)
        result = subprocess.run(
            [*command, folder], env=environment, cwd=folder, capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr[-4000:]}")
        files = sorted(Path(folder).rglob("*_validate_*.ir"))
        return {f"{file.parent.name}{_count(file, files)}": file.read_text() for file in files}


def _count(file: Path, files: list[Path]) -> str:
    same = [other for other in files if other.parent == file.parent]
    return f" {same.index(file) + 1}" if len(same) > 1 else ""


def compile_steps(path: str, target: str, folder: str) -> None:
    """Print both steps of the configuration file `path` into `folder`; for a process that `printed` started."""
    runtime.setup(RuntimeConfig(device="CPU"))
    config = configuration.load(path)
    state, diffusion = training.build(config)
    for network in filter(None, (state.model, state.average)):
        for _, cell in network.cells_and_names():
            if isinstance(cell, GELU):
                cell.by_sigmoid = cell.by_sigmoid and target == "CPU"
    steps = {"sampling": diffusion.reverse_step(state.sampled, jit=True), "training": make_train_step(state, diffusion)}
    for name, step in steps.items():
        size = _BATCH * (config.train.accumulate if name == "training" else 1)
        images = np.zeros((size, *config.image_shape), np.float32)
        arguments = (Tensor(images), Tensor(np.zeros(size, np.int32)), Tensor(images))
        if name == "training" and config.model.num_classes:
            arguments += (Tensor(np.zeros(size, np.int32)),)
        print_graph(step, arguments, Path(folder, name))


def print_graph(step: Callable, arguments: Sequence[Tensor], folder: Path) -> None:
    """Let MindSpore print into `folder` what it compiles at the call `step(*arguments)`.

    The call may fail after that: some types, such as bfloat16, a CPU compiles and cannot run.
    """
    os.environ["MS_DEV_SAVE_GRAPHS_PATH"] = str(folder)
    try:
        step(*arguments)
    except (RuntimeError, TypeError):
        if not any(folder.rglob("*_validate_*.ir")):
            raise


def report(rows: Sequence[Row], target: str) -> str:
    """`rows` as a table, the offenders below it, and a line that sums up."""
    heads = ["operator", "training", "sampling", "types", f"documented for {target}", "by"]
    lines = [heads]
    for row in rows:
        in_training, in_sampling = (
            "yes" if any(f": {kind}" in label for label in row.graphs) else "" for kind in ("training", "sampling")
        )
        documented = "yes" if row.documented else "NO"
        lines.append([row.name, in_training, in_sampling, " ".join(row.dtypes), documented, ", ".join(row.entries)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    table = ["  ".join(word.ljust(width) for word, width in zip(line, widths)).rstrip() for line in lines]
    table += [
        f"offender: {row.name}: {offence} (in {', '.join(row.graphs)})" for row in rows for offence in row.offences
    ]
    offenders = sum(bool(row.offences) for row in rows)
    graphs = len({label for row in rows for label in row.graphs})
    where = "" if target == "CPU" else "; compiled on a CPU, run nowhere"
    table.append(f"{target}, MindSpore {ms.__version__}: {len(rows)} operators in {graphs} graphs{where}; "
                 f"offenders: {offenders or 'none'}")
    return "\n".join(table)
