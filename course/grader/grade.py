"""From a submission to points: asks, compares, explains."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import importlib
import re
import signal
import time
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Optional, Sequence, Union

import numpy as np

from course.grader import sandbox
from course.grader.check import Both, Check, Part, agrees, difference
from course.grader.sandbox import Failure, Leaf, Limits, Process
from course.grader.submission import NOT_HANDED_IN, File
from ms_diffusion.errors import UserError

AT_A_TIME = 2
"""Processes that run at once."""
LIMITS = Limits()


@dataclasses.dataclass(frozen=True)
class Row:
    """A part of an exercise: its points and, where they are missing, why."""

    part: str
    title: str
    points: int
    out_of: int
    help: Optional[Both] = None


@dataclasses.dataclass(frozen=True)
class ExerciseResult:
    """The rows of one exercise."""

    number: int
    title: Both
    rows: Sequence[Row]
    missing: Sequence[str] = ()
    """Protections that the system lacks."""

    @property
    def points(self) -> int:
        """The sum of the rows'."""
        return sum(row.points for row in self.rows)

    @property
    def out_of(self) -> int:
        """The most that there is."""
        return sum(row.out_of for row in self.rows)


def exercises() -> dict[int, ModuleType]:
    """The checks modules by the exercise's number."""
    names = sorted(path.stem for path in (Path(__file__).parent / "checks").glob("ex[0-9][0-9].py"))
    return {int(name[2:]): importlib.import_module(f"course.grader.checks.{name}") for name in names}


def grade(
    files: dict[int, File], seed: int, numbers: Optional[Sequence[int]] = None, limits: Limits = LIMITS,
    library: bool = False,
) -> list[ExerciseResult]:
    """Grade the exercises `numbers`, all unless given.

    Every input is drawn from `seed`. `library` lets the files import ms_diffusion: for the reference solutions alone.
    """
    chosen = {number: module for number, module in exercises().items() if numbers is None or number in numbers}

    def one(item: tuple[int, ModuleType]) -> ExerciseResult:
        number, module = item
        file, parts = files.get(number), module.parts(np.random.default_rng([seed, number]))
        if file is None or file.problem:
            problem = file.problem if file else NOT_HANDED_IN
            return ExerciseResult(number, module.TITLE, [_row(part, problem) for part in parts])
        harness = sandbox.HARNESSES / f"ex{number:02d}.py"
        with Session(lambda: Process(
            module.FILE, file.source, limits, harness if harness.exists() else None, library
        ), limits) as session:
            return ExerciseResult(number, module.TITLE, rows(session, parts), session.missing)

    with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool:
        return list(pool.map(one, chosen.items()))


def rows(session: Session, parts: Sequence[Part]) -> list[Row]:
    """Ask and judge every part."""
    return [_row(part, _first_help(session, part.checks)) for part in parts]


def _row(part: Part, problem: Optional[Both]) -> Row:
    return Row(part.number, part.title, 0 if problem else part.points, part.points, problem)


def _first_help(session: Session, checks: Sequence[Check]) -> Optional[Both]:
    for check in checks:
        answer = session.ask(check)
        problem = explain_failure(answer, session.limits) if isinstance(answer, Failure) else judge(answer, check)
        if problem:
            return problem
    return None


class Session:
    """One exercise's process, started again after a call that ended it, until the time of the exercise is over."""

    def __init__(self, make: Callable[[], Process], limits: Limits) -> None:
        self.limits = limits
        self.missing: Sequence[str] = ()
        self._make = make
        self._stack = contextlib.ExitStack()
        self._process: Optional[Process] = None
        self._no_import: Optional[Failure] = None
        self._left = limits.exercise

    def ask(self, check: Check) -> Union[sandbox.Value, Failure]:
        """The answer to a check."""
        if self._process is None and self._no_import is None and self._left > 0:
            try:
                self._process = self._stack.enter_context(self._make())
            except OSError as error:
                raise UserError(f"no process can be started for a submission: {error}") from error
            self._process.start()
            self.missing = self._process.missing
            begin = time.monotonic()
            self._no_import = self._process.load(self._left)
            self._left -= time.monotonic() - begin
        if self._left <= 0:
            return Failure("no time left")
        if self._no_import is not None:
            return self._no_import
        begin = time.monotonic()
        answer = self._process.ask(check.call, self._left)
        self._left -= time.monotonic() - begin
        if isinstance(answer, Failure) and answer.kind != "exception":
            self._stack.close()
            self._process = None
        return answer

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()


def judge(answer: sandbox.Value, check: Check) -> Optional[Both]:
    """What is wrong with the answer; None where it is right."""
    expected = check.expected
    many = isinstance(expected, (list, tuple))
    values = _arrays(answer)
    right_form = isinstance(answer, list) == many and (not many or len(answer) == len(expected))
    if values is not None and not (right_form and agrees(values, expected, check.allowed)):
        for mistake in check.mistakes:
            if callable(mistake.answer):
                made = right_form and mistake.answer(values)
            else:
                made = agrees(values, mistake.answer, check.allowed)
            if made:
                return mistake.help
    if not right_form:
        found, asked = _count(answer, Both("tuple or list", "元组或列表")), _count(expected, Both("tuple", "元组"))
        return Both(f"returns {found.en} where {asked.en} is asked for", f"应返回{asked.zh}，却返回了{found.zh}")
    leaves, arrays = (answer, expected) if many else ([answer], [expected])
    kinds = [check.returns] * len(leaves) if isinstance(check.returns, str) else check.returns
    for place, (leaf, array, kind) in enumerate(zip(leaves, arrays, kinds), start=1):
        problem = _of_leaf(leaf, np.asarray(array), kind, check.allowed)
        if problem:
            return Both(f"value {place}: {problem.en}", f"第 {place} 个值：{problem.zh}") if many else problem
    return None


def _count(values: Any, kind: Both) -> Both:
    if isinstance(values, (list, tuple)) and not isinstance(values, Leaf):
        return Both(f"a {kind.en} of {len(values)}", f" {len(values)} 个值组成的{kind.zh}")
    return Both("one value", "一个值")


def _of_leaf(leaf: Leaf, expected: np.ndarray, kind: str, tolerance: float) -> Optional[Both]:
    if leaf.type == "NoneType":
        return Both("returns None: is the return missing?", "返回了 None：忘了 return？")
    if kind == "tensor" and leaf.kind != "tensor":
        return Both(f"returns a {leaf.type}, not a MindSpore Tensor", f"应返回 Tensor，却返回了 {leaf.type}")
    if kind == "array" and leaf.kind != "array":
        return Both(f"returns a {leaf.type}, not a NumPy array", f"应返回 NumPy 数组，却返回了 {leaf.type}")
    if leaf.array is None:
        return Both(f"returns a {leaf.type}: no array, no number", f"返回了 {leaf.type}：不是数组也不是数")
    wanted = {"tensor": "float32", "array": "float64"}.get(kind)
    if wanted and leaf.array.dtype.name != wanted:
        return Both(f"is {leaf.array.dtype} instead of {wanted}", f"类型应为 {wanted}，却是 {leaf.array.dtype}")
    shape = leaf.array.shape
    if kind == "number" and leaf.array.size == 1:
        shape = ()
    if shape != expected.shape:
        return Both(f"has shape {shape} instead of {expected.shape}", f"形状应为 {expected.shape}，却是 {shape}")
    if not np.all(np.isfinite(leaf.array)):
        return Both("holds NaN or infinity", "含有 NaN 或无穷大")
    error = difference(leaf.array.reshape(expected.shape), expected)
    if error > tolerance:
        return Both(
            f"differs by {error:.2g} of the largest value expected; {tolerance:g} is allowed",
            f"误差是正确结果最大绝对值的 {error:.2g} 倍；允许 {tolerance:g}",
        )
    return None


def _arrays(answer: sandbox.Value) -> Any:
    if isinstance(answer, list):
        return None if any(leaf.array is None for leaf in answer) else [leaf.array for leaf in answer]
    return answer.array


def explain_failure(failure: Failure, limits: Limits) -> Both:
    """Why a call returned nothing."""
    if failure.kind == "late":
        return Both(
            f"still runs after {limits.call:g} seconds: an endless loop?", f"{limits.call:g} 秒后仍未结束：死循环？"
        )
    if failure.kind == "no time left":
        return Both(
            f"not asked: the exercise took more than {limits.exercise:g} seconds",
            f"未评：本练习已用去超过 {limits.exercise:g} 秒",
        )
    if failure.kind == "forged":
        return Both("answers with something unreadable or too large", "返回的内容无法读取或过大")
    if failure.kind == "died":
        return _death(int(failure.error))
    where = Both(f" (line {failure.line})", f"（第 {failure.line} 行）") if failure.line else Both("", "")
    if failure.error == "NotImplementedError":
        return Both("not written yet", "尚未完成")
    if failure.error == "MemoryError":
        return Both(f"asks for too much memory{where.en}", f"申请的内存太多{where.zh}")
    if failure.error == "AttributeError" and (name := re.match(r"module '\w+' has no attribute '(\w+)'", failure.text)):
        return Both(f"the file has no {name.group(1)}", f"文件中没有 {name.group(1)}")
    if failure.error == "SystemExit":
        return Both(f"calls exit or sys.exit{where.en}: return instead",
                    f"调用了 exit 或 sys.exit{where.zh}：应改用 return")
    if failure.error == "EOFError":
        return Both(f"raises EOFError{where.en}: input() has nothing to read here",
                    f"抛出异常 EOFError{where.zh}：这里没有键盘输入，不要用 input()")
    if failure.error == "SyntaxError" and "codec can't decode" in failure.text:
        return Both(f"is not saved as UTF-8{where.en}: save it so in your editor",
                    f"文件不是 UTF-8 编码{where.zh}：请在编辑器中另存为 UTF-8")
    if failure.error == "SyntaxError" and re.match(r"invalid (non-printable )?character", failure.text):
        return Both(f"raises SyntaxError: {failure.text}{where.en}: type it in the English input mode",
                    f"抛出异常 SyntaxError: {failure.text}{where.zh}：请改成英文（半角）字符")
    text = f"{failure.error}: {failure.text}" if failure.text else failure.error
    return Both(f"raises {text}{where.en}", f"抛出异常 {text}{where.zh}")


def _death(status: int) -> Both:
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return Both("its process was killed: too much time or memory", "进程被终止：时间或内存超限")
    if status < 0:
        name = signal.Signals(-status).name if -status in signal.valid_signals() else f"signal {-status}"
        return Both(f"its process crashed ({name})", f"进程崩溃（{name}）")
    return Both(f"ends its own process (exit status {status})", f"自行结束了进程（退出码 {status}）")
