"""A folder that is uploaded as it is: nothing but what an export writes may be in it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from medfusion_monai.runtime.files import make_folders
from medfusion_monai.weights.checksums import CHECKSUMS

CARD = "README.md"


def refuse_other_files(folder: str | Path, own: Collection[str]) -> None:
    """Raise a ValueError if a folder contains other files than its own.

    Args:
        folder: that is about to be written; it need not exist.
        own: the files that will be written, by their paths in the folder.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    others = [path for path in files if path.relative_to(folder).as_posix() not in own]
    if others:
        raise ValueError(
            f"{folder} contains {len(others)} other files, e.g. {others[0]}, which an upload of the folder would "
            "include: choose an empty folder, or delete them"
        )


@contextmanager
def written_whole(output: str | Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield a temporary folder, and move its files to a folder at the end; after an exception none.

    Args:
        output: the folder, created if necessary.
        names: the files, by their paths in the folder.
    """
    output = Path(output)
    make_folders([output])
    with tempfile.TemporaryDirectory(dir=output, prefix=".export.") as scratch:
        yield Path(scratch)
        (output / CHECKSUMS).unlink(missing_ok=True)  # or a kill in between would leave files that the old list refuses
        for name in names:
            (output / name).parent.mkdir(exist_ok=True)
            os.replace(Path(scratch) / name, output / name)
