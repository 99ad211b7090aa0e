"""What the harnesses of exercises that build a Cell share, in the student's process."""

from __future__ import annotations

from typing import Sequence, Tuple

import numpy as np
from mindspore import Tensor, nn


def set_weights(cell: nn.Cell, weights: Sequence[Tuple[str, np.ndarray]]) -> None:
    """Give each parameter of `cell` its value. Raises ValueError where there are others, or of other shapes."""
    wanted, found = dict(weights), dict(cell.parameters_and_names())
    if wanted.keys() != found.keys():
        missing, others = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
        raise ValueError(
            f"the layers are not those of the docstring: without {', '.join(missing) or 'nothing'}, "
            f"besides {', '.join(others) or 'nothing'}"
        )
    for name, value in wanted.items():
        if found[name].shape != value.shape:
            raise ValueError(f"{name} has shape {found[name].shape} instead of {value.shape}")
        found[name].set_data(Tensor(value))
