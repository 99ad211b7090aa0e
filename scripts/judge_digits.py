"""Let a classifier that was trained on the real digits look at samples of the digits.

  python scripts/judge_digits.py --npz samples.npz

Of samples of asked labels it also says how many show what was asked.
"""

import numpy as np

from ms_diffusion.config import Parser
from ms_diffusion.errors import UserError, exit_on_user_error
from ms_diffusion.evaluation import judge_accuracy, judge_digits


def main() -> None:
    """Parse, load, judge, print."""
    parser = Parser(description=__doc__, usage="%(prog)s --npz FILE [options]")
    parser.add_argument("--npz", type=str, required=True, help="samples written by sample.py --npz")
    parser.add_argument("--sure", type=float, default=0.8, help="probability from which a digit counts as recognised")
    options = parser.parse_args()
    try:
        with np.load(options.npz) as arrays:
            images, labels = arrays["images"], arrays.get("labels")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{options.npz} holds no samples of sample.py --npz: {error}") from error
    if images.shape[1:] != (8, 8, 1):
        raise UserError(f"{options.npz} holds images of {images.shape[1:]}: the judge knows digits of (8, 8, 1)")

    digits, probabilities = judge_digits(images.transpose(0, 3, 1, 2))
    sure = digits[probabilities >= options.sure]
    counts = np.bincount(sure, minlength=10)
    print("digit:      " + " ".join(f"{digit:4d}" for digit in range(10)))
    print("recognised: " + " ".join(f"{count:4d}" for count in counts))
    print(
        f"{np.count_nonzero(counts)} of 10 digits found; {len(sure)} of {len(images)} images recognised with "
        f"probability {options.sure:g} or more; mean probability {probabilities.mean():.3f}"
    )
    if labels is not None:
        right = np.count_nonzero(digits == labels)
        print(
            f"{right} of {len(images)} images, {right / len(images):.1%}, show the asked label; "
            f"of real digits that the judge has not seen it is right about {judge_accuracy():.1%}"
        )


if __name__ == "__main__":
    exit_on_user_error(main)
