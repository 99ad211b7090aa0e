"""Make course/annotated_diffusion.ipynb and its Chinese twin from course/annotated_diffusion.py, with outputs.

  python scripts/build_notebooks.py
  python scripts/build_notebooks.py --keep_outputs
  COURSE_DATA=fashion_mnist python scripts/build_notebooks.py --out FOLDER

The source has each text twice, marked lang="en" and lang="zh", and all code once. So both notebooks hold the same code:
it is run once, and both get what it said.
"""

from __future__ import annotations

import copy
import re
import tempfile
import time
from pathlib import Path
from typing import Union

import jupytext
import nbformat
from nbclient import NotebookClient

from ms_diffusion.config import Parser
from ms_diffusion.errors import UserError, exit_on_user_error

COURSE = Path(__file__).parents[1] / "course"
NAMES = {"en": "annotated_diffusion.ipynb", "zh": "annotated_diffusion_cn.ipynb"}
_WIDE = "[\u3000-\u303f\u3400-\u9fff\uff00-\uffef\u2018-\u201d]"  # Chinese characters and their punctuation


def main() -> None:
    """Parse, run, write."""
    parser = Parser(description=__doc__, usage="%(prog)s [options]")
    parser.add_argument("--out", type=str, default=str(COURSE), help="folder of the notebooks")
    parser.add_argument("--keep_outputs", action="store_true", help="only the texts are new: run nothing")
    options = parser.parse_args()
    out = Path(options.out)
    if not out.is_dir():
        raise UserError(f"--out is {out}: there is no such folder; make it first")
    began, notebook = time.monotonic(), read_source()
    if options.keep_outputs:
        take_outputs(notebook, out / NAMES["en"])
    else:
        with tempfile.TemporaryDirectory(prefix="ms_diffusion-course-") as folder:
            run(notebook, folder)
    for language, name in NAMES.items():
        (out / name).write_text(nbformat.writes(translate(notebook, language)) + "\n", encoding="utf-8")
        print(out / name)
    print(f"both in {time.monotonic() - began:.0f} s")


def read_source() -> nbformat.NotebookNode:
    """The source as a notebook without outputs, with the texts of both languages."""
    notebook = jupytext.read(COURSE / "annotated_diffusion.py", fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {"lang": cell.metadata["lang"]} if cell.cell_type == "markdown" else {}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def run(notebook: nbformat.NotebookNode, folder: Union[str, Path]) -> None:
    """Run the code of `notebook` in `folder` and put in what it says; a cell that fails raises."""
    client = NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    )
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)


def take_outputs(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Put the outputs that the notebook `path` has into `notebook`; `UserError` unless the code of both is the same."""
    if not path.exists():
        raise UserError(f"{path} is not there, so it has no outputs: leave --keep_outputs out")
    known = nbformat.read(path, as_version=4)
    new, old = ([cell for cell in each.cells if cell.cell_type == "code"] for each in (notebook, known))
    if [cell.source for cell in new] != [cell.source for cell in old]:
        raise UserError(f"{path} has other code than the source, so other outputs: leave --keep_outputs out")
    notebook.metadata = known.metadata  # what the kernel said of its language
    for cell, ran in zip(new, old):
        cell.outputs, cell.execution_count = ran.outputs, ran.execution_count


def translate(notebook: nbformat.NotebookNode, language: str) -> nbformat.NotebookNode:
    """`notebook` with the texts of `language`, "en" or "zh", alone."""
    notebook = copy.deepcopy(notebook)
    notebook.cells = [cell for cell in notebook.cells if cell.metadata.get("lang", language) == language]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = unwrap(cell.source)
    return notebook


def unwrap(text: str) -> str:
    """`text` without the ends of lines that would show as spaces between Chinese characters."""
    return re.sub(rf"(?<={_WIDE})\n(?:> |  )?(?={_WIDE})", "", text)


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """`outputs` with the pieces of one stream that follow each other in one, and no empty ones."""
    made: list[nbformat.NotebookNode] = []
    for output in outputs:
        if made and output.output_type == "stream" and made[-1].get("name") == output.name:
            made[-1].text += output.text
        else:
            made.append(output)
    for output in made:
        if output.output_type == "stream":
            output.text = last_look(output.text)
    return [output for output in made if output.output_type != "stream" or output.text.strip()]


def last_look(text: str) -> str:
    """What a terminal shows of `text` in the end: of a progress bar its last state."""
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))


if __name__ == "__main__":
    exit_on_user_error(main)
