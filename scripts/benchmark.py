"""Measure this library beside PyTorch, in turns within one run: steps, sampling, first calls, memory.

  python scripts/benchmark.py --json benchmark.json
  python scripts/benchmark.py --config configs/digits.yaml --workloads training --contestants native torch
  python scripts/benchmark.py --growth --contestants native torch --image_sizes 8 16 32 --dims 16 32 64
  python scripts/benchmark.py --operators --config configs/fashion_mnist.yaml

The first command takes about an hour on two idle cores, half of it for sampling Fashion-MNIST: there a round, which is
20 steps of 64 images by each of six contestants, takes 50 s, and there are --repeats of them and two before. A round of
its training at batch 64 takes 9 s, a round of sampling digits 6 s. For each workload each contestant starts anew: 2 to
5 s, and 3 to 10 s more where it compiles a graph. The second command takes a minute. Restrict --config, --workloads,
--batch_sizes and --contestants before --repeats, which the percentiles need. Leave the machine alone meanwhile: beside
other work a step of PyTorch's took a hundred times as long, and one of ours five times.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import Literal, Optional

from jsonargparse.typing import PositiveInt

from ms_diffusion import benchmark, config, workloads
from ms_diffusion.contestants import CONTESTANTS, check_available
from ms_diffusion.errors import UserError, check_writable, exit_on_user_error


def main() -> None:
    """Parse, measure, print the table, and write the JSON after each workload."""
    parser = config.Parser(description=__doc__, usage="%(prog)s [--config FILE ...] [options]")
    parser.add_argument(
        "--config", action="append", type=str, default=None,
        help="YAML file; give it once for each (null: configs/digits.yaml and configs/fashion_mnist.yaml)",
    )
    parser.add_argument(
        "--contestants", nargs="+", type=Literal[CONTESTANTS], default=None,
        help="who takes part, in the order of the turns (null: all; compiled ones and PyTorch's for --operators)",
    )
    parser.add_argument(
        "--workloads", nargs="+", type=Literal[workloads.STEPS], default=None,
        help=f"what each does in its turn (null: {', '.join(workloads.STEPS)})",
    )
    parser.add_argument(
        "--batch_sizes", nargs="+", type=PositiveInt, default=None,
        help="images in a call (null: 1, 16 and 64; 16 for --growth; train.batch_size for --operators)",
    )
    parser.add_argument("--repeats", type=PositiveInt, default=30, help="rounds of turns, after the warm-up")
    parser.add_argument(
        "--threads", type=Optional[PositiveInt], default=None, help="cores that each may use (null: all)"
    )
    parser.add_argument("--growth", action="store_true", help="instead: training at each width and image size")
    parser.add_argument(
        "--image_sizes", nargs="+", type=PositiveInt, default=None, help="of --growth, in pixels (null: 8, 16 and 32)"
    )
    parser.add_argument(
        "--dims", nargs="+", type=PositiveInt, default=None, help="widths of --growth (null: 16, 32 and 64)"
    )
    parser.add_argument("--operators", action="store_true", help="instead: single layers, forward and backward")
    parser.add_argument("--json", type=Optional[str], default=None, help="file for every round of every figure")
    options = parser.parse_args()
    contestants = options.contestants or [
        name for name in CONTESTANTS if not (options.operators and name.endswith("pynative"))
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = options.threads or cores
    if len(set(contestants)) < len(contestants):
        raise UserError("--contestants names one of them twice")
    if threads > cores:
        raise UserError(f"--threads is {threads}, and there are {cores} cores")
    if options.operators and (options.growth or any(name.endswith("pynative") for name in contestants)):
        raise UserError("--operators compares compiled layers: leave out --growth and the contestants in PyNative")
    if options.workloads and (options.growth or options.operators):
        raise UserError("--workloads restricts the whole network's steps: leave it out of --growth and --operators")
    if not options.growth and (options.image_sizes or options.dims):
        raise UserError("--image_sizes and --dims are for --growth")
    check_available(contestants)
    if options.json:
        check_writable(options.json, [".json"])

    loads = []
    for source in dict.fromkeys(options.config or ["configs/digits.yaml", "configs/fashion_mnist.yaml"]):
        settings = config.load(source)
        if options.operators:
            for size in options.batch_sizes or [settings.train.batch_size]:
                loads.append(workloads.operators(settings, source, size))
        elif options.growth:
            loads += workloads.growth(
                settings, source, options.batch_sizes or [16], options.image_sizes or [8, 16, 32],
                options.dims or [16, 32, 64],
            )
        else:
            loads += workloads.steps(
                settings, source, options.workloads or workloads.STEPS, options.batch_sizes or [1, 16, 64]
            )

    command = shlex.join([Path(sys.executable).name, *sys.argv])
    about = benchmark.about_this_run(command, contestants, options.repeats, threads)
    for name, value in about.items():
        print(f"{name}: {value}")
    rows = []
    for load in loads:
        rows += benchmark.measure(load, contestants, options.repeats, threads)
        if options.json:
            Path(options.json).write_text(benchmark.to_json(rows, about))
    print(benchmark.cross_table(rows) if options.growth or options.operators else benchmark.steps_table(rows))
    if options.json:
        print(f"every round: {options.json}")


if __name__ == "__main__":
    exit_on_user_error(main)
