"""The checks of the course's exercises: they know right from wrong, and what is wrong.

The solutions, plain and the library's, are in tests/solutions, with the typical mistakes: a piece of the plain
solution, and what stands in its place. They are asked here, in the tests' own process: no sandbox, no wait.
"""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from course.grader import grade, sandbox
from course.grader.inside import worker

ROOT = Path(__file__).parents[1]
SOLUTIONS = Path(__file__).parent / "solutions"
EXERCISES = grade.exercises()
sys.path.append(str(sandbox.INSIDE))  # where the harnesses find what they share
POINTS = {1: 8, 2: 8, 3: 6, 4: 8, 5: 8, 6: 10, 7: 10, 8: 6, 9: 10, 10: 8, 11: 6, 12: 6, 13: 6}


class Here:
    """`sandbox.Process` without the sandbox and without a process."""

    missing = ()

    def __init__(self, file, number):
        harness = sandbox.HARNESSES / f"ex{number:02d}.py"
        self.file = str(file)
        self.harness = worker.load(str(harness), "harness") if harness.exists() else None

    def start(self):
        pass

    def load(self, seconds):
        self.module = worker.load(self.file, "handed_in")

    def ask(self, call, seconds):
        try:
            return sandbox.reply(*worker.answer(*sandbox.request(call), self.module, self.harness))
        except Exception as error:
            return sandbox.reply(worker.describe(error, self.file), [])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def rows(file, number, seed, part=None):
    parts = EXERCISES[number].parts(np.random.default_rng([seed, number]))
    parts = [one for one in parts if part in (None, one.number)]
    with grade.Session(lambda: Here(file, number), grade.LIMITS) as session:
        return grade.rows(session, parts)


def mistakes(number):
    spec = importlib.util.spec_from_file_location("mistakes", SOLUTIONS / "mistakes" / f"ex{number:02d}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MISTAKES


def every_mistake():
    return [(number, *mistake) for number in EXERCISES for mistake in mistakes(number)]


@pytest.mark.parametrize("number", EXERCISES)
@pytest.mark.parametrize("kind", ["plain", "library"])
def test_solutions_get_every_point(kind, number):
    file = SOLUTIONS / kind / EXERCISES[number].FILE
    for seed in range(3):
        assert [row.help for row in rows(file, number, seed) if row.help] == []


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("number, part, piece, instead, hint", every_mistake())
def test_typical_mistakes_are_named(number, part, piece, instead, hint, tmp_path):
    source = (SOLUTIONS / "plain" / EXERCISES[number].FILE).read_text()
    assert piece in source
    file = tmp_path / EXERCISES[number].FILE
    file.write_text(source.replace(piece, instead))
    (row,) = rows(file, number, seed=5, part=part)
    assert row.points == 0 and hint in row.help.en


@pytest.mark.parametrize("number", EXERCISES)
def test_three_mistakes_of_each_exercise(number):
    assert len({hint for *_, hint in mistakes(number)}) >= 3


@pytest.mark.parametrize("number", EXERCISES)
def test_inputs_show_every_mistake_whatever_the_seed(number):
    for seed in range(60):  # `Check` refuses a mistake that is right
        parts = EXERCISES[number].parts(np.random.default_rng([seed, number]))
    assert sum(part.points for part in parts) == POINTS[number]
    assert [part.number for part in parts] == [f"{number}.{k + 1}" for k in range(len(parts))]


@pytest.mark.parametrize("number", EXERCISES)
def test_inputs_differ_between_seeds(number):
    """An answer that was right for one seed is wrong for another."""
    first, second = (EXERCISES[number].parts(np.random.default_rng([seed, number])) for seed in (0, 1))
    for part, other in zip(first, second):
        assert not all(
            grade.agrees(check.expected, another.expected, check.allowed)
            for check, another in zip(part.checks, other.checks)
        )


@pytest.mark.parametrize("number", EXERCISES)
def test_stubs_get_nothing(number):
    for row in rows(ROOT / "course" / "exercises" / EXERCISES[number].FILE, number, seed=0):
        assert row.points == 0 and row.help.en == "not written yet"


def stubs(number):
    """(name, whole docstring, the text of NotImplementedError) of each function to complete."""
    tree = ast.parse((ROOT / "course" / "exercises" / EXERCISES[number].FILE).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and isinstance(node.body[-1], ast.Raise):
            yield node.name, ast.get_docstring(node), node.body[-1].exc.args[0].value


@pytest.mark.parametrize("number", EXERCISES)
def test_stubs_speak_both_languages(number):
    numbers, functions = set(), set()
    for name, docstring, text in stubs(number):
        match = re.fullmatch(r"Exercise (\d+\.\d+) / 练习 (\d+\.\d+): ([\w.]+)", text)
        assert match and match[1] == match[2] and match[3].split(".")[-1] == name
        assert name == "__init__" or re.search("[\u4e00-\u9fff]", docstring)
        numbers.add(match[1])
        functions.add(match[3].partition(".")[0])
    parts = EXERCISES[number].parts(np.random.default_rng(0))
    assert numbers <= {part.number for part in parts}
    assert functions == {re.match(r"\w+", part.title)[0] for part in parts}


def test_the_list_of_exercises_is_the_code():
    text = (ROOT / "course" / "exercises" / "README.md").read_text(encoding="utf-8")
    for number, module in EXERCISES.items():
        assert re.search(rf"^\| {number} \| `{module.FILE}` \| .* / .* \| {POINTS[number]} \|$", text, flags=re.M)
