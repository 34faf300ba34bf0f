"""The verb ``medfusion weights``: pretrained files that measurements use."""

from __future__ import annotations

import argparse
from typing import Any


def add_weights(subparsers: Any) -> None:
    """Add ``medfusion weights``, with a sub-command per action."""
    parser = subparsers.add_parser("weights", help="pretrained weights files that measurements use")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="list the files, and which are on this machine")
    listing.set_defaults(handler=_list)
    verify = actions.add_parser(
        "verify", help="compare the checksums of the files on this machine; exit code 2 if one differs"
    )
    verify.set_defaults(handler=_verify)
    adding = actions.add_parser("add", help="add a file that was downloaded elsewhere")
    adding.add_argument("file", metavar="FILE", help="the file, identified by its checksum")
    adding.set_defaults(handler=_add)
    fetching = actions.add_parser("fetch", help="download a file, on a machine with internet")
    fetching.add_argument("name", metavar="NAME", help="a name shown by list")
    fetching.set_defaults(handler=_fetch)


def _list(arguments: argparse.Namespace) -> int:
    from medfusion_monai.weights.pretrained import KNOWN, place, weights_folder

    for name, known in KNOWN.items():
        here = "here" if place(name).is_file() else "missing"
        print(f"{name:<14}{here:<9}{known.mebibytes:>4} MiB  {known.purpose}")
        print(f"{'':<14}SHA-256 {known.sha256}\n{'':<14}{known.url}")
    print(weights_folder())
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from medfusion_monai.weights.pretrained import KNOWN, how_to_get, place, state_of

    states = {name: state_of(name) for name in KNOWN}
    for name, state in states.items():
        print(f"{name:<14}{state:<9}{place(name)}")
    damaged = [name for name, state in states.items() if state == "damaged"]
    if damaged:
        raise ValueError(f"damaged: {', '.join(damaged)}. {' '.join(how_to_get(name) for name in damaged)}")
    return 0


def _add(arguments: argparse.Namespace) -> int:
    from medfusion_monai.weights.pretrained import add

    name, path = add(arguments.file)
    print(f"{name}  {path}")
    return 0


def _fetch(arguments: argparse.Namespace) -> int:
    from medfusion_monai.weights.pretrained import fetch

    print(fetch(arguments.name))
    return 0
