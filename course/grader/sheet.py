"""The results sheet: one page of HTML that needs nothing else, with the points and what the training made."""

from __future__ import annotations

import base64
import datetime
import hashlib
import html
import io
import json
from functools import partial
from pathlib import Path
from typing import NamedTuple, Optional, Sequence

import numpy as np
from PIL import Image

from course.grader.check import Both
from course.grader.grade import ExerciseResult
from course.grader.submission import File
from ms_diffusion import checkpoint, machine, runtime, samplers, sampling, visualize
from ms_diffusion.config import RuntimeConfig
from ms_diffusion.data import to_uint8
from ms_diffusion.errors import UserError

SAMPLES = 25
"""Images that are sampled where the run holds no picture."""
_LARGEST = 1200
"""Pixels of a picture's longer side on the sheet."""


class Training(NamedTuple):
    """What the sheet shows of a run folder."""

    facts: Sequence[tuple[Both, str]]
    curve: bytes
    """PNG of the loss curve."""
    samples: bytes
    """PNG of a grid of samples."""
    caption: Both


def read_training(folder: str) -> Training:
    """The run's loss curve and its newest picture of samples; without one, a few are sampled now.

    Raises `UserError` where the folder is no run, or what it holds cannot be read.
    """
    run = Path(folder)
    config = checkpoint.read_config(run)
    figures = run / "metrics.jsonl"
    curve = io.BytesIO()
    try:
        lines = [json.loads(line) for line in figures.read_text().splitlines()]
        losses = [float(line["loss"]) for line in lines if line["loss"] is not None]
        steps = int(lines[-1]["step"])
        visualize.plot_loss(figures, curve)
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise UserError(f"{figures} holds no figures of a training: {' '.join(str(error).split())}") from error
    late = losses[-max(1, len(losses) // 10):]
    facts = [
        (Both("data", "数据"), config.data.name),
        (Both("noise", "噪声调度"), f"{config.diffusion.schedule}, T = {config.diffusion.timesteps}"),
        (Both("training steps", "训练步数"), f"{steps}"),
        (Both("images a step", "每步图像数"), f"{config.train.batch_size}"),
        (Both("loss, mean of the last tenth", "损失，最后十分之一的平均"),
         f"{np.mean(late):.4g} ({config.diffusion.loss})" if late else "-"),
    ]
    pictures = sorted((run / "samples").glob("step_*.png"))
    if pictures:
        step = pictures[-1].stem.rpartition("_")[2].lstrip("0") or "0"
        caption = Both(f"samples after step {step}, from the run", f"第 {step} 步之后的样本，取自训练文件夹")
        return Training(facts, curve.getvalue(), _reread(pictures[-1]), caption)
    return Training(facts, curve.getvalue(), *_sample(folder))


def _reread(path: Path) -> bytes:
    """A picture that somebody handed in, decoded and written anew."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.thumbnail((_LARGEST, _LARGEST))
            return _png(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a picture: {' '.join(str(error).split())}") from error


def _sample(folder: str) -> tuple[bytes, Both]:
    runtime.setup(RuntimeConfig())
    run = checkpoint.load_run(folder)
    steps = min(20, run.diffusion.timesteps)
    denoise = run.diffusion.denoiser(run.model, jit=False)
    loop = partial(samplers.ddim, denoise, run.diffusion.schedule, steps=steps)
    images, _ = sampling.sample(loop, steps, run.config.image_shape, SAMPLES, seed=0)
    caption = Both(
        f"sampled for this sheet after step {run.step}: DDIM, {steps} steps, seed 0",
        f"第 {run.step} 步之后为本页采样：DDIM, {steps} 步，种子 0",
    )
    return _png(visualize.make_grid(to_uint8(images))), caption


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def render(
    results: Sequence[ExerciseResult], files: dict[int, File], seed: int, name: Optional[str],
    training: Optional[Training],
) -> str:
    """The page. Everything that came from outside is escaped, and every picture is in it."""
    points, out_of = (sum(getattr(result, key) for result in results) for key in ("points", "out_of"))
    handed_in = b"".join(files[number].name.encode() + files[number].source for number in sorted(files))
    facts = [
        (Both("name", "姓名"), name or "-"),
        (Both("date", "日期"), datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")),
        (Both("points", "得分"), f"{points} / {out_of}"),
        (Both("seed of the inputs", "输入的种子"), f"{seed}"),
        (Both("SHA-256 of what was handed in", "所交文件的 SHA-256"), hashlib.sha256(handed_in).hexdigest()[:16]),
        (Both("versions", "版本"), ", ".join(
            f"{key} {value}" for key, value in runtime.versions().items() if key in ("mindspore", "numpy", "python"))),
        (Both("machine", "机器"), machine.processor()),
    ]
    return _PAGE.format(
        facts=_facts(facts), exercises="".join(map(_exercise, results)), points=points, out_of=out_of,
        training=_training(training),
    )


def _facts(facts: Sequence[tuple[Both, str]]) -> str:
    rows = "".join(f"<tr><th>{_both(key)}</th><td>{html.escape(value)}</td></tr>" for key, value in facts)
    return f'<table class="facts">{rows}</table>'


def _exercise(result: ExerciseResult) -> str:
    rows = "".join(
        f'<tr class="{"full" if row.points == row.out_of else "short"}"><td>{html.escape(row.part)}</td>'
        f"<td><code>{html.escape(row.title)}</code>"
        + (f'<div class="help">{_both(row.help)}</div>' if row.help else "")
        + f"</td><td>{row.points} / {row.out_of}</td></tr>"
        for row in result.rows
    )
    head = f"<th>{result.number}</th><th>{_both(result.title)}</th><th>{result.points} / {result.out_of}</th>"
    return f"<tbody><tr>{head}</tr>{rows}</tbody>"


def _training(training: Optional[Training]) -> str:
    if training is None:
        return f"<p>{_both(Both('No training was handed in.', '没有交训练结果。'))}</p>"
    return _facts(training.facts) + "".join(
        f'<figure><img alt="{html.escape(caption.en)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{_both(caption)}</figcaption></figure>"
        for png, caption in (
            (training.curve, Both("loss and learning rate", "损失与学习率")), (training.samples, training.caption),
        )
    )


def _both(text: Both) -> str:
    en, zh = map(html.escape, text)
    return en if en == zh else f'{en} <span lang="zh">{zh}</span>'


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Diffusion exercises: results</title>
<style>
body {{ font: 15px/1.5 sans-serif; color: #222; max-width: 52em; margin: 2em auto; padding: 0 1em; }}
h1, h2 {{ font-weight: normal; margin: 1.2em 0 .4em; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; vertical-align: top; padding: .25em .6em; border-bottom: 1px solid #ddd; }}
.facts th {{ width: 20em; font-weight: normal; color: #666; }}
.points th {{ background: #f2f2f2; }}
.points th:last-child, .points td:last-child {{ text-align: right; white-space: nowrap; }}
.short td:last-child {{ color: #b00020; }}
.full td:last-child {{ color: #1b6e2e; }}
.help, figcaption, span[lang] {{ color: #666; }}
figure {{ margin: 1.5em 0; }}
img {{ max-width: 100%; }}
</style>
</head>
<body>
<h1>Diffusion exercises: results <span lang="zh">扩散模型练习：成绩单</span></h1>
{facts}
<h2>Exercises <span lang="zh">练习</span></h2>
<table class="points">
{exercises}
<tfoot><tr><th></th><th>total <span lang="zh">总分</span></th><th>{points} / {out_of}</th></tr></tfoot>
</table>
<h2>Training <span lang="zh">训练</span></h2>
{training}
</body>
</html>
"""
