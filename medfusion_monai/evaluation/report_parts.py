"""Generated images against real ones: figures overall and by class, pictures and warnings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from monai.data import Dataset
from torch import Tensor

from medfusion_monai.evaluation.image_set import ImageSet
from medfusion_monai.evaluation.measured_set import Measured
from medfusion_monai.evaluation.metrics.classifier import LabelledImages, labelled_images
from medfusion_monai.evaluation.metrics.comparison import Comparison
from medfusion_monai.evaluation.metrics.feature_networks import PixelFeatures
from medfusion_monai.evaluation.metrics.fidelity import Metric, headline_metrics, measure_sets, metrics_of
from medfusion_monai.evaluation.metrics.intervals import Figure
from medfusion_monai.evaluation.metrics.label_steering import NOTE, label_steering, steering_answers
from medfusion_monai.evaluation.metrics.neighbours import nearest_neighbours, neighbour_rows
from medfusion_monai.evaluation.metrics.similarity import DIVERSITY_PAIRS, diversity
from medfusion_monai.evaluation.paper_figures import published_fidelity
from medfusion_monai.report.builder import Draft
from medfusion_monai.report.pictures import COLUMNS, picture_of_rows, spread
from medfusion_monai.runtime.seeds import derive_seed

CLASSIFIER_IMAGES = 20_000  # per set at most, kept in memory at the classifier's size
SHARES_DIFFER = 0.05


def fidelity_rows(
    reference: Measured,
    sets: Sequence[Measured],
    replicates: int = 100,
    seed: int = 0,
    k: int = 3,
    metrics: Sequence[Metric] | None = None,
) -> list[dict[str, Any]]:
    """Compare sets with the reference, overall and for each class in both.

    Args:
        reference: the real images.
        sets: the generated ones.
        replicates: resampled sets per interval; 0 for none.
        seed: of the resampling and of random pairs.
        k: neighbours of precision and recall.
        metrics: to compute; None for all.

    Returns:
        Rows of a report's fidelity table.
    """
    rows = []
    for measured in sets:
        shared = [name for name in reference.images.class_names if name in measured.images.class_names]
        for class_name in [None, *(shared if len(reference.images.class_names) > 1 else [])]:
            indices = _positions(measured, class_name)
            real = reference.features[_positions(reference, class_name)]
            row = {"name": measured.name, "class_name": class_name, "reference_count": len(real), "count": len(indices)}
            if min(len(real), len(indices)) < 2:
                few = Figure(None, note=f"{len(indices)} samples against {len(real)}; a spread needs at least two")
                rows.append(row | {"fid": few.as_dict()})
                continue
            sample = measured.features[indices]
            compared = Comparison(real, sample, replicates, seed, k, images=_images(measured, indices))
            rows.append(row | {name: figure.as_dict() for name, figure in measure_sets(compared, metrics).items()})
    return rows


def _images(measured: Measured, indices: Sequence[int]) -> Sequence[Tensor]:
    """Return some images of a set, read when indexed."""
    paths = [measured.images.items[index]["image"] for index in indices]
    return cast(Sequence[Tensor], Dataset(paths, measured.load))


def _positions(measured: Measured, class_name: str | None) -> list[int]:
    return list(range(len(measured.images.items))) if class_name is None else measured.images.indices(class_name)


def warnings_of(reference: Measured, sets: Sequence[Measured]) -> list[str]:
    """Return reasons to doubt the figures of these sets, as sentences."""
    found = []
    known = {fact.digest for fact in reference.facts}
    for measured in sets:
        found += _class_warnings(reference.images, measured.images)
        if measured.facts:
            copies = sum(fact.digest in known for fact in measured.facts)
            repeats = len(measured.facts) - len({fact.digest for fact in measured.facts})
            constant = sum(fact.constant for fact in measured.facts)
            counts = {
                f"equal images of {reference.name}, pixel by pixel: they are copies": copies,
                "repeat another image of the set, pixel by pixel": repeats,
                "have a single colour": constant,
            }
            found += [
                f"{measured.name}: {number} of {len(measured.facts)} images {what}."
                for what, number in counts.items()
                if number
            ]
    return found


def _class_warnings(reference: ImageSet, images: ImageSet) -> list[str]:
    if not reference.class_names or not images.class_names:
        return []
    other = [name for name in images.class_names if name not in reference.class_names]
    if other:
        return [
            f"{images.name}: its classes {other} are not among those of {reference.name} ({reference.class_names}). "
            "Its overall figures compare different mixtures of classes. Rename its sub-folders to get figures by class."
        ]
    lacking = [name for name in reference.class_names if name not in images.class_names]
    if lacking:
        return [
            f"{images.name}: has no images of {lacking}, unlike {reference.name}. Its overall figures compare "
            "different mixtures of classes; those by class are unaffected."
        ]
    real, own = ({name: n / len(s.items) for name, n in s.counts().items()} for s in (reference, images))
    if any(abs(real[name] - own[name]) > SHARES_DIFFER for name in real):
        shares = ", ".join(f"{name} {own[name]:.0%} instead of {real[name]:.0%}" for name in real)
        return [
            f"{images.name}: the shares of classes differ from those in {reference.name} ({shares}). Its overall "
            "figures count that difference as an error; those by class do not."
        ]
    return []


def sample_rows(reference: Measured, sets: Sequence[Measured]) -> list[tuple[str, Tensor]]:
    """Return a captioned row of images per class and set, the reference first: figure 4 of the paper."""
    rows = []
    names: list[str | None] = [*reference.images.class_names] or [None]
    for class_name in names:
        for measured in (reference, *sets):
            indices = _positions(measured, class_name)
            if indices:
                caption = measured.name if class_name is None else f"{measured.name}: {class_name}"
                rows.append((caption, measured.stack([indices[position] for position in spread(len(indices))])))
    return rows


def add_fidelity(
    draft: Draft,
    reference: Measured,
    sets: Sequence[Measured],
    extractor: Any,
    replicates: int = 100,
    seed: int = 0,
    k: int = 3,
) -> None:
    """Add table 3 and figure 4 of the paper, the sets, and warnings; see ``fidelity_rows`` for the arguments.

    Without features (``PixelFeatures``) the table is left out.
    """
    results = draft.results
    results["reference"] = reference.describe()
    results["sets"] = [measured.describe() for measured in sets]
    if isinstance(extractor, PixelFeatures):
        results.setdefault("summary", []).append("FID and the like were not measured: features is null.")
    else:
        results["features"] = extractor.describe()
        metrics = metrics_of(extractor.describe())
        results["fidelity"] = fidelity_rows(reference, sets, replicates, seed, k, metrics)
        results["published"] = published_fidelity(reference.images.class_names)
        own = diversity(_images(reference, _positions(reference, None)), DIVERSITY_PAIRS, seed, replicates=0)
        if own.value is not None:
            sentence = f"Random pairs of reference images have a mean MS-SSIM of {own.value:.3f}."
            results.setdefault("scale", []).append(sentence)
    draft.add_warnings(*warnings_of(reference, sets))
    rows = sample_rows(reference, sets)
    caption = "Spread evenly over each set in the order of its files, not selected. From the top: "
    caption += "; ".join(name for name, _ in rows) + "."
    draft.add_picture("figure_4_samples.png", picture_of_rows(rows), "Real and generated images", caption)


def add_neighbours(
    draft: Draft, sets: Sequence[Measured], training: Measured, extractor: Any, number: int = COLUMNS
) -> None:
    """Add, for each set, the generated images closest to a training image, above their two nearest ones."""
    for rank, measured in enumerate(sets):
        distances, indices = nearest_neighbours(measured.features, training.features, k=min(2, len(training.features)))
        closest = distances[:, 0].argsort()[:number].tolist()
        images = neighbour_rows(measured.stack(closest), indices[closest], lambda place: training.stack([place])[0])
        rows = list(zip((measured.name, "nearest training image", "second nearest"), images, strict=False))
        nearest, median = distances[closest, 0], float(distances[:, 0].median())
        caption = (
            f"The {len(closest)} of {len(distances)} images closest to a training image, by {extractor.name} "
            f"(distance {float(nearest[0]):.3g} to {float(nearest[-1]):.3g}; median of all images {median:.3g}). "
            "This shows the likeliest copies; it does not prove that there are none."
        )
        title = f"{measured.name}: nearest training images"
        draft.add_picture(f"neighbours_{rank + 1}.png", picture_of_rows(rows), title, caption)


def add_real_baseline(
    draft: Draft, reference: Measured, sets: Sequence[Measured], training: Measured, seed: int = 0, k: int = 3
) -> None:
    """Add for scale the figures of as many real images, which a perfect generator would reach."""
    known = set(reference.images.paths)
    others = [index for index, path in enumerate(training.images.paths) if path not in known]
    for count in sorted({len(measured.features) for measured in sets}):
        if count > len(others):
            continue
        drawn = np.random.default_rng(derive_seed("real baseline", seed)).permutation(others)[:count]
        compared = Comparison(reference.features, training.features[np.sort(drawn)], replicates=0, k=k)
        metrics = headline_metrics()
        figures = measure_sets(compared, metrics)
        named = [(metric.headline, figures.get(metric.column.key, Figure(None)).value) for metric in metrics]
        values = [f"{headline} {value:.2f}" for headline, value in named if value is not None]
        draft.results.setdefault("scale", []).append(
            f"For scale: {count} random training images have {', '.join(values)} against the reference."
        )


def add_steering(
    draft: Draft,
    train: ImageSet,
    test: ImageSet,
    load: Callable[[str], Tensor],
    sets: Sequence[Measured],
    seeds: Sequence[int] = (0, 1, 2),
    device: torch.device | str = "cpu",
) -> None:
    """Add whether the label steers, and how useful generated images are for training: see ``label_steering``.

    Args:
        draft: of the report.
        train: real images that the generators were trained on.
        test: held-out real images.
        load: reads both sets.
        sets: generated images; sets without the real images' classes are left out.
        seeds: one training of the classifier per seed.
        device: where to train.
    """
    names = train.class_names
    known = [
        measured for measured in sets if measured.images.class_names and set(measured.images.class_names) <= set(names)
    ]
    if len(names) < 2 or not known:
        why = (
            "the real images have a single class" if len(names) < 2 else "no set of generated images has their classes"
        )
        draft.add_warnings(f"Whether the label steers was not measured: {why}.")
        return
    rows = label_steering(
        _labelled(train, load, names),
        _labelled(test, load, names),
        {measured.name: _labelled(measured.images, measured.load, names) for measured in known},
        names,
        seeds,
        device=device,
    )
    draft.results["steering"] = {"note": NOTE, "answers": steering_answers(rows), "rows": rows}
    draft.note("seeds", classifier=list(seeds))


def _labelled(images: ImageSet, load: Callable[[str], Tensor], names: Sequence[str]) -> LabelledImages:
    """Read images of a set (a random part if it is large) at the classifier's size, with labels by names."""
    labels = [names.index(images.class_names[item["label"]]) for item in images.items]
    order = np.random.default_rng(0).permutation(len(labels))[:CLASSIFIER_IMAGES]
    return labelled_images((load(images.items[index]["image"]), labels[index]) for index in sorted(order.tolist()))
