"""Check that each operator of the compiled steps is documented for a device, which need not be here.

  python scripts/check_operators.py --target Ascend
  python scripts/check_operators.py --target GPU --config configs/digits.yaml --json operators.json

Exit status 1 and the offenders' names where an operator is not documented for the device, where a tensor is float64,
and where a shape is dynamic.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Literal, Optional

from ms_diffusion import operator_support
from ms_diffusion.config import Parser
from ms_diffusion.errors import check_writable, exit_on_user_error

CONFIGS = Path(__file__).parents[1] / "configs"


def main() -> None:
    """Parse, compile, look up, print."""
    parser = Parser(description=__doc__, usage="%(prog)s --target DEVICE [options]")
    parser.add_argument("--target", type=Literal["Ascend", "GPU", "CPU"], required=True, help="the device")
    parser.add_argument("--config", type=str, nargs="+", default=None, help="YAML files; all of configs/ if none")
    parser.add_argument("--json", type=Optional[str], default=None, help="the table as a file")
    options = parser.parse_args()
    if options.json:
        check_writable(options.json, [".json"])
    paths = options.config or sorted(map(str, CONFIGS.glob("*.yaml")))
    rows = operator_support.check(operator_support.graphs_of(paths, options.target), options.target)
    print(operator_support.report(rows, options.target))
    if options.json:
        Path(options.json).write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    sys.exit(1 if any(row.offences for row in rows) else 0)


if __name__ == "__main__":
    exit_on_user_error(main)
