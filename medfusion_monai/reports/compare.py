"""Any generator's images against real ones, from folders alone: what ``medfusion compare`` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medfusion_monai.bundle import check_counts, check_folders
from medfusion_monai.data.datalist import DATALIST_NAME
from medfusion_monai.data.image_form import ImageFacts, ImageForm, common_form, inspect_set
from medfusion_monai.data.image_set import ImageSet, open_image_set
from medfusion_monai.metrics.features import load_extractor
from medfusion_monai.reports.comparison import add_fidelity, add_neighbours, add_steering
from medfusion_monai.reports.draft import Draft
from medfusion_monai.reports.measured import Measured, measure_set


def compare(
    reference: str | Path,
    images: Mapping[str, str | Path],
    output: str | Path,
    features: str | nn.Module = "inception",
    split: str | None = None,
    size: Sequence[int] | None = None,
    k: int = 3,
    replicates: int = 100,
    fid_infinity: bool = False,
    inception_score: bool = False,
    neighbours: int = 8,
    classifier_seeds: Sequence[int] = (0, 1, 2),
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Compare sets of generated images with real ones and write the report.

    Where the reference is a prepared data set, nearest training images are shown too, and a classifier tells whether
    the label steers.

    Args:
        reference: folder of the real images, see ``open_image_set``.
        images: folders of the generated ones, by name.
        output: folder of the report; features are kept in its folder ``cache``.
        features: of ``load_extractor``.
        split: of a prepared reference; None takes ``reference`` where there is one, else ``test``.
        size: (height, width) that all images are brought to; None takes them as they are, all of one size.
        k: neighbours of precision and recall.
        replicates: resampled sets behind each interval; 0 for none.
        fid_infinity: whether FID is also extrapolated to infinitely many images.
        inception_score: whether the Inception score is added; it is for photographs of things, not for X-rays.
        neighbours: generated images shown beside their nearest training images; 0 for none.
        classifier_seeds: trainings of the classifier; none leaves it out.
        batch_size: images that are measured at once.
        device: where to compute.
        seed: of all that is drawn.

    Returns:
        What ``report.json`` holds.

    Raises:
        ValueError: for images that cannot be compared, weights that are missing, or a setting out of range.
    """
    check_counts(0, replicates=replicates, neighbours=neighbours, seed=seed)
    check_counts(k=k, batch_size=batch_size)
    if not images:
        raise ValueError("no images to compare: name at least one folder, --images NAME=DIR")
    reserved = sorted({"reference", "real", "real test"} & set(images))
    if reserved:
        raise ValueError(f"the names {reserved} are those of the real images: give the sets others")
    opened = {"reference": open_image_set("reference", reference, split)}
    opened |= {name: open_image_set(name, folder) for name, folder in images.items()}
    check_folders([output])
    extractor = load_extractor(features).to(device)
    if inception_score and not hasattr(extractor, "features_and_logits"):
        raise ValueError(f"the Inception score needs the features inception, not {features}: leave it out")
    facts = {name: inspect_set(image_set) for name, image_set in opened.items()}
    form = common_form(facts, size)

    def measure(image_set: ImageSet, known: Sequence[ImageFacts] = ()) -> Measured:
        cache, scored = Path(output) / "cache", inception_score and image_set.name in images
        return measure_set(image_set, form.load, form.describe(), extractor, cache, batch_size, device, known, scored)

    real, *sets = [measure(image_set, facts[name]) for name, image_set in opened.items()]
    draft = Draft(
        "Generated images against real ones",
        settings={"k": k, "replicates": replicates, "form": form.describe()},
        seeds={"seed": seed},
    )
    add_fidelity(draft, real, sets, extractor, replicates, seed, k, fid_infinity)
    if (Path(reference) / DATALIST_NAME).is_file():
        _add_data_set_parts(draft, reference, sets, form, measure, neighbours, classifier_seeds, device)
    return draft.write(output)


def _add_data_set_parts(
    draft: Draft,
    dataset_dir: str | Path,
    sets: Sequence[Measured],
    form: ImageForm,
    measure: Callable[[ImageSet], Measured],
    neighbours: int,
    classifier_seeds: Sequence[int],
    device: torch.device | str,
) -> None:
    """Add what needs the splits of a prepared data set."""
    if not neighbours and not classifier_seeds:
        return
    training = _alike("training", dataset_dir, form)
    if neighbours:
        add_neighbours(draft, sets, measure(training), neighbours)
    if classifier_seeds:
        add_steering(draft, training, _alike("test", dataset_dir, form), form.load, sets, classifier_seeds, device)


def _alike(split: str, dataset_dir: str | Path, form: ImageForm) -> ImageSet:
    """Open a split whose images have the form of the compared ones.

    Raises:
        DataError: as of ``common_form``.
    """
    images = open_image_set(split, dataset_dir, split)
    common_form({split: inspect_set(images)}, form.size if form.resized else None)
    return images
