"""The verb ``medfusion label``: studies in Slicer or OHIF, by MONAI Label's server."""

from __future__ import annotations

import argparse
from typing import Any

from medfusion_monai.cli.arguments import bundle_path, input_path, positive


def add_label(subparsers: Any) -> None:
    """Add ``medfusion label``."""
    parser = subparsers.add_parser("label", help="start MONAI Label's server with edits and classes of a model")
    parser.add_argument(
        "--model", type=bundle_path, required=True, help="weights, or a folder, bundle or zip that contains them"
    )
    parser.add_argument(
        "--studies",
        type=input_path,
        required=True,
        metavar="PLACE",
        help="folder of images, or URL of a DICOMweb store",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=positive, default=8000, help="port to listen on (8000)")
    parser.add_argument(
        "--user",
        help="of the DICOMweb store; its password is read from MEDFUSION_PACS_PASSWORD, a token from "
        "MEDFUSION_PACS_TOKEN",
    )
    parser.add_argument(
        "--temperature", type=float, help="of medfusion_monai.editing.calibrate, for the probabilities of classes"
    )
    parser.add_argument(
        "--refuse-copies-of",
        type=input_path,
        metavar="AUDIT",
        help="folder of an audit: generated images too near to a training image are not shown",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="web site whose pages may use the server, as https://HOST of an OHIF viewer; repeatable",
    )
    parser.set_defaults(handler=_label)


def _label(arguments: argparse.Namespace) -> int:
    from medfusion_monai.apps.monailabel.label_server import start_label_server

    start_label_server(
        arguments.model,
        arguments.studies,
        arguments.host,
        arguments.port,
        arguments.user,
        arguments.temperature,
        arguments.refuse_copies_of,
        arguments.allow_origin,
    )
    return 0
