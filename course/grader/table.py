"""The points as a table of 80 columns."""

from __future__ import annotations

import unicodedata
from typing import Optional, Sequence

from course.grader.check import Both
from course.grader.grade import ExerciseResult

WIDTH = 80
_INDENT = " " * 6


def table(results: Sequence[ExerciseResult], language: str = "both") -> str:
    """Rows of exercise, part and points, and under those that miss points why; language is en, zh or both.

    What is wrong with every part of an exercise, such as a file that cannot be imported, stands once, under its title.
    """
    lines = []
    for result in results:
        title = " / ".join(_texts(result.title, language))
        lines.append(_row(f"{result.number:2d}  {title}", f"{result.points}/{result.out_of}"))
        shared = len({row.help for row in result.rows}) == 1
        if shared:
            lines += _help(result.rows[0].help, language)
        for row in result.rows:
            lines.append(_row(f"    {row.part:5s} {row.title}", f"{row.points}/{row.out_of}", dotted=True))
            if not shared:
                lines += _help(row.help, language)
    total, most = sum(result.points for result in results), sum(result.out_of for result in results)
    label = " / ".join(_texts(Both("total", "总分"), language))
    return "\n".join([*lines, "-" * WIDTH, _row(label, f"{total}/{most}")])


def seed_line(seed: int, language: str = "both") -> str:
    """What to say below the table of the seed that its inputs were drawn from."""
    return " / ".join(_texts(
        Both(f"--seed {seed} draws the same inputs again", f"用 --seed {seed} 可以重复同样的输入"), language
    ))


def _help(help: Optional[Both], language: str) -> Sequence[str]:
    if help is None:
        return []
    texts = _texts(help, language)
    together = " / ".join(texts)
    texts = [together] if width(_INDENT + together) <= WIDTH else texts
    return [_INDENT + line for text in texts for line in _wrapped(text)]


def _texts(both: Both, language: str) -> Sequence[str]:
    if language == "both":
        return both if both.en != both.zh else both[:1]
    return [both.en if language == "en" else both.zh]


def _row(left: str, right: str, dotted: bool = False) -> str:
    left = _cut(left, WIDTH - 10)
    room = WIDTH - width(left) - len(right) - 2
    return f"{left} {('.' if dotted else ' ') * room} {right}"


def width(text: str) -> int:
    """Columns that a terminal needs: two for a Chinese character."""
    return sum(_columns(letter) for letter in text)


def _columns(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def _cut(text: str, most: int) -> str:
    while width(text) > most:
        text = text[:-1]
    return text


def _wrapped(text: str) -> Sequence[str]:
    """Lines that fit after the indent, broken at a space where there is one in the second half of a line."""
    lines = []
    while width(text) > WIDTH - len(_INDENT):
        line = _cut(text, WIDTH - len(_INDENT))
        if text[len(line)] != " " and line.rfind(" ") > len(line) // 2:
            line = line[: line.rfind(" ")]
        lines.append(line.rstrip())
        text = text[len(line):].lstrip()
    return [*lines, text]
