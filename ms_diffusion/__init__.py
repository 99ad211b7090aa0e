"""Denoising diffusion on MindSpore: small, exact, tested."""

import sys

if not (3, 9) <= sys.version_info[:2] <= (3, 12):
    raise ImportError(
        f"ms_diffusion needs Python 3.9 to 3.12, because MindSpore 2.8.0 has wheels for these; this is "
        f"{sys.version_info[0]}.{sys.version_info[1]}"
    )

from ms_diffusion import runtime
from ms_diffusion.checkpoint import load_run
from ms_diffusion.config import Config
from ms_diffusion.diffusion import GaussianDiffusion
from ms_diffusion.errors import UserError
from ms_diffusion.unet import Unet
from ms_diffusion.weight_files import load_model

__version__ = "0.1.0"
__all__ = ["Config", "GaussianDiffusion", "Unet", "UserError", "load_model", "load_run", "runtime"]
