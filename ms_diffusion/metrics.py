"""A run's figures: metrics.jsonl, and the same for TensorBoard."""

from __future__ import annotations

import io
import json
import math
import os
import time
from pathlib import Path
from typing import Any, Mapping, Optional

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from ms_diffusion.errors import UserError
from ms_diffusion.records import Records


class Metrics:
    """Writes the figures of the run in `folder` after step `step`, 0 for a new one.

    What is there of later steps, from a run that ended behind its last checkpoint, is dropped: from metrics.jsonl, with
    whatever a killed process left unfinished, and from TensorBoard's sight. A disk that refuses costs lines, one
    warning, and no more. Raises `UserError` where the folder cannot be written from the start.
    """

    def __init__(self, folder: Path, step: int = 0, tensorboard: bool = True) -> None:
        lines = folder / "metrics.jsonl"
        try:
            if lines.exists():
                _shorten(lines, step)
            self._events = _Events(folder / "tensorboard", step + 1) if tensorboard else None
        except OSError as error:
            raise UserError(f"cannot write {error.filename}: {error.strerror}; free or unlock the disk") from error
        self._lines = Records(lines)

    def write(self, step: int, figures: Mapping[str, Optional[float]]) -> None:
        """A line of `figures` after `step`; what is None or not finite is null there, and left out in TensorBoard."""
        finite = {name: value for name, value in figures.items() if value is not None and math.isfinite(value)}
        line = {"step": step, **{name: finite.get(name) for name in figures}}
        self._lines.append(f"{json.dumps(line)}\n".encode())
        if self._events is not None:
            self._events.scalars(step, finite)

    def image(self, step: int, grid: np.ndarray) -> None:
        """A picture of samples for TensorBoard: uint8 (H, W, C) or (H, W)."""
        if self._events is not None:
            self._events.image(step, np.asarray(grid))


def _shorten(path: Path, step: int) -> None:
    """Cut `path` off before its first line that is of a step after `step`, or not whole.

    The lines are in the order of their steps. A cut needs no room on the disk, and is done or not.
    """
    kept = 0
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n") or _step(line) > step:
            break
        kept += len(line)
    os.truncate(path, kept)


def _step(line: bytes) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


class _Events:
    """A file of TensorBoard's events, in whose sight it replaces what was written of the steps from `first` on.

    Not by the usual writers: in them a full disk ends a thread, and then the training waits for ever.
    """

    def __init__(self, folder: Path, first: int) -> None:
        folder.mkdir(exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names; times would differ between machines.
        number = len(list(folder.glob("*.tfevents.*")))
        self._records = Records(folder / f"events.out.tfevents.{number:06d}")
        start = SessionLog(status=SessionLog.START)
        self._head = _record(file_version="brain.Event:2") + _record(step=first, session_log=start)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._append(step, Summary(value=[Summary.Value(tag=name, simple_value=x) for name, x in values.items()]))

    def image(self, step: int, grid: np.ndarray) -> None:
        height, width = grid.shape[:2]
        colours = 1 if grid.ndim == 2 else grid.shape[2]
        png = io.BytesIO()
        Image.fromarray(grid).save(png, "PNG")
        image = Summary.Image(
            height=height, width=width, colorspace=colours, encoded_image_string=png.getvalue()
        )
        self._append(step, Summary(value=[Summary.Value(tag="samples", image=image)]))

    def _append(self, step: int, summary: Summary) -> None:
        if self._records.append(self._head + _record(step=step, summary=summary)):
            self._head = b""


def _record(**event: Any) -> bytes:
    """An event of now, as a file of TensorBoard holds it."""
    file = io.BytesIO()
    RecordWriter(file).write(Event(wall_time=time.time(), **event).SerializeToString())
    return file.getvalue()
