"""The program ``medfusion``, for everything beyond running a MONAI bundle."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence

from medfusion_monai.cli.audit import add_audit
from medfusion_monai.cli.check import add_check
from medfusion_monai.cli.compare import add_compare
from medfusion_monai.cli.label import add_label
from medfusion_monai.cli.models import add_assemble, add_average, add_demo, add_export
from medfusion_monai.cli.prepare import add_prepare
from medfusion_monai.cli.samples import add_card, add_send, add_share
from medfusion_monai.cli.studio import add_studio
from medfusion_monai.cli.weights import add_weights


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``medfusion`` with these arguments and return its exit code: 0, or 2 for an error of the user's.

    Args:
        argv: the arguments after the program's name; None takes those of the process.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # see runtime/threads; before PyTorch is loaded
    arguments = build_parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # printing a class name must not fail after the work is done
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return arguments.handler(arguments)
    except ValueError as error:
        print(f"medfusion: error: {error}", file=sys.stderr)
        return 2


def entry_point() -> None:
    """Run ``medfusion`` as the installed program; a reader that closes the pipe, as ``head``, is not an error."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left would fail again at exit
        code = 128 + signal.SIGPIPE
    raise SystemExit(code)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; the ``add_...`` function of each verb also sets its handler.

    A handler takes the parsed arguments and returns the exit code. It imports its dependencies itself to keep
    ``--help`` fast.
    """
    parser = argparse.ArgumentParser(prog="medfusion", description="Data and tools for the Medfusion MONAI bundles.")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add_prepare(subparsers)
    add_check(subparsers)
    add_demo(subparsers)
    add_compare(subparsers)
    add_audit(subparsers)
    add_average(subparsers)
    add_assemble(subparsers)
    add_card(subparsers)
    add_share(subparsers)
    add_send(subparsers)
    add_label(subparsers)
    add_export(subparsers)
    add_weights(subparsers)
    add_studio(subparsers)
    return parser
