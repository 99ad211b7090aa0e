"""How many bits per dimension the images of a run cost its model: the variational bound, and the density of the ODE.

  python scripts/likelihood.py --run runs/digits --num 256 --out likelihood.png
  python scripts/likelihood.py --run runs/digits --num 256 --ode 64 --probes 4
"""

from typing import Callable, Literal, Optional, Tuple

import numpy as np
from jsonargparse.typing import NonNegativeInt, PositiveInt
from mindspore import nn

from ms_diffusion import checkpoint, graphs, likelihood, native, runtime, visualize
from ms_diffusion.config import Parser, RuntimeConfig, to_yaml
from ms_diffusion.data import make_dataset
from ms_diffusion.errors import UserError, check_writable, exit_on_user_error
from ms_diffusion.guidance import Guided
from ms_diffusion.likelihood import bits

ROWS = 20


def main() -> None:
    """Parse, load, measure, print, draw."""
    parser = Parser(description=__doc__, usage="%(prog)s --run DIR [options]")
    parser.add_argument("--run", type=str, required=True, help="run folder; the images are those that it trained on")
    parser.add_argument(
        "--weights", type=Optional[Literal["ema", "model"]], default=None,
        help="ema, the moving average, or model, those of the last step; the average where there is one",
    )
    parser.add_argument("--num", type=PositiveInt, default=64, help="images, from the first; all where there are fewer")
    parser.add_argument(
        "--labels", type=Optional[Literal["own", "none"]], default=None,
        help="whether the network is told each image's label; null means own where it knows labels",
    )
    parser.add_argument("--ode", type=NonNegativeInt, default=0, help="images of these whose density the ODE tells")
    parser.add_argument("--probes", type=PositiveInt, default=4, help="of Hutchinson's estimator, for each of them")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="of the noise and the probes")
    parser.add_argument("--batch_size", type=PositiveInt, default=64, help="images at a time; changes no figure")
    parser.add_argument("--out", type=str, default="likelihood.png", help="plot of the bound's terms by t")
    parser.add_argument("--runtime", type=RuntimeConfig, default=RuntimeConfig())
    options = parser.parse_args()
    check_writable(options.out, visualize.picture_suffixes())
    if options.ode > options.num:
        raise UserError(f"--ode is {options.ode}, more than the {options.num} images of --num: raise --num too")

    runtime.setup(parser.instantiate(options).runtime)
    run = checkpoint.load_run(options.run, options.weights)
    classes, jit = told_classes(run, options.labels), options.runtime.mode == "graph"
    graphs.keep(f"{to_yaml(run.config)}labels of {classes} classes are told\n", native.library())
    dataset = make_dataset(run.config.data, run.config.model.channels, classes)
    images = dataset.batch(range(min(options.num, len(dataset))))
    labels = dataset.labels[: len(images)] if classes else None
    told = "" if labels is None else ", each told its label"
    print(f"{len(images)} images of {dataset.name}{told}; {run.step} training steps ({run.weights})")

    model, before = tell(run, labels, min(len(images), options.batch_size))
    bound = likelihood.bound_of_images(
        likelihood.bound_step(run.diffusion, model, jit), run.diffusion.schedule, images, options.seed,
        batch_size=options.batch_size, progress=True, before=before,
    )
    terms, prior = bits(bound.terms.mean(axis=0)), bits(bound.prior.mean())
    rows = [("L_0", terms[0])]
    for part in np.array_split(np.arange(1, len(terms)), min(ROWS, len(terms) - 1)):
        rows.append((f"L_{{t-1}}, t = {part[0]} to {part[-1]}", terms[part].sum()))
    for name, value in (*rows, ("L_T", prior)):
        print(f"{name:28}{value:10.4f}")
    print(f"variational bound: {_with_error(bits(bound.total))} bits/dim (standard error over images)")
    visualize.plot_bound(terms, prior, options.out)
    print(f"plot: {options.out}")
    if options.ode:
        chosen = images[: options.ode]
        model, before = tell(run, labels, min(len(chosen) * options.probes, options.batch_size))
        estimates = bits(likelihood.ode_bound_of_images(
            likelihood.ode_step(run.diffusion, model, jit), run.diffusion, chosen, options.seed,
            probes=options.probes, batch_size=options.batch_size, progress=True, before=before,
        ))
        error = likelihood.hutchinson_error(estimates)
        print(
            f"probability-flow ODE: {_with_error(estimates.mean(axis=1))} bits/dim (standard error over "
            f"{len(estimates)} images; {error:.4f} of it is Hutchinson's estimator with {options.probes} probes)"
        )


def told_classes(run: checkpoint.Run, choice: Optional[str]) -> int:
    """Of how many classes the network is told one for each image; 0 where it is told none."""
    classes = run.config.model.num_classes
    if choice == "own" and not classes:
        raise UserError(f"--labels is own, but {run.folder} knows no labels (model.num_classes is 0): leave it out")
    if choice == "none" and classes and not run.config.train.label_drop:
        raise UserError(f"--labels is none, but {run.folder} never trained so (train.label_drop is 0): leave it out")
    return 0 if choice == "none" else classes


def tell(
    run: checkpoint.Run, labels: Optional[np.ndarray], size: int
) -> Tuple[nn.Cell, Optional[Callable[[np.ndarray], None]]]:
    """A model(x_t, t) for batches of `size`, and what tells it the labels of the images of these numbers."""
    if labels is None:
        return run.model, None
    model = Guided(run.model, np.resize(labels, size), null=run.config.model.num_classes)
    return model, lambda images: model.tell(labels[images])


def _with_error(values: np.ndarray) -> str:
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{values.mean():.4f} +- {error:.4f}"


if __name__ == "__main__":
    exit_on_user_error(main)
