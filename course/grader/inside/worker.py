"""The student's process: imports the one file that was handed in, calls what the grader asks for, sends arrays back.

Started by `sandbox.Process` as `python -I worker.py SETTINGS`, SETTINGS being JSON. Nothing here knows an expected
value, so nothing that a submission does to this process can earn points.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import socket
import sys
import types
from pathlib import Path
from typing import Any, Optional

_INSIDE = str(Path(__file__).parent)


class _NoLibrary(importlib.abc.MetaPathFinder):
    """The library is the solution."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Refuse `ms_diffusion` and what is in it; everything else is for the next finder."""
        if name.partition(".")[0] == "ms_diffusion":
            raise ImportError("a submission cannot import ms_diffusion: it is the solution")


def main() -> None:
    """Confine this process, start MindSpore where it will be needed, then answer until the grader hangs up."""
    sys.path[:0] = [_INSIDE]
    import confinement

    settings = json.loads(sys.argv[1])
    connection = socket.socket(fileno=settings["connection"])
    limits = settings["limits"]
    confinement.limit(limits["memory"], limits["cpu_seconds"], limits["file_size"])
    missing = confinement.confine([*settings["readable"], _INSIDE], [os.getcwd()])
    sys.path[:] = [_INSIDE, *settings["path"]]
    sys.dont_write_bytecode = True

    import messages

    if settings["mindspore"]:
        _mindspore()
    harness = load(settings["harness"], "harness") if settings["harness"] else None
    if not settings["library"]:
        sys.meta_path.insert(0, _NoLibrary())
    sys.path.remove(_INSIDE)
    messages.send(connection, {"missing": missing})

    student: Optional[types.ModuleType] = None
    while True:
        try:
            request, arrays = messages.receive(connection)
        except EOFError:
            return
        try:
            if request["function"] is None:
                student = load(settings["file"], Path(settings["file"]).stem)
                reply: tuple[dict[str, Any], list] = ({}, [])
            else:
                reply = answer(request, arrays, student, harness)
            messages.send(connection, *reply)
        except BaseException as error:  # also what ends a program: SystemExit, KeyboardInterrupt
            messages.send(connection, describe(error, settings["file"]))


def _mindspore() -> types.ModuleType:
    import mindspore as ms

    ms.set_device("CPU")
    ms.runtime.launch_blocking()  # short operators otherwise wait for ticks of 4 ms
    return ms


def answer(
    request: dict[str, Any], arrays: list, student: types.ModuleType, harness: Optional[types.ModuleType]
) -> tuple[dict[str, Any], list]:
    """Call the function that is asked for, and what it returns as a message."""
    arguments = [_decode(value, arrays, harness) for value in request["arguments"]]
    keywords = {name: _decode(value, arrays, harness) for name, value in request["keywords"].items()}
    if request["harness"]:
        return _encode(getattr(harness, request["function"])(student, *arguments, **keywords))
    return _encode(getattr(student, request["function"])(*arguments, **keywords))


def load(file: str, name: str) -> types.ModuleType:
    """Import a file."""
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _decode(value: Any, arrays: list, harness: Optional[types.ModuleType]) -> Any:
    """The argument that `sandbox.encode` wrote."""
    if isinstance(value, list):
        return tuple(_decode(item, arrays, harness) for item in value)
    if isinstance(value, dict):
        if "oracle" in value:
            arguments = [_decode(item, arrays, harness) for item in value["arguments"]]
            return getattr(harness, value["oracle"])(*arguments)
        array = arrays[value["array"]].copy()
        return _mindspore().Tensor(array) if value["tensor"] else array
    return value


def _encode(result: Any) -> tuple[dict[str, Any], list]:
    """A returned value, or a tuple or list of such, as a message."""
    arrays: list = []
    if isinstance(result, (tuple, list)):
        return {"many": [_leaf(item, arrays) for item in result]}, arrays
    return {"one": _leaf(result, arrays)}, arrays


def _leaf(value: Any, arrays: list) -> dict[str, Any]:
    import numpy as np

    ms = sys.modules.get("mindspore")
    leaf = {"kind": "other", "type": type(value).__name__[:40], "array": None}
    if ms is not None and isinstance(value, ms.Tensor):
        leaf["kind"], array = "tensor", value.asnumpy() if value.dtype != ms.bfloat16 else value.float().asnumpy()
    elif isinstance(value, np.ndarray):
        leaf["kind"], array = "array", value
    elif isinstance(value, (bool, int, float, np.number, np.bool_)):
        leaf["kind"], array = "number", np.asarray(value)
    else:
        return leaf
    if array.dtype.kind in "biuf" and array.dtype.itemsize <= 8:
        leaf["array"] = len(arrays)
        arrays.append(array)
    return leaf


def describe(error: BaseException, file: str) -> dict[str, Any]:
    """The exception, and the last line of the student's file that it came through."""
    line, step = None, error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == file:
            line = step.tb_lineno
        step = step.tb_next
    if isinstance(error, SyntaxError) and error.filename == file:
        line = error.lineno
    try:
        text = str(error.msg if isinstance(error, SyntaxError) else error)[:1000]  # msg: without file and line
    except Exception:
        text = "(its message cannot be read)"
    return {"error": type(error).__name__[:100], "text": text, "line": line}


if __name__ == "__main__":
    main()
