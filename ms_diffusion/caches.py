"""Where this user's caches lie."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """$MS_DIFFUSION_CACHE/NAME, or $XDG_CACHE_HOME/ms_diffusion/NAME, or ~/.cache/ms_diffusion/NAME.

    Raises `RuntimeError` where this user has no home.
    """
    own, caches = os.environ.get("MS_DIFFUSION_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own).expanduser() / name
    return (Path(caches).expanduser() if caches else Path.home() / ".cache") / "ms_diffusion" / name
