"""A package of samples: a zip with only the files that it lists, with their checksums, none of them compressed.

Images are compressed by themselves, so a package is hardly larger for it, and no package can unpack to more than its
own size.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from medfusion_monai.data.datalist import DATALIST_NAME
from medfusion_monai.export.samples_folder import CARD
from medfusion_monai.runtime.files import make_folders, renamed_when_whole
from medfusion_monai.runtime.values import check_class_names
from medfusion_monai.sampling.plan import MANIFEST
from medfusion_monai.weights.checksums import CHECKSUMS, LINE

FORMAT = 1
ABOUT, AUDIT, LICENCE, IMAGES = "package.json", "audit.json", "LICENSE", "images"
LISTED = f"{IMAGES}/{MANIFEST}"
TEXTS = (ABOUT, AUDIT, CARD, LICENCE, DATALIST_NAME, LISTED)
"""Files of every package besides images and checksums."""
MOST_TEXT = 256 << 20
"""Bytes of a file that is read at once."""
IMAGE = re.compile(IMAGES + r"/[0-9]+_\w+_[0-9]{6,}\.png")
"""Names of images, as inference writes them; ``\\w`` is any letter, digit or underscore, and never a separator."""
TIMESTAMP = (1980, 1, 1, 0, 0, 0)
AGAIN = "Ask the site for it again, as medfusion share wrote it"


class PackageError(ValueError):
    """A package that cannot be used; the message states its file, what is wrong with it, and what to do."""


def write_package(path: str | Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write a package, the same bytes for the same files.

    Args:
        path: of the zip; its folder is created.
        files: names and contents, in order.

    Raises:
        ValueError: if the folder or the file cannot be written.
    """
    path, sums = Path(path), []
    make_folders([path.parent])
    with renamed_when_whole(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files:
            _add(archive, name, content)
            sums.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
        _add(archive, CHECKSUMS, "".join(sums).encode())


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, TIMESTAMP)
    entry.external_attr, entry.create_system = 0o644 << 16, 3
    archive.writestr(entry, content)


class Package:
    """A package that was received; opening it checks names, sizes and checksums of all files, and decodes no image.

    Args:
        path: of the zip.

    Raises:
        PackageError: for a file that is not a package, a name that a package cannot have, missing or additional files,
            compressed entries, changed content, or another format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with zipfile.ZipFile(self.path) as archive:
                self._check_entries(archive)
                self._check_content(archive)
        except (OSError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
            raise self.error(f"cannot be read as a zip ({error})") from error
        self._check_about()

    def error(self, problem: str, advice: str = AGAIN) -> PackageError:
        """Return the error for a problem of this package."""
        return PackageError(f"{self.path}: {problem}. {advice}.")

    @cached_property
    def images(self) -> list[str]:
        """Names of the images in the zip, sorted."""
        with zipfile.ZipFile(self.path) as archive:
            return sorted(name for name in archive.namelist() if IMAGE.fullmatch(name))

    @cached_property
    def about(self) -> dict[str, Any]:
        """Classes and form of the images, and their weights."""
        return self.object(ABOUT)

    @property
    def weights_sha256(self) -> str:
        """Checksum of the weights behind the images, by which sites are told apart."""
        return str(self.about["weights_sha256"])

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(name)

    def object(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file.

        Raises:
            PackageError: if it is not a JSON object.
        """
        try:
            found = json.loads(self.read(name))
        except ValueError as error:
            raise self.error(f"{name} is not JSON ({error})") from error
        if not isinstance(found, dict):
            raise self.error(f"{name} is not a JSON object")
        return found

    def _check_entries(self, archive: zipfile.ZipFile) -> None:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        odd = [name for name in names if name not in (*TEXTS, CHECKSUMS) and not IMAGE.fullmatch(name)]
        if odd:
            raise self.error(f"has {len(odd)} files that a package cannot have, first {odd[0]!r}; nothing was unpacked")
        missing = [name for name in (*TEXTS, CHECKSUMS) if name not in names]
        if missing:
            raise self.error(f"has no {', '.join(missing)}")
        if len(set(names)) < len(names):
            raise self.error("has two files of one name")
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
            raise self.error("has compressed or encrypted files, which a package never has; nothing was unpacked")
        if sum(entry.file_size for entry in entries) > self.path.stat().st_size:
            raise self.error("claims to unpack to more than its size; nothing was unpacked")
        large = [entry.filename for entry in entries if entry.file_size > MOST_TEXT]
        if large:
            raise self.error(f"{large[0]} has more than {MOST_TEXT >> 20} MiB")

    def _check_content(self, archive: zipfile.ZipFile) -> None:
        lines = [LINE.fullmatch(line) for line in archive.read(CHECKSUMS).decode("utf-8", "replace").splitlines()]
        listed = {match[2]: match[1].lower() for match in lines if match}
        others = set(archive.namelist()) - {CHECKSUMS} ^ set(listed)
        if others or None in lines:
            raise self.error(f"{CHECKSUMS} does not list exactly its files ({', '.join(sorted(others)[:3])})")
        changed = [name for name, digest in listed.items() if hashlib.sha256(archive.read(name)).hexdigest() != digest]
        if changed:
            raise self.error(f"{len(changed)} files were changed, first {changed[0]}")

    def _check_about(self) -> None:
        if self.about.get("format") != FORMAT:
            raise self.error(
                f"is of format {self.about.get('format')!r}, this version reads {FORMAT}",
                "Use the version of medfusion_monai that wrote it, or ask for a package of this one",
            )
        try:
            check_class_names(self.about["class_names"], "class_names")
            form = self.about["image"]
            whole = all(isinstance(side, int) and side > 0 for side in (*_pair(form["size"]), form["channels"]))
            known = whole and isinstance(self.about["weights_sha256"], str) and "latent_channels" in self.about
        except (KeyError, TypeError, ValueError) as error:
            raise self.error(f"{ABOUT} is not what medfusion share writes ({error})") from error
        if not known:
            raise self.error(f"{ABOUT} is not what medfusion share writes")


def _pair(size: Sequence[int]) -> tuple[int, int]:
    height, width = size
    return height, width
