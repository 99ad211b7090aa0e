"""What the library says: to the terminal, and in a training, with the time, to logs/rank_R.log of the run.

All of it goes through the logger `LOG`: information, warnings and errors. `LOG.debug` reaches only the file, for what a
progress bar shows already.
"""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Iterator, Union

from tqdm import tqdm

from ms_diffusion.errors import UserError
from ms_diffusion.records import Records


class Terminal:
    """sys.stderr, except that a full disk behind it, as nohup may put one there, costs words and no more."""

    def write(self, text: str) -> None:
        """As of any file."""
        with suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        """As of any file."""
        with suppress(OSError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


class _Terminal(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        kind = {logging.WARNING: "warning: ", logging.ERROR: "error: "}.get(record.levelno, "")
        tqdm.write(kind + self.format(record), file=TERMINAL)


class _File(logging.Handler):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S %z"))
        self._records = Records(path)

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(f"{self.format(record)}\n".encode(errors="backslashreplace"))

    def tell(self, message: str, traceback: tuple = ()) -> None:
        """An error for this file alone."""
        self.handle(LOG.makeRecord(LOG.name, logging.ERROR, "", 0, message, (), traceback or None))


TERMINAL = Terminal()
LOG = logging.getLogger("ms_diffusion")
LOG.setLevel(logging.DEBUG)
_TERMINAL = _Terminal()
LOG.addHandler(_TERMINAL)


@contextmanager
def to_run(folder: Union[str, Path], rank: int = 0) -> Iterator[None]:
    """Within it `LOG` is also heard in logs/rank_R.log of the run, and on the terminal only if `rank` is 0.

    The file is appended to. It also gets the error that ends the block: a `UserError` as one line, another with its
    traceback; the terminal does not, because whoever catches the error shows it there. Not to be nested.
    """
    folder = Path(folder) / "logs"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}; free or unlock the disk") from error
    file = _File(folder / f"rank_{rank}.log")
    LOG.addHandler(file)
    before, LOG.propagate = LOG.propagate, False  # a program with a logging of its own would show each line twice
    if rank > 0:
        LOG.removeHandler(_TERMINAL)
    try:
        yield
    except UserError as error:
        file.tell(str(error))
        raise
    except (Exception, KeyboardInterrupt) as error:
        file.tell(f"{type(error).__name__} ends the run", sys.exc_info())
        raise
    finally:
        LOG.removeHandler(file)
        LOG.propagate = before
        LOG.addHandler(_TERMINAL)  # which does nothing where it is there
