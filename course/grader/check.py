"""What a checks module is made of.

How to write the checks of exercise 4, `course/grader/checks/ex04.py`. They run in the grader's process, which never
runs a student's code. The module has

  FILE = "ex04_posterior.py"                       # the stub's name in course/exercises/
  TITLE = Both("Posterior mean and variance", "后验均值与方差")

  def parts(rng: np.random.Generator) -> list[Part]:

A `Part` is a row of the table, with its points given when ALL its checks pass, and nothing else. Draw every input
from `rng`, so that no answer can be written down beforehand: lengths, shapes and tables too, where it matters. Let B,
C, H and W all differ, so that a wrong axis shows.

  x_start, x_t = (rng.normal(size=(3, 2, 4, 5)).astype(np.float32) for _ in range(2))
  t = np.array([0, 7, 19], np.int32)
  Part("4.1", "q_posterior_mean", 4, [
      Check(
          Call("q_posterior_mean", AsTensor(x_start), AsTensor(x_t), AsTensor(t), betas),
          expected=mean,                                  # from the closed form, in float64
          mistakes=[Mistake(mean_of_that_mistake, "alpha_t stands where alpha-bar_t belongs",
                            "这里应是 alpha-bar_t，不是 alpha_t")],
      ),
  ])

- `Call("name", ...)` calls that function of the student's module. Arguments are Python numbers, strings, None, NumPy
  arrays as they are, arrays that become Tensors there (`AsTensor`), tuples of such, and `Oracle("name", ...)`: what the
  function `name` of `inside/harness/ex04.py` returns there for these arguments, such as a model with a known answer.
- `Call("name", ..., harness=True)` calls `name(module, ...)` of `inside/harness/ex04.py`, `module` being the student's:
  for what is no plain function, such as building a Cell, setting its weights and returning what it computes. That file
  runs in the student's process and may be read there: no expected value, no solution in it.
- A call returns a Tensor, an array, a number, or a tuple or list of these; `expected` is one array, or a list of them.
  `returns` says what they must be: "tensor" (float32), "array" (NumPy float64), "number", or "any"; a list of these for
  several values.
- An answer is right when its shape is the expected one's and no entry differs by more than `tolerance` times the
  largest absolute value expected (or 1, where that is 0). Default: 1e-4 for what holds Tensors, else 1e-9.
- `Mistake(answer, en, zh)`: an answer equal to this one gets this hint instead of "differs by 0.3". `answer` is shaped
  like `expected`, or like what that mistake would return; or a function of the answer (array or list of arrays, of
  any shapes) that says whether it is this mistake. `Check` raises ValueError for a mistake whose answer is right
  within the tolerance: these inputs cannot show it, so draw others (whatever the seed: a test tries many).
- The first failing check of a part names the help. Put the simplest inputs first, t = 0 in a check of its own where it
  is special.

The stub: `course/exercises/ex04_posterior.py`, with a docstring in both languages, and in every function
`raise NotImplementedError("Exercise 4.1 / 练习 4.1: q_posterior_mean")`. A file imports NumPy and MindSpore alone.
Points: 100 in all (1: 8, 2: 8, 3: 6, 4: 8, 5: 8, 6: 10, 7: 10, 8: 6, 9: 10, 10: 8, 11: 6, 12: 6, 13: 6).

The tests: `tests/solutions/plain/ex04_posterior.py` is a solution without the library, `tests/solutions/library/`
holds the library behind the same signatures, `tests/solutions/mistakes/ex04.py` a list `MISTAKES` of (part, piece of
the plain solution, what stands there instead, piece of the English hint); `tests/test_exercises.py` tries them all.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, NamedTuple, Sequence, Union

import numpy as np


class Both(NamedTuple):
    """A text in English and in Chinese."""

    en: str
    zh: str


@dataclasses.dataclass(frozen=True, eq=False)
class AsTensor:
    """An array that the student's function gets as a MindSpore Tensor of the same type."""

    array: np.ndarray


class Oracle:
    """What `name(*arguments)` of the exercise's harness makes in the student's process."""

    def __init__(self, name: str, *arguments: Any) -> None:
        self.name, self.arguments = name, arguments


class Call:
    """A call of a function of the student's module; with `harness` of the exercise's harness, given that module."""

    def __init__(self, function: str, *arguments: Any, harness: bool = False, **keywords: Any) -> None:
        self.function, self.arguments, self.harness, self.keywords = function, arguments, harness, keywords


Answer = Union[np.ndarray, Sequence[np.ndarray]]


class Mistake:
    """An answer that a typical error gives, and what to say then."""

    def __init__(self, answer: Union[Answer, Callable[[Any], bool]], en: str, zh: str) -> None:
        self.answer, self.help = answer, Both(en, zh)


@dataclasses.dataclass(frozen=True, eq=False)
class Check:
    """One call with its expected answer. Raises ValueError where a mistake's answer is right."""

    call: Call
    expected: Answer
    mistakes: Sequence[Mistake] = ()
    returns: Union[str, Sequence[str]] = "tensor"
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        for mistake in self.mistakes:
            if not callable(mistake.answer) and agrees(mistake.answer, self.expected, self.allowed):
                raise ValueError(f"{self.call.function}: these inputs cannot show this mistake: {mistake.help.en}")

    @property
    def allowed(self) -> float:
        """The tolerance, or its default."""
        return self.tolerance or (1e-9 if self.returns == "array" else 1e-4)


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A row of the table."""

    number: str
    title: str
    points: int
    checks: Sequence[Check]


def agrees(answer: Answer, expected: Answer, tolerance: float) -> bool:
    """Have both the same shapes, and all entries so close?"""
    if isinstance(answer, (list, tuple)) != isinstance(expected, (list, tuple)):
        return False
    if isinstance(expected, (list, tuple)):
        return len(answer) == len(expected) and all(agrees(a, b, tolerance) for a, b in zip(answer, expected))
    answer, expected = np.asarray(answer), np.asarray(expected)
    return answer.shape == expected.shape and difference(answer, expected) <= tolerance


def difference(answer: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference in units of the largest absolute value expected; infinite where one is not finite."""
    answer, expected = np.asarray(answer, np.float64), np.asarray(expected, np.float64)
    if not np.all(np.isfinite(answer)):
        return np.inf
    if answer.size == 0:
        return 0.0
    with np.errstate(over="ignore"):
        return float(np.max(np.abs(answer - expected)) / (np.max(np.abs(expected)) or 1.0))
