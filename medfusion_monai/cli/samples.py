"""The verbs about samples: ``medfusion card``, ``share`` and ``send``."""

from __future__ import annotations

import argparse
from typing import Any

from medfusion_monai.cli.arguments import bundle_path, input_path


def add_card(subparsers: Any) -> None:
    """Add ``medfusion card``."""
    parser = subparsers.add_parser(
        "card", help="write the card of a folder of samples, with the figures measured on them"
    )
    parser.add_argument("samples", type=input_path, metavar="SAMPLES", help="folder that inference wrote")
    parser.add_argument(
        "--model-file", type=bundle_path, metavar="FILE", help="their weights, or a folder or bundle that contains them"
    )
    parser.add_argument(
        "--report", type=input_path, metavar="FILE", help="report.json of run evaluating or medfusion compare"
    )
    parser.add_argument("--audit", type=input_path, metavar="FILE", help="audit.json of medfusion audit")
    parser.set_defaults(handler=_card)


def add_share(subparsers: Any) -> None:
    """Add ``medfusion share``."""
    parser = subparsers.add_parser(
        "share", help="make a package of audited samples, which names nothing of the site, for others to use"
    )
    parser.add_argument("samples", type=input_path, metavar="SAMPLES", help="folder that inference wrote, as PNG")
    parser.add_argument(
        "--model-file",
        type=bundle_path,
        required=True,
        metavar="FILE",
        help="their weights, or a folder or bundle that contains them; weights are not shared",
    )
    parser.add_argument(
        "--audit", type=input_path, required=True, metavar="FILE", help="audit.json of these samples and weights"
    )
    parser.add_argument(
        "--licence", type=input_path, required=True, metavar="FILE", help="text file with the terms for the images"
    )
    parser.add_argument("--output", type=input_path, required=True, metavar="ZIP", help="the package")
    parser.add_argument(
        "--most-copies",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="share of the images that the audit may have found to be copies, as it does by chance (0.01)",
    )
    parser.add_argument("--report", type=input_path, metavar="FILE", help="report.json of these samples, for the card")
    parser.set_defaults(handler=_share)


def add_send(subparsers: Any) -> None:
    """Add ``medfusion send``."""
    parser = subparsers.add_parser("send", help="store the DICOM files of a folder of samples in a PACS")
    parser.add_argument("samples", type=input_path, metavar="SAMPLES", help="folder that inference wrote as DICOM")
    parser.add_argument(
        "--to",
        required=True,
        metavar="ADDRESS",
        help="root of a DICOMweb service, e.g. https://HOST/dicom-web, or dicom://TITLE@HOST:PORT",
    )
    parser.add_argument(
        "--user",
        help="of DICOMweb; its password is read from MEDFUSION_PACS_PASSWORD, a token from MEDFUSION_PACS_TOKEN",
    )
    parser.add_argument(
        "--edited", action="store_true", help="send edited images as well, which still show their patients"
    )
    parser.set_defaults(handler=_send)


def _send(arguments: argparse.Namespace) -> int:
    from medfusion_monai.export.pacs import SENT, send

    count = send(arguments.samples, arguments.to, arguments.user, arguments.edited)
    print(f"{count} files sent to {arguments.to}, listed in {arguments.samples}/{SENT}")
    return 0


def _share(arguments: argparse.Namespace) -> int:
    from medfusion_monai.sites.share import share_samples

    names = ("samples", "model_file", "audit", "licence", "output", "most_copies", "report")
    print(share_samples(**{name: getattr(arguments, name) for name in names}))
    return 0


def _card(arguments: argparse.Namespace) -> int:
    from medfusion_monai.export.samples_folder import write_card

    print(write_card(arguments.samples, arguments.model_file, arguments.report, arguments.audit))
    return 0
