"""`ms.jit` with a memory: a script's second start takes its compiled graphs from the disk.

MindSpore's own compile cache looks at neither options nor our sources, takes graphs by their order in the process, and
cuts a function's Parameters off. Here it only writes and reads one graph at a time; which one, our own key decides,
over everything that a graph follows from (`graph_cache`). All that is private to MindSpore 2.8.0 stands in this file.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Sequence

import mindspore as ms
from mindspore import Parameter, Tensor

from ms_diffusion import graph_cache, runtime

# By `keep`: "store", the folder; "parts" of every key; "scratch", where MindSpore writes and looks for a graph; "calls"
# of MindSpore's compiler with that; "names" of the functions that are kept.
_GRAPHS: dict[str, Any] = {}


def keep(configuration: str, native_library: str) -> None:
    """From now on keep on the disk what `compiled` compiles, and take it from there the next time.

    For a script, after `runtime.setup`: it builds everything from the resolved `configuration` and its own sources,
    and changes nothing by hand. `native_library` is `native.library()`. Does nothing, so that all is compiled as ever,
    under MS_DIFFUSION_GRAPHS=0, on another device than a CPU, with another MindSpore than 2.8.0, where several ranks
    train together, and where somebody else uses MindSpore's own compile cache.
    """
    _GRAPHS.clear()
    store, program = graph_cache.folder(), graph_cache.program()
    foreign = [name for name in os.environ if name.startswith("MS_COMPILER_CACHE")]
    suitable = runtime.device() == "CPU" and runtime.ranks() == 1 and ms.__version__ == "2.8.0"
    if store is None or program is None or foreign or not suitable:
        return
    commit = Path(ms.__file__).with_name(".commit_id")
    settings = {name: value for name, value in os.environ.items() if name.startswith(("MS_", "OMP_"))}
    threads = [len(os.sched_getaffinity(0)), ms.get_context("runtime_num_threads")]
    try:
        mindspore = [ms.__file__, commit.read_text()]
        scratch = tempfile.TemporaryDirectory(prefix="ms_diffusion-graphs-")
    except OSError:
        return
    python = [sys.version, str(sys.flags)]
    parts = [program, configuration, native_library, runtime.versions(), mindspore, python, settings, threads]
    _GRAPHS.update(store=store, parts=parts, scratch=scratch, calls=0, names=set())


def compiled(function: Callable, name: str, parameters: Iterable[Parameter]) -> Callable:
    """`ms.jit(function)`, from the disk where `keep` has it; `parameters` are all that it reads or changes.

    Of several functions of one `name` only the first is kept.
    """
    step = ms.jit(function, jit_level=runtime.jit_level())
    if not _GRAPHS or name in _GRAPHS["names"]:
        return step
    _GRAPHS["names"].add(name)
    parameters, seen = list(parameters), set()

    def call(*arguments: Tensor) -> Any:
        shapes = tuple((argument.shape, str(argument.dtype)) for argument in arguments)
        if shapes in seen or not _GRAPHS:
            return step(*arguments)
        seen.add(shapes)
        return _first_call(step, arguments, [name, shapes], parameters)

    return call


def _first_call(step: Callable, arguments: Sequence[Tensor], label: list[Any], parameters: list[Parameter]) -> Any:
    from mindspore._c_expression import JitExecutor_
    from mindspore.common.api import ms_compile_cache

    named = {parameter.name: parameter for parameter in parameters}
    if len(named) != len({id(parameter) for parameter in parameters}):
        return step(*arguments)  # MindSpore ties Parameters to a graph by their names
    signature = [(key, value.shape, str(value.dtype), value.requires_grad) for key, value in sorted(named.items())]
    store, key = _GRAPHS["store"], graph_cache.key([*_GRAPHS["parts"], label, signature])
    known = graph_cache.read(store, key)
    # MindSpore names the files by its own count. They stand alone, so a wrong count here finds no graph, never another.
    folder = Path(_GRAPHS["scratch"].name, "rank_0", "graph_cache")
    graph, dependencies = folder / f"compile_cache_{_GRAPHS['calls']}.mindir", folder / "compile_dependency.hash"
    _GRAPHS["calls"] += 1
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(mode=0o700, parents=True)
        dependencies.touch()
        if known:
            graph.write_bytes(known)
    except OSError:
        return step(*arguments)

    phases = set(ms_compile_cache)
    executor = JitExecutor_.get_instance()
    executor.set_weights_values(named)
    try:
        with _compile_cache(_GRAPHS["scratch"].name):
            outputs = step(*arguments)
    except RuntimeError:
        graph_cache.remove(store, key)
        raise
    finally:
        executor.set_weights_values({})
    made = _made(folder, [graph, dependencies])
    if made and made != known:
        # Parameters other than these would, once the graph is read back, be cut off, or taken for these.
        used = [item for phase in ms_compile_cache - phases for item in executor.get_params(phase).items()]
        own = used and all(parameter is named.get(name) for name, parameter in used)
        if own and graph_cache.program() == _GRAPHS["parts"][0]:
            graph_cache.write(store, key, made)
    return outputs


def _made(folder: Path, files: list[Path]) -> bytes:
    """The first of `files`, which MindSpore read or wrote; empty where it did not leave just these in `folder`."""
    try:
        return files[0].read_bytes() if sorted(folder.iterdir()) == sorted(files) else b""
    except OSError:
        return b""


@contextmanager
def _compile_cache(folder: str) -> Iterator[None]:
    """MindSpore's compile cache in `folder`, without its questions: the key answers them."""
    settings = {
        "MS_COMPILER_CACHE_ENABLE": "1", "MS_COMPILER_CACHE_PATH": folder, "MS_DEV_FORCE_USE_COMPILE_CACHE": "1",
    }
    quiet = not any(name in os.environ for name in ("GLOG_v", "MS_SUBMODULE_LOG_v"))
    if quiet:
        settings["MS_SUBMODULE_LOG_v"] = "{PIPELINE:3}"  # errors: it warns of each graph that it reads or misses
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    _read_log_levels()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        _read_log_levels()


def _read_log_levels() -> None:
    """MindSpore reads MS_SUBMODULE_LOG_v at its import; let it do so again. Where it cannot, its warnings are seen."""
    with suppress(OSError, AttributeError):
        core = ctypes.CDLL(str(Path(ms.__file__).parent / "lib" / "libmindspore_core.so"))
        core._ZN9mindspore22InitSubModulesLogLevelEv()
