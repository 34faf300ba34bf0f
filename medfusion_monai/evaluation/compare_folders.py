"""Any generator's images against real ones, from folders alone: what ``medfusion compare`` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medfusion_monai.data.datalist import DATALIST_NAME
from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.evaluation.image_form import ImageFacts, common_form, inspect_set, refuse_changed
from medfusion_monai.evaluation.image_set import ImageSet, open_image_set
from medfusion_monai.evaluation.measured_set import Measured, measure_set
from medfusion_monai.evaluation.metrics.features import load_extractor
from medfusion_monai.evaluation.report_parts import add_fidelity, add_neighbours, add_real_baseline, add_steering
from medfusion_monai.evaluation.settings import check_device, check_names, check_seeds, refuse_inside
from medfusion_monai.report.builder import Draft
from medfusion_monai.runtime.files import make_folders
from medfusion_monai.runtime.locks import take_folders
from medfusion_monai.runtime.values import check_counts


def compare(
    reference: str | Path,
    images: Mapping[str, str | Path],
    output: str | Path,
    features: str | nn.Module = "inception",
    split: str | None = None,
    size: Sequence[int] | None = None,
    k: int = 3,
    replicates: int = 100,
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
    check_seeds(classifier_seeds)
    check_names(list(images))
    check_device(device)
    opened = {"reference": open_image_set("reference", reference, split)}
    opened |= {name: open_image_set(name, folder) for name, folder in images.items()}
    refuse_inside(output, {"reference": reference, **images})
    make_folders([output])
    take_folders([output])
    extractor = load_extractor(features).to(device)
    splits = _open_splits(reference, neighbours, classifier_seeds)
    facts = {name: inspect_set(image_set) for name, image_set in opened.items()}
    # Of the same form too, or their features, and what a classifier learns of them, would tell the forms apart.
    facts_of_splits = {f"split '{name}'": inspect_set(image_set) for name, image_set in splits.items()}
    form = common_form(facts | facts_of_splits, size)

    def measure(image_set: ImageSet, known: Sequence[ImageFacts] = ()) -> Measured:
        cache = Path(output) / "cache"
        return measure_set(image_set, form.load, form.describe(), extractor, cache, batch_size, device, known)

    real, *sets = [measure(image_set, facts[name]) for name, image_set in opened.items()]
    draft = Draft(
        "Generated images against real ones",
        settings={"k": k, "replicates": replicates, "form": form.describe()},
        seeds={"seed": seed},
    )
    add_fidelity(draft, real, sets, extractor, replicates, seed, k)
    if splits and neighbours:
        training = measure(splits["training"])
        add_real_baseline(draft, real, sets, training, seed, k)
        add_neighbours(draft, sets, training, neighbours)
    if splits and classifier_seeds:
        add_steering(draft, splits["training"], splits["test"], form.load, sets, classifier_seeds, device)
    for name, image_set in opened.items():
        refuse_changed(image_set, facts[name])
    return draft.write(output)


def _open_splits(reference: str | Path, neighbours: int, classifier_seeds: Sequence[int]) -> dict[str, ImageSet]:
    """Open the splits of a prepared reference that nearest training images and the classifier need."""
    if not (Path(reference) / DATALIST_NAME).is_file() or not (neighbours or classifier_seeds):
        return {}
    try:
        wanted = ("training", "test") if classifier_seeds else ("training",)
        return {name: open_image_set(name, reference, name) for name in wanted}
    except DataError as error:
        raise DataError(
            f"{error} Or leave out what needs this split: nearest training images with --neighbours 0, the classifier "
            "with --classifier-seeds and no number behind it."
        ) from error
