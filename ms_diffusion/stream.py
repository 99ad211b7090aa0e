"""Batches made ahead of the training, by MindSpore's dataset pipeline, where the pictures stay in their files."""

from __future__ import annotations

from itertools import count
from typing import Any, Callable, Iterator, Optional, Tuple, Union

import numpy as np
from mindspore import dataset as pipelines

from ms_diffusion import runtime
from ms_diffusion.data import FolderDataset, ImageDataset, to_float
from ms_diffusion.errors import UserError

Plan = Iterator[Tuple[np.ndarray, Optional[np.ndarray]]]
"""For each coming step, the indices of its images (B,), and which are mirrored (B,) or None."""

# The interpreter's own share of a small JPEG is a tenth of decoding it: more threads would wait for each other.
_MOST_WORKERS = 8
_QUEUE = 1  # batches between two of MindSpore's threads; its own 16 would hold dozens more in memory


def batches(
    dataset: Union[ImageDataset, FolderDataset], plan: Plan, workers: Optional[int] = None,
) -> Iterator[np.ndarray]:
    """`dataset.batch` of every item of `plan`, in its order and bit for bit: float32 (B, C, H, W) in [-1, 1].

    Of a `FolderDataset`, `workers` threads (None: the cores but one, 1 to 8) decode at most 3 * workers + 6 batches
    ahead, held as uint8, and another thread draws the plan. What goes wrong there is raised when its step comes;
    `close()` ends the threads. Raises `UserError` for more workers than the process has cores.
    """
    if isinstance(dataset, ImageDataset):
        return (dataset.batch(indices, flip) for indices, flip in plan)
    cores = runtime.cores()
    if workers is not None and workers > cores:
        raise UserError(f"data.workers is {workers}, and this process may use {cores} cores: give no more, or null")
    return _ahead(dataset, plan, workers or max(1, min(cores - 1, _MOST_WORKERS)))


def _ahead(dataset: FolderDataset, plan: Plan, workers: int) -> Iterator[np.ndarray]:
    # By step. MindSpore would turn an exception into pages of text, and ends the process for a MemoryError.
    failures = {}

    def source() -> Iterator[Tuple[np.ndarray, np.ndarray, np.ndarray]]:
        step = 0
        try:
            for indices, flip in plan:
                yield np.asarray(step), indices, np.zeros(len(indices), dtype=bool) if flip is None else flip
                step += 1
        except Exception as error:
            failures[step] = error

    def decode(step: np.ndarray, indices: np.ndarray, flip: np.ndarray) -> np.ndarray:
        try:
            return dataset.pixels(indices, flip)
        except Exception as error:
            failures[int(step)] = error
            return np.zeros(1, dtype=np.uint8)

    iterator = _start(source, decode, workers)
    try:
        for step in count():
            row = next(iterator, None)
            if step in failures:
                raise failures[step]
            if row is None:
                return
            yield to_float(row[0])
    finally:
        iterator.stop()


def _start(source: Callable[[], Iterator], decode: Callable[..., np.ndarray], workers: int) -> Any:
    """The iterator of a running pipeline: the rows of `source` through `decode`, in their order."""
    # Threads, because processes forked after MindSpore has started can hang, and outlive their parent's end.
    threads = {"python_multiprocessing": False}
    columns = ["step", "indices", "flip"]
    before = pipelines.config.get_prefetch_size()
    pipelines.config.set_prefetch_size(_QUEUE)
    try:
        pipeline = pipelines.GeneratorDataset(source, columns, num_parallel_workers=1, shuffle=False, **threads)
        pipeline = pipeline.map(decode, columns, ["images"], num_parallel_workers=workers, **threads)
        return pipeline.create_tuple_iterator(num_epochs=1, output_numpy=True)
    finally:
        pipelines.config.set_prefetch_size(before)
