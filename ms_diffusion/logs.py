"""What a training says: to the terminal on rank 0, and with the time to logs/rank_R.log of the run on every rank.

All of it goes through the logger `LOG`. Information, warnings and errors reach both; `LOG.debug` only the file, for
what a progress bar shows already.
"""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Union

from tqdm import tqdm

from ms_diffusion.errors import UserError
from ms_diffusion.records import Records

LOG = logging.getLogger("ms_diffusion")


@contextmanager
def to_run(folder: Union[str, Path], rank: int = 0) -> Iterator[None]:
    """Within it `LOG` is heard: on stderr, above a bar of tqdm, if `rank` is 0, and in logs/rank_R.log of the run.

    The file is appended to. It also gets the error that ends the block: a `UserError` as one line, another with its
    traceback; the terminal does not, because whoever catches the error shows it there. Not to be nested.
    """
    folder = Path(folder) / "logs"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}; free or unlock the disk") from error
    file = _File(folder / f"rank_{rank}.log")
    handlers = [file, _Terminal()] if rank == 0 else [file]
    before = LOG.level, LOG.propagate
    LOG.setLevel(logging.DEBUG)
    LOG.propagate = False
    for handler in handlers:
        LOG.addHandler(handler)
    try:
        yield
    except UserError as error:
        file.tell(str(error))
        raise
    except (Exception, KeyboardInterrupt) as error:
        file.tell(f"{type(error).__name__} ends the run", sys.exc_info())
        raise
    finally:
        for handler in handlers:
            LOG.removeHandler(handler)
            handler.close()
        LOG.setLevel(before[0])
        LOG.propagate = before[1]


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


class _Terminal(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        kind = {logging.WARNING: "warning: ", logging.ERROR: "error: "}.get(record.levelno, "")
        tqdm.write(kind + self.format(record), file=sys.stderr)
