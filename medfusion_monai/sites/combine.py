"""Makes one datalist of the packages of several sites: ``medfusion prepare shared``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from medfusion_monai.data.datalist import DATALIST_NAME, read_datalist
from medfusion_monai.data.pixels import PIXELS
from medfusion_monai.data.preparing.duplicates import find_duplicates, link_patients, refuse_contradictions
from medfusion_monai.data.preparing.new_datalist import make_datalist, refuse_other_datalist, save_datalist
from medfusion_monai.data.preparing.splits import DataError, split_by_patient
from medfusion_monai.data.reading.images import inspect_images, list_problems
from medfusion_monai.data.reading.synthetic_marks import marked_synthetic
from medfusion_monai.evaluation.image_form import content_sha256_of
from medfusion_monai.export.own_figures import Identity, audit_problem
from medfusion_monai.report.read_back import measured_weights
from medfusion_monai.runtime.files import make_folders, refuse_unwritable
from medfusion_monai.runtime.values import check_config_paths, is_number
from medfusion_monai.sites.package import AUDIT, IMAGES, Package
from medfusion_monai.sites.share import MOST_COPIES, check_most_copies

TRAINING, TEST = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
"""Shares of training, validation and test."""
SAME = {
    "class_names": "classes, or their order",
    "image": "form of the images (size, channels, how files were fitted to it)",
    "latent_channels": "channels of the latents",
}
"""What the packages of a datalist have in common, by key of ``package.json``."""

Record = dict[str, Any]


def prepare_shared(
    packages: Sequence[str | Path],
    output: str | Path,
    fractions: Sequence[float] = TRAINING,
    seed: int = 0,
    overwrite: bool = False,
    most_copies: float = MOST_COPIES,
) -> dict[str, Any]:
    """Unpack the packages of several sites and write one datalist of their images.

    Nothing is unpacked before all packages have been checked, nor written to the output before all images have been
    decoded.

    Args:
        packages: zips of ``medfusion share``, in the order in which sites are numbered.
        output: folder for ``datalist.json`` and ``images``.
        fractions: shares of the images for training, validation and test.
        seed: of the split.
        overwrite: replace a different datalist.
        most_copies: largest share of the images of a site that its audit may have found to be copies.

    Returns:
        The datalist that was written; its counts state the share of each site.

    Raises:
        PackageError: for a package that cannot be used, or with more copies.
        DataError: for fewer than two sites, packages of other classes or form, images that occur in two packages, and
            as ``split_by_patient``.
        ValueError: for a folder that cannot be written, and a share that is none.
    """
    check_config_paths(output=output)
    check_most_copies(most_copies)
    output = Path(output)
    refuse_unwritable([output])
    if len(packages) < 2:
        raise DataError(f"{len(packages)} package(s): a datalist of shared images needs those of at least two sites.")
    opened = [Package(path) for path in packages]
    for package in opened:
        _refuse_copies(package, most_copies)
    _refuse_other_forms(opened)
    weights = [package.weights_sha256 for package in opened]
    if len(set(weights)) < 2:
        raise DataError(
            f"all {len(opened)} packages have samples of the same weights ({weights[0][:12]}...), so they are of one "
            "site. Add the package of another."
        )
    make_folders([output])
    with TemporaryDirectory(dir=output, prefix=".unpacked") as scratch:
        records: list[Record] = []
        for number, package in enumerate(opened, start=1):
            records += _unpacked(package, Path(scratch), f"site{number}")
        document = _datalist(opened, records, fractions, seed)
        if not overwrite:
            refuse_other_datalist(output / DATALIST_NAME, document)
        for record in records:
            place = output / record["image"]
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(scratch) / record["image"], place)
    save_datalist(output / DATALIST_NAME, document)
    return document


def _refuse_other_forms(packages: Sequence[Package]) -> None:
    first = packages[0]
    for package in packages[1:]:
        for key, words in SAME.items():
            if package.about[key] != first.about[key]:
                raise DataError(
                    f"{package.path} has other {words}, than {first.path}: {package.about[key]} and "
                    f"{first.about[key]}. Sites that share samples agree on them before they train."
                )


def _unpacked(package: Package, folder: Path, site: str) -> list[Record]:
    """Unpack the images of a package and return their records, with ``image`` relative to the folder.

    Raises:
        PackageError: for images that are not those of its datalist and its audit.
    """
    target = folder / IMAGES / site
    target.mkdir(parents=True)
    for name in package.images:
        (target / Path(name).name).write_bytes(package.read(name))
    paths = [target / Path(name).name for name in package.images]
    height, width = package.about["image"]["size"]
    odd = [path.name for path in paths if _size_of(path) != (width, height)]
    if odd:
        raise package.error(f"{len(odd)} images are not PNG files of {height}x{width} pixels, first {odd[0]}")
    unmarked = {os.fspath(path) for path in paths} - set(marked_synthetic(paths))
    if unmarked:
        raise package.error(f"{len(unmarked)} images are not marked as synthetic, first {Path(min(unmarked)).name}")
    digests, problems = inspect_images(paths, package.about["image"]["channels"])
    if problems:
        raise package.error(list_problems(f"{len(problems)} images cannot be read", list(problems.values())))
    labels = _labels(package, digests)
    _check_audit(package, list(digests.values()), labels)
    return [
        {
            "image": f"{IMAGES}/{site}/{path.name}",
            "label": labels[path.name],
            "patient": f"{site}/{path.stem}",
            PIXELS: digests[os.fspath(path)],
        }
        for path in paths
    ]


def _size_of(path: Path) -> tuple[int, int] | None:
    """Return width and height of a PNG by its header, before a decoder reserves memory for it."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _labels(package: Package, digests: Mapping[str, str]) -> dict[str, int]:
    """Return the labels by file name, as the datalist of the package states them for these pixels."""
    with TemporaryDirectory() as scratch:
        (Path(scratch) / DATALIST_NAME).write_bytes(package.read(DATALIST_NAME))
        for name in package.images:
            place = Path(scratch) / name
            place.parent.mkdir(exist_ok=True)
            place.touch()
        try:
            items = read_datalist(scratch, "training", package.about["class_names"])
        except DataError as error:
            raise package.error(str(error).replace(scratch, package.path.name)) from error
    listed = {Path(item["image"]).name: item for item in items}
    for path, digest in digests.items():
        item = listed.pop(Path(path).name, {})
        if item.get(PIXELS) != digest:
            raise package.error(f"{Path(path).name} is not the image that its {DATALIST_NAME} lists")
    if listed:
        raise package.error(f"its {DATALIST_NAME} lists {len(listed)} images that it does not contain")
    return {Path(item["image"]).name: item["label"] for item in items}


def _refuse_copies(package: Package, most: float) -> None:
    rate = _copy_rate(package)
    if rate > most:
        raise package.error(
            f"its audit found {100 * rate:.2f}% of the images to be copies of training images, more than the "
            f"{100 * most:g}% of --most-copies. Ask the site to sample again with --refuse_copies_of"
        )


def _copy_rate(package: Package) -> float:
    """Return the share of copies that the audit of a package states."""
    try:
        rate = package.object(AUDIT)["audit"]["rows"][0]["copy_rate"]["value"]
    except (IndexError, KeyError, TypeError) as error:
        raise package.error(f"{AUDIT} is not an audit ({type(error).__name__}: {error})") from error
    if not is_number(rate) or not 0 <= rate <= 1:
        raise package.error(f"{AUDIT} states no rate of copies, but {rate!r}")
    return float(rate)


def _check_audit(package: Package, digests: Sequence[str], labels: Mapping[str, int]) -> None:
    """Raise a PackageError unless the audit of a package is of its images and weights."""
    counts, names = Counter(labels.values()), package.about["class_names"]
    classes = {name: counts[label] for label, name in enumerate(names) if counts[label]}
    audit, weights = package.object(AUDIT), package.weights_sha256
    try:
        problem = audit_problem(audit, Identity(content_sha256_of(digests), classes, weights))
        of_others = problem is not None or measured_weights(audit) != weights
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise package.error(f"{AUDIT} is not an audit ({type(error).__name__}: {error})") from error
    if of_others:
        raise package.error(f"{AUDIT} is not of these images and weights")


def _datalist(
    packages: Sequence[Package], records: list[Record], fractions: Sequence[float], seed: int
) -> dict[str, Any]:
    names = packages[0].about["class_names"]
    groups = find_duplicates(records)
    shared = [group for group in groups if len({_site(record) for record in group}) > 1]
    if shared:
        pairs = [" = ".join(str(record["image"]) for record in group) for group in shared]
        listed = ", ".join(f"site{number} {package.path}" for number, package in enumerate(packages, start=1))
        title = f"{len(shared)} images are in two packages ({listed})"
        raise DataError(list_problems(title, pairs) + "\nName each package, and each set of samples, once.")
    refuse_contradictions(groups, names)
    repeats = link_patients(records, groups)
    splits = split_by_patient(records, fractions, seed, names)
    sites = [
        {
            "images": len(package.images),
            "weights_sha256": package.weights_sha256,
            "copy_rate": _copy_rate(package),
        }
        for package in packages
    ]
    counts = {"synthetic": len(records), "sites": sites, **({"duplicates": repeats} if repeats else {})}
    return make_datalist(splits, names, f"synthetic images of {len(sites)} packages", seed, counts=counts)


def _site(record: Record) -> str:
    return str(record["patient"]).partition("/")[0]
