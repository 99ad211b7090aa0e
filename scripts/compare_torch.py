"""Compare the network, the process and the training with their PyTorch twins, step by step.

  python scripts/compare_torch.py --config configs/digits.yaml --out comparisons/digits
  python scripts/compare_torch.py --config configs/fashion_mnist.yaml --out comparisons/fashion --steps 300
  python scripts/compare_torch.py --run runs/digits --out comparisons/trained --runtime.mode pynative

The exit status is 0 where every check is within its tolerance; 1 where one is not, and the last line names the first
layer that broke; 2 for a mistake on the command line.
"""

import importlib.util
import shlex
import sys
from pathlib import Path
from typing import Optional

from jsonargparse.typing import PositiveFloat, PositiveInt

from ms_diffusion import checkpoint, comparison_report, config, randomness, runtime
from ms_diffusion.data import make_dataset
from ms_diffusion.errors import UserError, exit_on_user_error
from ms_diffusion.unet import build_unet, init_weights


def main() -> None:
    """Parse, build, compare, write, and print the table."""
    parser = config.Parser(description=__doc__, usage="%(prog)s --out DIR [--config FILE | --run DIR] [options]")
    config.add_options(parser)
    parser.add_argument("--out", type=str, required=True, help="folder to make for the report and its pictures")
    parser.add_argument("--overwrite", action="store_true", help="replace the report in --out")
    parser.add_argument(
        "--run", type=Optional[str], default=None,
        help="run folder whose configuration and trained weights to take, instead of first weights of train.seed",
    )
    parser.add_argument("--steps", type=PositiveInt, default=10, help="training steps of the loss curve")
    parser.add_argument(
        "--sampling_steps", type=PositiveInt, default=50,
        help="reverse steps from noise to image: the process is built anew with so many timesteps; give "
        "diffusion.timesteps to see what a trained run really samples",
    )
    parser.add_argument(
        "--tolerance", type=PositiveFloat, default=1.0,
        help="factor on every tolerance: 10 is ten times looser, 0.1 ten times stricter",
    )
    options = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        raise UserError("PyTorch is not installed: pip install torch==2.13.0 "
                        "--index-url https://download.pytorch.org/whl/cpu")
    from ms_diffusion import comparison

    if options.run is not None:
        if options.config:
            raise UserError("--run brings its own configuration: leave --config out")
        checkpoint.read_config(options.run)
        options = parser.parse_args([f"--config={options.run}/config.yaml", *sys.argv[1:]])
    settings = config.from_namespace(parser, options)
    with comparison_report.new_folder(Path(options.out), options.overwrite) as folder:
        device = runtime.setup(settings.runtime)
        if options.run is None:
            model = build_unet(settings.model)
            init_weights(model, randomness.weights_generator(settings.train.seed))
            source = f"first weights of seed {settings.train.seed}"
        else:
            run = checkpoint.load_run(options.run)
            if run.config.model != settings.model:
                raise UserError("model.* is another on the command line than in the run: its weights would not fit")
            model, source = run.model, f"{options.run} after {run.step} steps"
        dataset = make_dataset(settings.data, settings.model.channels, settings.model.num_classes)
        print(config.to_yaml(settings))
        print(f"{len(dataset)} images of {dataset.name}; {device}, {settings.runtime.mode} mode; {source}")
        result = comparison.compare(
            model, comparison.network_weights(model), settings, dataset, steps=options.steps,
            sampling_steps=options.sampling_steps, tolerance=options.tolerance,
        )
        about = comparison.about_this_machine(settings, shlex.join([Path(sys.executable).name, *sys.argv]), source)
        comparison_report.write_report(result, folder, settings, about)
    print(comparison_report.to_table(result))
    print(f"report: {Path(options.out) / 'report.md'}")
    print(comparison_report.verdict(result))
    if not result.passed:
        sys.exit(1)


if __name__ == "__main__":
    exit_on_user_error(main)
