"""Train a diffusion model into a run folder.

  python scripts/train.py --config configs/digits.yaml --out runs/digits
  python scripts/train.py --config configs/digits.yaml --out runs/digits --train.steps 500 --train.lr 2e-4
  python scripts/train.py --resume runs/digits --train.steps 4000
"""

import signal
import sys
from contextlib import ExitStack
from pathlib import Path

if __name__ == "__main__":
    # Before the imports start threads, which inherit it: `interrupt.hear_sigint` says why.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

from ms_diffusion import checkpoint, config, distributed, graphs, interrupt, native, runtime
from ms_diffusion.data import make_dataset
from ms_diffusion.errors import UserError, exit_on_user_error
from ms_diffusion.training import train


def main() -> None:
    """Parse, build, train, and say where the results are."""
    parser = config.Parser(description=__doc__, usage="%(prog)s (--out DIR | --resume DIR) [options]")
    config.add_options(parser)
    parser.add_argument("--out", type=str, default=None, help="run folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    parser.add_argument("--resume", type=str, default=None, help="run folder to continue from its last checkpoint")
    options = parser.parse_args()
    if (options.out is None) == (options.resume is None):
        raise UserError("give either --out FOLDER, to start a run, or --resume FOLDER, to continue one")
    if options.resume is not None and options.overwrite:
        raise UserError("--resume continues the run and --overwrite deletes it: give one of them")

    if options.resume is not None:
        saved = checkpoint.read_config(options.resume)
        options = parser.parse_args([f"--config={options.resume}/config.yaml", *sys.argv[1:]])
        settings = config.from_namespace(parser, options)
        checkpoint.check_resumable(saved, settings)
    else:
        settings = config.from_namespace(parser, options)
    device = runtime.setup(settings.runtime)
    runtime.require_precision(settings.train.precision)
    graphs.keep(config.to_yaml(settings), native.library())
    dataset = make_dataset(settings.data, settings.model.channels, settings.model.num_classes)
    folder, resume = Path(options.resume or options.out), options.resume is not None
    with ExitStack() as held:
        if runtime.rank() == 0 and resume:
            held.enter_context(checkpoint.open_run(folder))
        elif runtime.rank() == 0:
            held.enter_context(checkpoint.new_run(folder, settings, runtime.versions(), options.overwrite))
        distributed.barrier()
        folder.mkdir(parents=True, exist_ok=True)  # where the hosts share no disk
        print(config.to_yaml(settings))
        if resume and settings.train.steps != saved.train.steps and settings.train.lr_decay_steps is None:
            print(f"the learning rate's cosine now ends at step {settings.train.steps}, not {saved.train.steps}")
        print(f"{len(dataset)} images of {dataset.name}; {device}, {settings.runtime.mode} mode; run folder {folder}")
        status = train(settings, dataset, folder, resume)
    if runtime.rank() == 0:
        for title, name in (("loss curve", "loss.png"), ("samples", "samples"), ("weights", "checkpoints")):
            if (folder / name).exists():
                print(f"{title + ':':11} {folder / name}")
    sys.exit(status)


if __name__ == "__main__":
    interrupt.hear_sigint()
    exit_on_user_error(main)
