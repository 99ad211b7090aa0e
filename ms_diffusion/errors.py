"""A person's mistake is one line and exit status 2; a bug keeps its traceback."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Callable, Sequence


class UserError(ValueError):
    """A mistake that the person at the keyboard can mend: the message names the thing and the mend."""


def check_writable(path: str, suffixes: Sequence[str]) -> None:
    """Raise `UserError`, before the work, where the file `path` cannot be written or ends in none of `suffixes`."""
    file = Path(path)
    if file.suffix.lower() not in suffixes:
        kinds = " or ".join(suffixes) if len(suffixes) < 3 else ".png, .jpg or the like"
        raise UserError(f"{file} must end in {kinds}")
    if not file.parent.is_dir():
        raise UserError(f"{file} cannot be written: there is no folder {file.parent}; make it first")
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UserError(f"{file} cannot be written: choose another name, or mend the permissions")


def exit_on_user_error(main: Callable[[], None]) -> None:
    """Run a script's `main`; a `UserError` becomes one line on stderr and exit status 2, Ctrl-C status 130."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
