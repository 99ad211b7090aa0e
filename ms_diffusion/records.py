"""Files that grow by whole records, and that a full disk cannot make fatal."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

_LOG = logging.getLogger("ms_diffusion")


class Records:
    """The end of the file `path`, opened anew for each record: nothing is left to close, or to lose in a buffer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._refused = False

    def append(self, record: bytes) -> bool:
        """Write `record` whole, or nothing of it and return False; the first refusal in a row is a warning."""
        try:
            with open(self.path, "ab", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                if file.write(record) < len(record):  # a disk that fills up takes a part
                    file.truncate(end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not self._refused:
                self._refused = True
                _LOG.warning("cannot write %s: %s; going on without it until it can be written", self.path,
                             error.strerror)
            return False
        self._refused = False
        return True
