"""Train a classifier of noisy images, for classifier guidance, into a folder.

  python scripts/train_classifier.py --config configs/digits.yaml --model.num_classes 10 --out runs/digits_classifier
"""

from pathlib import Path

import numpy as np

from ms_diffusion import checkpoint, config, graphs, native, runtime
from ms_diffusion.classifier import accuracy
from ms_diffusion.classifier_training import train_classifier
from ms_diffusion.data import make_dataset
from ms_diffusion.diffusion import build_diffusion
from ms_diffusion.errors import UserError, exit_on_user_error


def main() -> None:
    """Parse, build, train, and say how much the classifier sees through the noise."""
    parser = config.Parser(description=__doc__, usage="%(prog)s --out DIR [options]")
    config.add_options(parser)
    parser.add_argument("--out", type=str, required=True, help="folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder in --out")
    options = parser.parse_args()
    settings = config.from_namespace(parser, options)
    if not settings.model.num_classes:
        raise UserError("model.num_classes is 0: give the number of classes of the data")
    runtime.setup(settings.runtime)
    runtime.require_precision(settings.train.precision)
    graphs.keep(config.to_yaml(settings), native.library())
    dataset = make_dataset(settings.data, settings.model.channels, settings.model.num_classes)
    with checkpoint.new_run(options.out, settings, runtime.versions(), options.overwrite) as folder:
        model = train_classifier(settings, dataset, Path(folder))
    diffusion, first = build_diffusion(settings.diffusion), np.arange(min(500, len(dataset)))
    print(f"accuracy on {len(first)} of the training images, by noise level:")
    for t in np.linspace(0, diffusion.timesteps - 1, 6).astype(int):
        share = accuracy(model, diffusion, dataset.batch(first), dataset.labels[first], int(t))
        print(f"  t = {t:4d}: {share:.3f}")
    print(f"classifier: {options.out}")


if __name__ == "__main__":
    exit_on_user_error(main)
