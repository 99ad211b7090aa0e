"""Draw the loss curve of a run, alone or beside another run's points.

  python scripts/plot_loss.py --run runs/fashion_mnist --reference docs/tutorial_loss.json --out loss.png
"""

from pathlib import Path
from typing import Optional

from ms_diffusion import visualize
from ms_diffusion.config import Parser
from ms_diffusion.errors import UserError, check_writable, exit_on_user_error


def main() -> None:
    """Parse, draw."""
    parser = Parser(description=__doc__, usage="%(prog)s --run DIR [options]")
    parser.add_argument("--run", type=str, required=True, help="run folder")
    parser.add_argument("--reference", type=Optional[str], default=None, help="JSON file with steps, loss and source")
    parser.add_argument("--out", type=str, default="loss.png", help="the figure")
    options = parser.parse_args()
    check_writable(options.out, visualize.picture_suffixes())
    metrics = Path(options.run) / "metrics.jsonl"
    if not metrics.is_file() or not metrics.read_text():
        raise UserError(f"{options.run} holds no metrics.jsonl with a step in it: give the folder of a run")
    try:
        visualize.plot_loss(metrics, options.out, options.reference)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot draw {options.run} beside {options.reference}: {error!r}") from error
    print(f"loss curve: {options.out}")


if __name__ == "__main__":
    exit_on_user_error(main)
