"""The verb ``medfusion check``, to be run before a training."""

from __future__ import annotations

import argparse
from typing import Any

from medfusion_monai.cli.arguments import add_settings, settings_of


def add_check(subparsers: Any) -> None:
    """Add ``medfusion check``."""
    parser = subparsers.add_parser("check", help="check a training without starting it, and report all problems")
    parser.add_argument("config", nargs="+", help="config files as for the bundle runner, e.g. configs/train.yaml")
    parser.add_argument(
        "--run",
        default="training",
        help="training, train_autoencoder, train_diffusion, train_few_steps or train_gan (training)",
    )
    parser.add_argument(
        "--contact-sheet", metavar="FILE", help="PNG to write with a sample of the images as the networks will see them"
    )
    add_settings(parser, "a key as given to the training", "dataset_dir=/data/cxr")
    parser.set_defaults(handler=_check)


def _check(arguments: argparse.Namespace) -> int:
    from medfusion_monai.bundle.keys import refuse_unknown_keys

    overrides = settings_of(arguments)
    refuse_unknown_keys(arguments.config, overrides)  # before importing MONAI, which takes seconds

    from medfusion_monai.training.preflight.run_checks import problems_of
    from medfusion_monai.training.preflight.table import check_config, table

    outcomes = check_config(arguments.config, overrides, arguments.run, arguments.contact_sheet)
    print(table(outcomes))
    return 2 if problems_of(outcomes) else 0
