"""Grade the exercises of the course: points, and one line of help for each that is missing.

  python scripts/grade.py my_work
  python scripts/grade.py my_work.zip --exercise 2 3 --language en
  python scripts/grade.py my_work --report sheet.html --name "Li Lei" --run runs/digits
"""

import json
import secrets
import sys
from pathlib import Path
from typing import Literal, Optional

from jsonargparse.typing import NonNegativeInt, PositiveInt

from ms_diffusion.config import Parser
from ms_diffusion.errors import UserError, check_writable, exit_on_user_error

sys.path.insert(0, str(Path(__file__).parents[1]))  # course/ is not installed

from course.grader import grade, records, sandbox, sheet, submission
from course.grader.inside.confinement import protections
from course.grader.table import seed_line, table


def main() -> None:
    """Parse, read what was handed in, grade, print, write."""
    parser = Parser(description=__doc__, usage="%(prog)s SUBMISSION [options]")
    parser.add_argument("submission", type=str, help="folder with exNN*.py files, a zip of one, or one such file")
    parser.add_argument("--exercise", type=PositiveInt, nargs="+", default=None, help="these alone; all, or the file's")
    parser.add_argument("--seed", type=Optional[NonNegativeInt], default=None, help="of the inputs; drawn unless given")
    parser.add_argument("--language", type=Literal["both", "en", "zh"], default="both", help="of the help")
    parser.add_argument("--json", type=Optional[str], default=None, help="file for the points")
    parser.add_argument("--gradescope", type=Optional[str], default=None, help="file for Gradescope's results.json")
    parser.add_argument("--report", type=Optional[str], default=None, help="results sheet: one page of HTML")
    parser.add_argument("--name", type=Optional[str], default=None, help="on the sheet")
    parser.add_argument("--run", type=Optional[str], default=None, help="run folder: its training is on the sheet")
    options = parser.parse_args()
    for path in filter(None, (options.json, options.gradescope)):
        check_writable(path, [".json"])
    if options.report:
        check_writable(options.report, [".html"])
    elif options.name or options.run:
        raise UserError("--name and --run are for the results sheet: add --report sheet.html")
    files = submission.read(options.submission)
    numbers = options.exercise or (list(files) if options.submission.endswith(".py") else None)
    known = grade.exercises()
    for number in numbers or ():
        if number not in known:
            raise UserError(f"there is no exercise {number}: the exercises are {min(known)} to {max(known)}")
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    training = sheet.read_training(options.run) if options.run else None

    results = grade.grade(files, seed, numbers)
    print(table(results, options.language))
    print(seed_line(seed, options.language))
    missing = sorted({name for result in results for name in result.missing})
    if missing:
        print(protections(missing), file=sys.stderr)
    if sandbox.exposed():
        print("note: submissions can read this repository where it lies, see course/grader/README.md", file=sys.stderr)
    for path, form in ((options.json, records.own), (options.gradescope, records.gradescope)):
        if path:
            text = json.dumps(form(results, seed), ensure_ascii=False, indent=1)
            Path(path).write_text(f"{text}\n", encoding="utf-8")
    if options.report:
        page = sheet.render(results, files, seed, options.name, training)
        Path(options.report).write_text(page, encoding="utf-8")
        print(f"results sheet: {options.report}")


if __name__ == "__main__":
    exit_on_user_error(main)
