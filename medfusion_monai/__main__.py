"""``python -m medfusion_monai``: the program ``medfusion``, also where the package is not installed."""

from medfusion_monai.cli import entry_point

entry_point()
