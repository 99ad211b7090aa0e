"""The floors of the house: which module may import which. A new arrow is drawn here first, and points down."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ms_diffusion"
ARROWS = {
    # floor 0: no MindSpore but in runtime
    "errors": set(),
    "config": {"errors"},
    "schedules": {"config", "errors"},
    "conversions": set(),
    "randomness": set(),
    "machine": set(),
    "gpu_libraries": set(),
    "runtime": {"config", "errors", "gpu_libraries", "machine"},
    "records": set(),
    "logs": {"errors", "records"},
    "metrics": {"errors", "records"},
    "data": {"config", "errors", "logs"},
    "caches": set(),
    "graph_cache": {"caches"},
    "native_build": {"caches"},
    "batches": {"config", "data", "randomness"},
    "interrupt": set(),
    "workloads": {"config", "errors"},
    "samplers": {"errors", "schedules"},
    "sampling": {"randomness"},
    "editing": {"errors", "samplers", "schedules"},
    # floor 1
    "distributed": {"errors", "runtime"},
    "native_check": set(),
    "native": {"native_build", "native_check", "runtime"},
    "profiling": {"logs", "native", "runtime"},
    "layers": {"config", "errors", "native", "runtime"},
    "graphs": {"graph_cache", "runtime"},
    "diffusion": {"config", "conversions", "errors", "graphs", "native", "samplers", "schedules"},
    "guidance": {"errors"},
    "stream": {"data", "errors", "runtime"},
    "visualize": {"errors"},
    "comparison_report": {"config", "data", "errors", "visualize"},
    # floor 2
    "unet": {"config", "layers"},
    "likelihood": {"conversions", "diffusion", "graphs", "randomness", "schedules"},
    # floor 3
    "checkpoint": {"config", "diffusion", "errors", "logs", "unet"},
    "classifier": {"checkpoint", "config", "diffusion", "errors", "guidance", "layers"},
    "sampling_command": {
        "checkpoint", "classifier", "config", "graphs", "guidance", "native", "runtime", "samplers", "schedules",
    },
    "torch_bridge": {"config", "errors", "unet"},
    "torch_twin": {"config", "errors"},
    "weight_files": {"checkpoint", "config", "errors", "torch_bridge", "unet"},
    # floor 4
    "evaluation": set(),
    "train_step": {"config", "diffusion", "graphs", "native"},
    "classifier_training": {
        "batches", "checkpoint", "classifier", "config", "data", "diffusion", "layers", "randomness", "runtime",
        "train_step", "unet",
    },
    "training": {
        "batches", "checkpoint", "config", "data", "diffusion", "distributed", "errors", "guidance", "interrupt",
        "layers", "logs", "metrics", "profiling", "randomness", "runtime", "sampling", "stream", "train_step", "unet",
        "visualize",
    },
    "comparison": {
        "batches", "comparison_report", "config", "data", "diffusion", "errors", "machine", "randomness", "runtime",
        "torch_bridge", "torch_twin", "train_step",
    },
    "contestants": {
        "config", "diffusion", "errors", "layers", "machine", "native_build", "randomness", "runtime", "torch_twin",
        "train_step", "unet", "workloads",
    },
    "operator_support": {"config", "layers", "runtime", "train_step", "training"},
    # floor 5
    "benchmark": {"contestants", "errors", "machine", "workloads"},
    "__init__": {"checkpoint", "config", "diffusion", "errors", "runtime", "unet", "weight_files"},
}
WITHOUT_MINDSPORE = {
    "errors", "config", "schedules", "randomness", "data", "visualize", "comparison_report", "evaluation", "torch_twin",
    "caches", "graph_cache", "native_build", "machine", "interrupt", "workloads", "benchmark",
    "batches", "records", "logs", "metrics", "gpu_libraries", "samplers", "sampling", "editing",
    "conversions",
}
WITH_TORCH = {"torch_twin", "comparison", "contestants"}
WITH_TORCH_INSIDE_A_FUNCTION = {"weight_files"}


def imported(path):
    """Names of modules that the file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "ms_diffusion":
            yield from (f"ms_diffusion.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative imports hide an arrow"
            yield node.module


def test_every_module_stands_in_the_table():
    assert {path.stem for path in PACKAGE.glob("*.py")} == ARROWS.keys()


@pytest.mark.parametrize("name", ARROWS)
def test_arrows(name):
    modules = set(imported(PACKAGE / f"{name}.py"))
    arrows = {module.split(".")[1] for module in modules if module.startswith("ms_diffusion.")}
    assert arrows == ARROWS[name]
    if name in WITHOUT_MINDSPORE:
        assert not {module for module in modules if module.split(".")[0] == "mindspore"}
    if name not in WITH_TORCH | WITH_TORCH_INSIDE_A_FUNCTION:
        assert "torch" not in {module.split(".")[0] for module in modules}


@pytest.mark.parametrize("name", sorted(WITH_TORCH_INSIDE_A_FUNCTION))
def test_torch_is_imported_only_where_it_is_used(name):
    top = ast.parse((PACKAGE / f"{name}.py").read_text()).body
    names = [alias.name for node in top if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in top if isinstance(node, ast.ImportFrom)]
    assert "mindspore" in names and "torch" not in names


def test_arrows_point_down():
    order = list(ARROWS)
    for name, targets in ARROWS.items():
        assert all(order.index(target) < order.index(name) for target in targets), name


def test_only_runtime_sets_mindspores_state():
    setters = ("set_context", "set_device", "set_seed", "set_deterministic", "launch_blocking", "communication.init")
    for path in PACKAGE.glob("*.py"):
        if path.stem != "runtime":
            source = path.read_text()
            assert not [setter for setter in setters if setter in source], path.name


def test_the_course_stands_outside():
    """The library does not know the course, only one script does; and nothing of the grader is the student's."""
    for path in [*PACKAGE.glob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        imports_course = any(module.split(".")[0] == "course" for module in imported(path))
        assert imports_course == (path.name == "grade.py"), path.name
    for path in (ROOT / "course" / "exercises").glob("*.py"):
        roots = {module.split(".")[0] for module in imported(path)}
        assert roots <= {"mindspore", "numpy", "typing", "math"}, path.name


def test_the_solution_stays_out_of_the_students_process():
    for path in (ROOT / "course" / "grader" / "inside").rglob("*.py"):
        assert not {"course", "ms_diffusion"} & {module.split(".")[0] for module in imported(path)}, path.name
