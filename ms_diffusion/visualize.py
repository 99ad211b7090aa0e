"""Pictures: grids of samples, the denoising GIF, the loss curve, the forward process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Optional, Sequence, Union

import numpy as np
from PIL import Image

from ms_diffusion.errors import UserError

PathLike = Union[str, Path]


def to_picture(image: np.ndarray) -> Image.Image:
    """A PIL picture of one uint8 image (1, H, W) or (3, H, W)."""
    return Image.fromarray(image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0))


def make_grid(images: np.ndarray, columns: Optional[int] = None, cell: int = 56) -> Image.Image:
    """Tile uint8 images (N, C, H, W) row by row, nearly square unless `columns` is given.

    Small images are enlarged by a whole factor, bicubic, to `cell` pixels or a little less: the eye does not read
    shapes from eight square pixels. Nothing is shrunk.
    """
    count, channels, height, width = images.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    factor, pad = max(1, cell // max(height, width)), 2
    height, width = height * factor, width * factor
    size = (columns * (width + pad) + pad, -(-count // columns) * (height + pad) + pad)
    canvas = Image.new("L" if channels == 1 else "RGB", size, "white")
    for index, image in enumerate(images):
        picture = to_picture(image)
        if factor > 1:
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        canvas.paste(picture, (pad + index % columns * (width + pad), pad + index // columns * (height + pad)))
    return canvas


def label_grid(images: np.ndarray, labels: Sequence[int], cell: int = 56) -> Image.Image:
    """`make_grid` with a row for each of several labels (N,), where all have as many images; else as they come."""
    counts = np.unique(labels, return_counts=True)[1]
    if len(counts) == 1 or counts.min() < counts.max():
        return make_grid(images, cell=cell)
    return make_grid(images[np.argsort(labels, kind="stable")], int(counts[0]), cell)


def side_by_side(pictures: Sequence[Image.Image], gap: int = 14) -> Image.Image:
    """The pictures of one kind from left to right, on white, with `gap` pixels between them."""
    size = (sum(picture.width + gap for picture in pictures) - gap, max(picture.height for picture in pictures))
    canvas, left = Image.new(pictures[0].mode, size, "white"), 0
    for picture in pictures:
        canvas.paste(picture, (left, (canvas.height - picture.height) // 2))
        left += picture.width + gap
    return canvas


def picture_suffixes() -> list[str]:
    """The endings of the files that `save_picture` can write, such as ".png"."""
    Image.init()
    return sorted(suffix for suffix, name in Image.registered_extensions().items() if name in Image.SAVE)


def photograph() -> Path:
    """The photograph that comes with matplotlib: a picture for the forward process that needs no download."""
    from matplotlib import get_data_path

    return Path(get_data_path()) / "sample_data" / "grace_hopper.jpg"


def save_picture(picture: Image.Image, path: PathLike) -> None:
    """Write `picture` in the format that the name of `path` says. Raises `UserError` where that cannot be."""
    try:
        picture.save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the picture {path}: {error}") from error


def save_gif(pictures: Sequence[Image.Image], path: PathLike, milliseconds: int = 60, hold: int = 1500) -> None:
    """Write an endless GIF; the last picture is held for `hold` milliseconds. Raises `UserError` where it cannot be."""
    durations = [milliseconds] * (len(pictures) - 1) + [hold]
    try:
        pictures[0].save(
            path, format="GIF", save_all=True, append_images=list(pictures[1:]), duration=durations, loop=0
        )
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the GIF {path}: {error}") from error


def frame_steps(timesteps: int, frames: int = 50) -> list[int]:
    """Which of the reverse steps 0..timesteps-1 a GIF of at most `frames` pictures shows; always the last."""
    return sorted({round(step) for step in np.linspace(0, timesteps - 1, min(frames, timesteps))})


def plot_loss(metrics: PathLike, path: PathLike, reference: Optional[PathLike] = None) -> None:
    """Draw loss and learning rate over the steps of a metrics.jsonl file.

    `reference` is a JSON file with "steps", "loss" and "source": points of another run, drawn beside the curve as far
    as it goes.
    """
    lines = [json.loads(line) for line in Path(metrics).read_text().splitlines()]
    lines = [line for line in lines if line["loss"] is not None]  # null: every step was skipped
    steps = [line["step"] for line in lines]
    figure, axis = _figure(7, 4)
    axis.plot(steps, [line["loss"] for line in lines], color="tab:blue", linewidth=1, label="this run")
    if reference is not None:
        points = json.loads(Path(reference).read_text())
        shown = sum(step <= max(steps, default=0) for step in points["steps"])
        axis.scatter(points["steps"][:shown], points["loss"][:shown], color="tab:red", zorder=3, label=points["source"])
        axis.legend(loc="upper right", fontsize="small")
    axis.set(xlabel="step", ylabel="loss", yscale="log" if steps else "linear")
    axis.grid(alpha=0.3, which="both")
    rate = axis.twinx()
    rate.plot(steps, [line["lr"] for line in lines], color="tab:gray", linewidth=1, linestyle="--")
    rate.set(ylabel="learning rate (dashed)", ylim=(0, 1.1 * max((line["lr"] for line in lines), default=1)))
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def plot_forward(images: Sequence[np.ndarray], steps: Sequence[int], path: PathLike) -> None:
    """Draw one row of uint8 images (C, H, W): the original, then x_t for each t in `steps`."""
    figure, axes = _figure(2 * len(images), 2.4, columns=len(images))
    for axis, image, title in zip(axes, images, ["original", *(f"t = {t}" for t in steps)]):
        axis.imshow(np.asarray(to_picture(image)), cmap="gray", vmin=0, vmax=255)
        axis.set_title(title)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def plot_bound(terms: np.ndarray, prior: float, path: PathLike) -> None:
    """Draw the variational bound's terms by t, (T,), in bits per dimension; `prior` is L_T."""
    figure, axis = _figure(7, 4)
    axis.plot(np.arange(1, len(terms)), terms[1:], color="tab:blue", linewidth=1, label="L_{t-1}")
    axis.scatter([0], terms[:1], color="tab:red", zorder=3, label="L_0")
    axis.scatter([len(terms)], [prior], color="tab:green", zorder=3, label="L_T")
    axis.set(xlabel="t", ylabel="bits per dimension", yscale="log")
    axis.set_title(f"the bound is their sum: {terms.sum() + prior:.3f} bits per dimension", fontsize="medium")
    axis.legend()
    axis.grid(alpha=0.3, which="both")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _figure(width: float, height: float, columns: int = 1):
    # The object interface draws to files alone: no window system, no global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(1, columns)
