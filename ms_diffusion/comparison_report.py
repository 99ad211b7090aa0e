"""What a comparison measured: its figures, its verdict, and the folder that they are written to."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator, Optional, Sequence, Union

import numpy as np
from matplotlib.figure import Figure

from ms_diffusion import config as configuration
from ms_diffusion.config import Config
from ms_diffusion.data import to_uint8
from ms_diffusion.errors import UserError
from ms_diffusion.visualize import to_picture

TOLERANCES = {
    "weights": 0.0, "schedule tables": 1e-6, "layer outputs": 1e-5, "layer inputs": 1e-5, "U-Net output": 1e-4,
    "loss": 1e-5, "gradients": 1e-3, "optimiser step": 1e-2, "loss curve": 1e-3, "sampling": 1e-3,
}
"""The checks, in their order, and how far each may be off; `EXPLANATIONS` has the units."""

EXPLANATIONS = {
    "weights": "both networks hold the same numbers under the same names; nothing is missing and nothing left over",
    "schedule tables": "every table of the process, in units of max(1, |table|)",
    "layer outputs": "each layer and each block called by itself, in PyNative, on the input that PyTorch's layer read: "
    "an error stands at the layer that makes it, and again at the blocks around that layer; layers without parts also "
    "on normal numbers and on a hundredth of them, because a real input can hide a wrong epsilon or GELU; absolute, "
    "but in units of the output's root mean square where that is above 1, as in a trained network",
    "layer inputs": "what each layer reads when every layer before it hands on exactly PyTorch's numbers, in PyNative: "
    "an error here is in the wiring between the layers; units as before",
    "U-Net output": "eps_theta(x_t, t) of the whole network, absolute",
    "loss": "the training loss of the first batch, relative",
    "gradients": "relative L2 of each parameter's gradient; a gradient below 1/1000 of the mean size is measured "
    "against that",
    "optimiser step": "each weight after the first training step (loss scale, clipping, Adam) against PyTorch's "
    "clip_grad_norm_ and Adam on the same gradients, in units of the learning rate; MindSpore's Adam adds epsilon "
    "before the bias correction (the end of section 2 of Kingma and Ba 2014), PyTorch's after it, so for this one step "
    "PyTorch's gets the epsilon that makes the formulas equal",
    "loss curve": "the training loss of each step, relative, ten times more after the tenth step; each framework "
    "trains by its own gradients and its own new Adam with the same epsilon",
    "sampling": "x_t after each reverse step from pure noise to an image, per pixel, absolute",
}


@dataclass(frozen=True)
class Row:
    """How far our numbers lie from PyTorch's in one place."""

    check: str
    """Which of `TOLERANCES`."""
    name: str
    """Where: a table, a layer, a parameter, a step."""
    size: int = 0
    """How many numbers were compared."""
    max_abs: float = math.nan
    """Largest absolute error."""
    mean_abs: float = math.nan
    """Mean absolute error."""
    relative_l2: float = math.nan
    """Euclidean norm of the error over that of PyTorch's numbers."""
    cosine: float = math.nan
    """Of the angle between the two, as vectors."""
    share: float = 0.0
    """Share of the numbers within tolerance."""
    tolerance: float = 0.0
    """How far off they may be."""
    used: float = math.inf
    """The error as a share of the tolerance: above 1 the check fails."""
    note: str = ""
    """What the figures do not say: which argument of a layer it was, or why there are none."""

    @property
    def passed(self) -> bool:
        """Within tolerance; not so where it is no number."""
        return self.used <= 1


@dataclass(frozen=True)
class Comparison:
    """Everything that was compared; the rows stand in the order of the checks."""

    rows: list[Row] = field(default_factory=list)
    losses: tuple[list[float], list[float]] = ((), ())
    """The training curve: ours, PyTorch's."""
    samples: tuple[np.ndarray, np.ndarray] = ((), ())
    """Sampled images (N, C, H, W): ours, PyTorch's."""
    notes: list[str] = field(default_factory=list)
    """What a reader should know besides the rows."""

    @property
    def passed(self) -> bool:
        """Every row is within its tolerance."""
        return all(row.passed for row in self.rows)

    @property
    def first_broken(self) -> Optional[Row]:
        """The row to mend first: a layer where one broke, else the first past its tolerance; None if all passed."""
        broken = [row for row in self.rows if not row.passed]
        layers = [row for row in broken if row.check in ("layer outputs", "layer inputs")]
        return next(iter([*layers, *broken]), None)

    def summary(self) -> list[tuple[Row, Row, int]]:
        """For each check: its rows as one, the worst of them, and how many they are."""
        lines = []
        for check in TOLERANCES:
            rows = [row for row in self.rows if row.check == check]
            if rows:
                worst = max(rows, key=lambda row: math.inf if math.isnan(row.used) else row.used)
                lines.append((_together(rows, worst), worst, len(rows)))
        return lines


def measure(
    check: str, name: str, ours: np.ndarray, theirs: np.ndarray, tolerance: float, *,
    unit: Union[float, np.ndarray] = 1.0, rms: bool = False, note: str = "",
) -> Row:
    """How far `ours` lies from `theirs`.

    It is within tolerance where every |error| is at most `tolerance` times `unit` (a number, or one for each element);
    with `rms`, where the root of the mean squared error is.
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        shapes = f"our shape is {ours.shape}, PyTorch's {theirs.shape}"
        return Row(check, name, tolerance=tolerance, note=f"{note}: {shapes}" if note else shapes)
    error = np.abs(ours - theirs)
    norm, our_norm, error_norm = (math.sqrt(np.square(x).sum()) for x in (theirs, ours, error))
    allowed = np.broadcast_to(tolerance * np.asarray(unit, np.float64), error.shape)
    if rms:
        used = _ratio(error_norm, math.sqrt(np.square(allowed).sum()))
    else:
        used = float(np.max(np.divide(error, allowed, out=np.where(error == 0, 0.0, np.inf), where=allowed > 0)))
    return Row(
        check, name, error.size, float(error.max()), float(error.mean()), _ratio(error_norm, norm),
        _ratio(float((ours * theirs).sum()), our_norm * norm, 1.0 if our_norm == norm else 0.0),
        float((error <= allowed).mean()), tolerance, used, note,
    )


def _ratio(value: float, of: float, zero_of_zero: float = 0.0) -> float:
    if of == 0:
        return zero_of_zero if value == 0 else math.inf
    return value / of


def _together(rows: list[Row], worst: Row) -> Row:
    """Several rows of one check as one: the worst of each figure, the means weighted by size."""
    sizes = np.array([max(row.size, 1) for row in rows])
    return dataclasses.replace(
        worst, size=sum(row.size for row in rows),
        max_abs=float(np.max([row.max_abs for row in rows])),
        mean_abs=float(np.average([row.mean_abs for row in rows], weights=sizes)),
        relative_l2=float(np.max([row.relative_l2 for row in rows])),
        cosine=float(np.min([row.cosine for row in rows])),
        share=float(np.average([row.share for row in rows], weights=sizes)),
    )


# ---- The report ----


def to_table(comparison: Comparison) -> str:
    """One line for each check, for the terminal."""
    lines = [_SUMMARY_HEAD, *_summary_cells(comparison)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def verdict(comparison: Comparison) -> str:
    """The result in one line; it names the layer to mend."""
    row = comparison.first_broken
    if row is None:
        return "PASSED: every check is within its tolerance"
    measured = [f"{row.used:.3g} times the tolerance of {row.tolerance:g}"] if row.size else []
    reason = ", ".join([row.note] * bool(row.note) + measured)
    if row.check.startswith("layer"):
        return f"FAILED: the first layer that broke is {row.name} ({row.check[:-1]}: {reason})"
    return f"FAILED: first past its tolerance is {row.check}, {row.name} ({reason}); every layer passed by itself"


@contextmanager
def new_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside `folder` to write into; it becomes `folder` at the end, or vanishes after an error.

    Raises `UserError` where something is there already (unless `overwrite`, and it is a report) or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not overwrite:
            raise UserError(f"{folder} is not empty: choose another --out, or replace it with --overwrite")
        if not (folder / "report.json").is_file():
            raise UserError(f"--overwrite would delete {folder}, which is no report (it has no report.json): delete it "
                            "by hand, or choose another --out")
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)  # of a command that was killed
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write the folder {folder}: {error.strerror}; choose another --out") from error
    try:
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_report(comparison: Comparison, folder: Path, config: Config, about: dict[str, str]) -> None:
    """Write report.md, report.json, config.yaml, loss.png, layers.png and samples.png into `folder`.

    `about` says in words what a reader must know to repeat it: the command, the machine, the versions.
    """
    (folder / "config.yaml").write_text(configuration.to_yaml(config))
    (folder / "report.json").write_text(json.dumps(_to_json(comparison, config, about), indent=1) + "\n")
    (folder / "report.md").write_text(_to_markdown(comparison, about))
    _plot_losses(comparison, folder / "loss.png")
    _plot_layers(comparison, folder / "layers.png")
    _plot_samples(comparison, folder / "samples.png")


_SUMMARY_HEAD = (
    "check", "compared", "max abs", "mean abs", "relative L2", "cosine", "within", "tolerance", "used", "worst", "",
)
_ROW_HEAD = ("", "numbers", "max abs", "mean abs", "relative L2", "cosine", "within", "used", "")


def _summary_cells(comparison: Comparison) -> list[tuple[str, ...]]:
    return [
        (row.check, str(count), *_figures(row), f"{row.tolerance:g}", _percent(row.used), worst.name, _word(row))
        for row, worst, count in comparison.summary()
    ]


def _figures(row: Row) -> tuple[str, ...]:
    errors = tuple(f"{value:.1e}" for value in (row.max_abs, row.mean_abs, row.relative_l2))
    return (*errors, f"{row.cosine:.8f}", _percent(math.floor(row.share * 1e5) / 1e5))  # 100 % means all


def _percent(value: float) -> str:
    return f"{100 * value:.4g} %"


def _word(row: Row) -> str:
    return "pass" if row.passed else "FAIL"


def _to_markdown(comparison: Comparison, about: dict[str, str]) -> str:
    def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
        return ["", *(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)), ""]

    text = ["# Against PyTorch", "", f"**{verdict(comparison)}**"]
    text += table(("", ""), [(key, f"`{value}`") for key, value in about.items()])
    text += ["## Summary", "", "Of each check the worst figure; `used` is the error as a share of the tolerance."]
    text += table(_SUMMARY_HEAD, _summary_cells(comparison))
    text += [f"- **{check}** (tolerance {TOLERANCES[check]:g}): {EXPLANATIONS[check]}." for check in TOLERANCES]
    text += [f"- {note}" for note in comparison.notes]
    for name in ("loss", "layers", "samples"):
        text += ["", f"![{name}]({name}.png)"]
    for check in TOLERANCES:
        rows = [row for row in comparison.rows if row.check == check]
        text += ["", f"## {check[0].upper()}{check[1:]}"]
        text += table(_ROW_HEAD, [
            (f"`{row.name}`", str(row.size), *_figures(row), _percent(row.used), f"{_word(row)} {row.note}".strip())
            for row in rows
        ])
    return "\n".join(text)


def _to_json(comparison: Comparison, config: Config, about: dict[str, str]) -> dict[str, Any]:
    def plain(row: Row) -> dict[str, Any]:
        fields = {**dataclasses.asdict(row), "passed": row.passed}
        # JSON has no infinity.
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in fields.items()
        }

    first = comparison.first_broken
    return {
        "passed": comparison.passed, "verdict": verdict(comparison), "first_broken": first and plain(first),
        "about": about, "config": dataclasses.asdict(config),
        "summary": [{**plain(row), "worst": worst.name, "compared": n} for row, worst, n in comparison.summary()],
        "losses": dict(zip(("ours", "torch"), comparison.losses)), "notes": comparison.notes,
        "rows": [plain(row) for row in comparison.rows],
    }


def _plot_losses(comparison: Comparison, path: Path) -> None:
    ours, theirs = (np.array(losses) for losses in comparison.losses)
    steps = np.arange(1, len(ours) + 1)
    tolerances = [row.tolerance for row in comparison.rows if row.check == "loss curve"]
    figure = Figure(figsize=(7, 6))
    curves, difference = figure.subplots(2, 1, sharex=True)
    curves.plot(steps, ours, label="ms_diffusion", color="tab:blue", linewidth=2.5, alpha=0.6)
    curves.plot(steps, theirs, label="PyTorch", color="black", linewidth=1, linestyle="--")
    curves.set(ylabel="loss", yscale="log")
    curves.legend()
    difference.plot(steps, np.abs(ours - theirs) / np.abs(theirs), color="tab:red", linewidth=1, marker=".")
    difference.plot(steps, tolerances, color="gray", linestyle=":")
    difference.set(xlabel="step", ylabel="relative difference\n(dotted: tolerance)")
    difference.xaxis.get_major_locator().set_params(integer=True)
    # A difference of nothing has no logarithm.
    difference.set_yscale("symlog", linthresh=1e-8)
    difference.set_ylim(bottom=0)
    for axis in (curves, difference):
        axis.grid(alpha=0.3, which="both")
    _save(figure, path)


def _plot_layers(comparison: Comparison, path: Path) -> None:
    # Where a layer has several rows, the worst.
    worst = {}
    for row in comparison.rows:
        if row.check == "layer outputs" and not row.used <= getattr(worst.get(row.name), "used", -1.0):
            worst[row.name] = row
    rows = list(worst.values())
    figure = Figure(figsize=(8, 1.5 + 0.13 * len(rows)))
    axis = figure.subplots()
    places = np.arange(len(rows))
    colours = ["tab:blue" if row.passed else "tab:red" for row in rows]
    axis.barh(places, [row.max_abs for row in rows], color=colours)
    axis.axvline(rows[0].tolerance, color="gray", linestyle=":")
    axis.set_yticks(places, [row.name for row in rows], fontsize=6)
    axis.invert_yaxis()
    axis.margins(y=0.005)
    axis.set_xscale("symlog", linthresh=1e-8)
    axis.set_xlim(0, 3 * np.nanmax([rows[0].tolerance, *(row.max_abs for row in rows)]))
    axis.set_xlabel("largest absolute error of the layer's output, on PyTorch's input (dotted: tolerance)")
    axis.grid(alpha=0.3, axis="x")
    _save(figure, path)


def _plot_samples(comparison: Comparison, path: Path) -> None:
    ours, theirs = (np.nan_to_num(images[:8]) for images in comparison.samples)
    difference = np.abs(ours - theirs).max(axis=1, keepdims=True)
    figure = Figure(figsize=(1.3 * len(ours) + 1.2, 4.4), layout="constrained")
    axes = figure.subplots(3, len(ours), squeeze=False)
    for column, images in enumerate(zip(to_uint8(ours), to_uint8(theirs))):
        for axis, image in zip(axes[:, column], images):
            axis.imshow(to_picture(image), cmap="gray", vmin=0, vmax=255)
        shown = axes[2, column].imshow(difference[column, 0], cmap="magma", vmin=0, vmax=difference.max() or 1)
    for axis, name in zip(axes[:, 0], ("ms_diffusion", "PyTorch", "difference")):
        axis.set_ylabel(name)
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=axes.ravel().tolist(), location="bottom", shrink=0.6, aspect=50)
    figure.savefig(path, dpi=120)


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
