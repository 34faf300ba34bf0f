"""What the bundles' configs need of MONAI's runner: their folder, values of the command line, reading their files."""

from medfusion_monai.bundle.overrides import accept_overrides
from medfusion_monai.bundle.root import beside, find_root

__all__ = [
    "accept_overrides",
    "beside",
    "find_root",
]
