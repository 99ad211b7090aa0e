"""The points as JSON: our own form, and the one that Gradescope reads."""

from __future__ import annotations

from typing import Any, Sequence

from course.grader.grade import ExerciseResult


def own(results: Sequence[ExerciseResult], seed: int) -> dict[str, Any]:
    """Everything that the table says, with the seed that repeats it."""
    return {
        "seed": seed,
        "points": sum(result.points for result in results),
        "out_of": sum(result.out_of for result in results),
        "exercises": [
            {
                "exercise": result.number, "title": result.title._asdict(),
                "points": result.points, "out_of": result.out_of,
                "parts": [
                    {
                        "part": row.part, "title": row.title, "points": row.points, "out_of": row.out_of,
                        "help": row.help and row.help._asdict(),
                    }
                    for row in result.rows
                ],
            }
            for result in results
        ],
    }


def gradescope(results: Sequence[ExerciseResult], seed: int) -> dict[str, Any]:
    """The results.json of a Gradescope autograder: one test for each part."""
    return {
        "score": sum(result.points for result in results),
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "output": f"seed {seed}",
        "output_format": "text",
        "tests": [
            {
                "number": row.part, "name": f"{result.title.en}: {row.title}", "name_format": "text",
                "score": row.points, "max_score": row.out_of,
                "status": "passed" if row.points == row.out_of else "failed",
                "output": f"{row.help.en}\n{row.help.zh}" if row.help else "", "output_format": "text",
                "visibility": "visible",
            }
            for result in results
            for row in result.rows
        ],
    }
