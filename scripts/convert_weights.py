"""Convert weights between PyTorch and MindSpore; the network's options travel in the file.

  python scripts/convert_weights.py model.pt model.safetensors
  python scripts/convert_weights.py runs/digits digits.pt
  python scripts/convert_weights.py results/model-10.pt ema.ckpt --prefix ema.denoise_fn.

DST's suffix decides: .pt and .pth have PyTorch's names, .ckpt MindSpore's, .safetensors the other side than SRC.
"""

from pathlib import Path
from typing import Literal, Optional

from ms_diffusion import runtime, weight_files
from ms_diffusion.config import Parser, RuntimeConfig
from ms_diffusion.errors import UserError, check_writable, exit_on_user_error

SIDES = {"torch": "PyTorch", "mindspore": "MindSpore"}


def main() -> None:
    """Parse, read, check, write."""
    parser = Parser(description=__doc__, usage="%(prog)s SRC DST [options]")
    parser.add_argument("src", metavar="SRC", type=str, help=".pt, .pth, .safetensors, .ckpt, or a run folder")
    parser.add_argument("dst", metavar="DST", type=str, help=".pt, .pth, .safetensors or .ckpt")
    parser.add_argument(
        "--names", type=Optional[Literal["torch", "mindspore"]], default=None,
        help="whose names a .safetensors file gets; null means the other side than SRC's",
    )
    parser.add_argument(
        "--prefix", type=str, default="",
        help="the network is what has this before its names in SRC; the rest is left out",
    )
    parser.add_argument(
        "--gelu", type=Optional[Literal["erf", "tanh"]], default=None, help="model.gelu, if SRC does not say it"
    )
    parser.add_argument(
        "--scale_values", type=Optional[bool], default=None, help="model.scale_values, if SRC does not say it"
    )
    parser.add_argument(
        "--resnet_groups", type=Optional[int], default=None, help="model.resnet_groups, if SRC does not say it"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DST")
    options = parser.parse_args()
    dst = Path(options.dst)
    weight_files.check_suffix(dst)
    check_writable(options.dst, [dst.suffix])
    if dst.exists() and not options.overwrite:
        raise UserError(f"{dst} exists: choose another name, or replace it with --overwrite")

    runtime.setup(RuntimeConfig(device="CPU"))
    unseen = {name: options[name] for name in ("gelu", "scale_values", "resnet_groups") if options[name] is not None}
    weights = weight_files.read_weights(options.src, options.prefix, **unseen)
    names = weight_files.write_weights(dst, weights, options.names)

    if weights.assumed:
        print(f"{options.src}: {weights.assumed}")
    if weights.left_out:
        print(f"{options.src}: left out {weights.left_out} entries that are not the network's")
    total = sum(value.size for value in weights.tensors.values())
    print(f"{total:,} weights of {weights.config}")
    print(f"{SIDES[weights.names]}'s names in {options.src}, {SIDES[names]}'s in {dst}")


if __name__ == "__main__":
    exit_on_user_error(main)
