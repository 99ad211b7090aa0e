"""Compile the native CPU kernels for this machine; without them MindSpore's own operators serve.

  python scripts/build_kernels.py

Exit status 2 and one line say why there are none.
"""

import time

from ms_diffusion import native_build
from ms_diffusion.config import Parser
from ms_diffusion.errors import UserError, exit_on_user_error


def main() -> None:
    """Parse, build, say where the library is."""
    parser = Parser(description=__doc__, usage="%(prog)s [options]")
    parser.add_argument(
        "--sanitize", action="store_true", help="for development: with GCC's address and undefined sanitizers"
    )
    parser.add_argument("--force", action="store_true", help="compile again what is there already")
    options = parser.parse_args()
    began = time.perf_counter()
    try:
        library = None if options.force else native_build.built(sanitize=options.sanitize)
        how = "already there"
        if library is None:
            library = native_build.build(sanitize=options.sanitize, force=options.force)
            how = f"compiled in {time.perf_counter() - began:.0f} s"
    except native_build.NativeUnavailable as reason:
        raise UserError(f"no native kernels, MindSpore's own operators serve: {reason}") from reason
    print(f"native kernels: {library} ({how})")


if __name__ == "__main__":
    exit_on_user_error(main)
