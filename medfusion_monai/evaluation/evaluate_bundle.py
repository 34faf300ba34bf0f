"""The evaluation of a bundle, step by step: reconstructions, generated images, label, sampling steps, report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from torch import Tensor

from medfusion_monai.data.datalist import find_datalist
from medfusion_monai.data.reading.transforms import form_of
from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.diffusion.spacing import spaced_timesteps
from medfusion_monai.evaluation.bundle_images import OURS, BundleImages
from medfusion_monai.evaluation.image_form import ImageForm, content_sha256
from medfusion_monai.evaluation.measured_set import Measured
from medfusion_monai.evaluation.metrics.feature_cache import Extraction
from medfusion_monai.evaluation.metrics.features import load_extractor
from medfusion_monai.evaluation.metrics.fidelity import fidelity_columns
from medfusion_monai.evaluation.metrics.lpips import BACKBONES
from medfusion_monai.evaluation.metrics.set_metrics import own_batches
from medfusion_monai.evaluation.paper_figures import published_reconstructions
from medfusion_monai.evaluation.reconstructions import (
    describe_ms_ssim,
    reconstruction_picture,
    table_rows,
    write_values,
)
from medfusion_monai.evaluation.report_parts import add_fidelity, add_neighbours, add_real_baseline, add_steering
from medfusion_monai.evaluation.settings import RESERVED, check_kinds
from medfusion_monai.evaluation.step_sweep import guidance_words, sweep_identity, sweep_rows
from medfusion_monai.networks.diffusers_autoencoder import DiffusersAutoencoder
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.report.builder import Draft
from medfusion_monai.report.read_back import AUDIT_OF_OTHERS, read_audit
from medfusion_monai.runtime.distributed import from_first
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.runtime.values import check_counts
from medfusion_monai.sampling.plan import sampling_plan
from medfusion_monai.weights import pretrained
from medfusion_monai.weights.model_info import read_model_info

logger = logging.getLogger(__name__)

TIMESTEPS = 1000
NO_RECONSTRUCTIONS = "Reconstructions were not measured: the model is a GAN, which has no autoencoder."


class Evaluation:
    """What ``run evaluating`` measures, and the report that it writes; each ``add_...`` fills a part of it.

    Several processes each run networks on a share of the images; only the first compares and writes. All call the same
    methods in the same order.

    Args:
        images: what is measured.
        output_dir: folder of the report; features are kept in its folder ``cache``.
        features: features to compare by, see ``load_extractor``; None leaves out what needs features.
        replicates: resampled sets per interval; 0 for none.
        batch_size: images measured at once.
        device: where to compute.
        seed: of all random choices.
    """

    def __init__(
        self,
        images: BundleImages,
        output_dir: str | Path,
        features: str | None = "auto",
        replicates: int = 100,
        batch_size: int = 8,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.images, self.output_dir, self.features = images, Path(output_dir), features
        self.replicates, self.batch_size, self.device, self.seed = replicates, batch_size, device, seed
        self.draft = Draft(
            f"Medfusion: {', '.join(images.class_names)}",
            settings={
                "features": features and features.partition(":")[0],
                "replicates": replicates,
                "image_size": images.size,
            },
            seeds={"seed": seed},
            fidelity=fidelity_columns(),
        )

    @property
    def own_items(self) -> list[dict[str, Any]]:
        """The items that this process reconstructs: its batches, or all items if not every process gets a batch."""
        items = self.images.items
        if len(items) <= self.batch_size * (idist.get_world_size() - 1):
            return items
        return [items[place] for batch in own_batches(len(items), self.batch_size) for place in batch]

    @cached_property
    def extraction(self) -> Extraction:
        """How features are computed and where they are kept.

        Raises:
            ValueError: for weights that are missing or damaged.
        """
        try:
            extractor = load_extractor(self.features).to(self.device)
        except WeightsError as error:
            raise WeightsError(
                f"{error}. Or compare by other features (--features), or leave out what needs features "
                "(--features null, no --sweep_steps)"
            ) from error
        return Extraction(extractor, self.output_dir / "cache", self.batch_size, self.device)

    @cached_property
    def reference(self) -> Measured:
        """The real images that generated ones are compared with."""
        return self.images.measure_split(self.images.reference_split, "reference", self.extraction)

    @cached_property
    def training(self) -> Measured:
        """The images that the model was trained on."""
        return self.images.measure_split("training", "training", self.extraction)

    @cached_property
    def generated(self) -> list[Measured]:
        """The generated images."""
        return self.images.measure_samples(self.extraction) if self.images.sample_sets else []

    def check_settings(self, neighbours: int, sweep_samples: int) -> None:
        """Check numeric settings.

        Raises:
            ValueError: with key and value.
        """
        check_counts(0, replicates=self.replicates, neighbours=neighbours, seed=self.seed)
        check_counts(batch_size=self.batch_size, sweep_samples=sweep_samples)

    def check(
        self,
        others: Mapping[str, str] | None = None,
        sweep_steps: Sequence[int] = (),
        neighbours: int = 8,
        classifier_seeds: Sequence[int] = (0, 1, 2),
    ) -> None:
        """Check images and settings before anything is measured.

        Args:
            others: folders of other first stages, by name, for ``add_reconstructions``.
            sweep_steps: of ``add_sweep``.
            neighbours: of ``add_generated``.
            classifier_seeds: of ``add_steering``.

        Raises:
            ValueError: for what is missing or does not fit.
        """
        images = self.images
        check_kinds(images.other_samples, others or {}, images.splits, sweep_steps, classifier_seeds)
        if not images.has_latents and (others or sweep_steps):
            raise ValueError(
                "the model is a GAN, which reconstructs no images and samples in one step: leave out "
                "other_autoencoders and sweep_steps"
            )
        taken = sorted({images.ours, *RESERVED} & {*images.other_samples, *(others or {})})
        if taken:
            raise ValueError(f"the names {taken} are reserved for this bundle's images and the real ones: use others")
        images.items  # noqa: B018  raises here
        self.others = {name: DiffusersAutoencoder(folder) for name, folder in (others or {}).items()}
        blank = torch.zeros(1, images.channels, *images.size)
        for other in self.others.values():
            other.check_image(blank)
        if sweep_steps and self.features is None:
            raise ValueError("sweep_steps are measured by features, but features is null: name features, or no steps")
        for number in sweep_steps:
            spaced_timesteps(number, TIMESTEPS)
        if images.is_tuned and sweep_steps:
            raise ValueError(
                f"sweep_steps {list(sweep_steps)}: weights that are tuned for few steps sample in one number of steps; "
                "leave sweep_steps out"
            )
        if images.sample_sets or sweep_steps:
            self.extraction  # noqa: B018  likewise
            images.check_real(neighbours, classifier_seeds)
        self.draft.add_warnings(*images.warnings)

    def add_reconstructions(self, evaluator: Any, network: Any, lpips: str | None = None) -> None:
        """Reconstruct the splits' images with each first stage: tables 1, 2 and 4 and figure 2 of the paper.

        Args:
            evaluator: a ``SupervisedEvaluator`` over ``own_items`` whose metrics keep each image's value.
            network: ours.
            lpips: backbone of LPIPS, if it is among the metrics.
        """
        if not self.images.has_latents:
            self.draft.add_warnings(NO_RECONSTRUCTIONS)
            return
        checksums = {f"first stage {name}": other.sha256 for name, other in self.others.items()}
        if lpips is not None:
            checksums[f"LPIPS, {lpips}"] = pretrained.KNOWN[BACKBONES[lpips]].sha256
        self.draft.note("checksums", **checksums)
        stages = {OURS: network, **self.others}
        values: dict[str, dict[str, Tensor]] = {}
        for name, stage in stages.items():
            evaluator.network = stage.to(self.device)
            evaluator.run()
            details = evaluator.state.metric_details.items()  # of all processes, repeated where each had all items
            values[name] = {measure: each[: len(self.images.items)] for measure, each in details}
        from_first(lambda: self._show_reconstructions(values, network))

    def _show_reconstructions(self, values: Mapping[str, Mapping[str, Tensor]], network: Medfusion) -> None:
        items = self.images.items
        self.draft.results["reconstructions"] = [
            row for name, own in values.items() for row in table_rows(name, items, own, self.seed)
        ]
        self.draft.results["reconstructions_note"] = describe_ms_ssim(self.images.size)
        self.draft.results["published_reconstructions"] = published_reconstructions(self.images.class_names)
        write_values(self.output_dir, items, values[OURS])
        picture = reconstruction_picture({OURS: network.autoencoder, **self.others}, items, self.images.load)
        caption = "Images spread evenly over the splits, their reconstructions, and the difference times four."
        self.draft.add_picture("figure_2_reconstructions.png", picture, "Reconstructions", caption)

    def add_generated(self, neighbours: int = 8) -> None:
        """Compare generated images with real ones: table 3 and figure 4, and nearest training images.

        Args:
            neighbours: generated images shown beside their nearest training images; 0 for none.
        """
        if not self.generated:
            return
        draft, reference, generated, seed = self.draft, self.reference, self.generated, self.seed
        training = self.training if neighbours else None  # all processes compute features, the first does the rest

        mode = form_of(self.images.preprocessing).get("resize_mode", "crop")
        form = ImageForm((self.images.size[0], self.images.size[1]), self.images.channels, True, mode)
        draft.results["sets_note"] = f"Real images were {form.describe()}. Generated images had this size."

        def compare() -> None:
            add_fidelity(draft, reference, generated, self.extraction.extractor, self.replicates, seed)
            if training is not None and self.features is not None:
                add_real_baseline(draft, reference, generated, training, seed)
            if training is not None:
                add_neighbours(draft, generated, training, self.extraction.extractor, neighbours)

        from_first(compare)

    def add_steering(self, seeds: Sequence[int] = (0, 1, 2)) -> None:
        """Measure whether the label steers and how useful generated images are for training.

        Args:
            seeds: one training of the classifier per seed; none leaves this part out.
        """
        if self.generated and seeds:
            train, test, generated = self.images.open("training"), self.images.open("test"), self.generated
            from_first(lambda: add_steering(self.draft, train, test, self.images.load, generated, seeds, self.device))

    def add_audit(self, audit_file: str | Path | None, model_file: str | Path) -> None:
        """Include an audit of these weights: its figures and warnings, not its pictures.

        Args:
            audit_file: ``audit.json`` of ``medfusion audit``; None leaves this part out.
            model_file: the weights.

        Raises:
            ValueError: for a file that is not an audit, or is of other weights.
        """
        if audit_file is None:
            return
        audit = read_audit(audit_file, file_sha256(model_file))
        self.draft.results["audit"] = audit["audit"]
        self.draft.note("checksums", **{Path(audit_file).name: file_sha256(audit_file)})
        self.draft.add_warnings(*audit["warnings"])
        [audited] = [item for item in audit["sets"] if item["name"] == "generated"]
        own = self.images.ours
        ours = {content_sha256(facts) for images, _, facts in self.images.sample_sets if images.name == own}
        if ours - {audited["content_sha256"]}:
            self.draft.add_warnings(AUDIT_OF_OTHERS)

    def add_sweep(
        self,
        network: Medfusion,
        sampler: LatentDiffusionSampler,
        model_file: str | Path,
        steps: Sequence[int],
        num_samples: int = 64,
    ) -> None:
        """Measure quality against the number of sampling steps: figure 7 of the paper.

        Args:
            network: with its weights.
            sampler: with all settings but the number of steps.
            model_file: the weights, whose checksum identifies cached features.
            steps: numbers of sampling steps; none leaves this part out.
            num_samples: images per class and number of steps.
        """
        if not steps:
            return
        plan = sampling_plan(self.images.class_names, num_samples=num_samples, seed=self.seed)
        features, reference = self.extraction.extractor.describe(), self.reference.features
        identity = sweep_identity(network, sampler, model_file, features)
        options = (identity, self.replicates, self.seed)
        self.draft.results["features"] = features
        self.draft.results["sweep"] = {
            "name": OURS,
            "note": f"{num_samples} images per class and number of steps, with the same seeds each time, against "
            f"{len(reference)} reference images; sampler {sampler.sampler}, spacing "
            f"{sampler.spacing}, eta {sampler.eta:g}, guidance {guidance_words(sampler)}.",
            "rows": sweep_rows(network, sampler, plan, steps, reference, self.extraction, *options),
        }

    def write(self, model_file: str | Path) -> dict[str, Any]:
        """Write the report and return its figures.

        Args:
            model_file: the weights.
        """
        return from_first(lambda: self._write(model_file))

    def _write(self, model_file: str | Path) -> dict[str, Any]:
        self.images.refuse_changed()
        datalist = find_datalist(self.images.dataset_dir)
        self.draft.note("checksums", **{"model.pt": file_sha256(model_file), datalist.name: file_sha256(datalist)})
        trained_on = (read_model_info(model_file) or {}).get("training", {}).get("images")
        if trained_on:
            self.draft.note("checksums", **{"training images": trained_on})
        results = self.draft.write(self.output_dir)
        logger.info("report written: %s", self.output_dir / "report.html")
        return results
