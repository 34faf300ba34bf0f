"""The checks before the first step of a training, for the run itself and for ``medfusion check``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from medfusion_monai.runtime.files import refuse_unwritable
from medfusion_monai.runtime.locks import refuse_used
from medfusion_monai.runtime.memory_format import check_compile, choose_channels_last
from medfusion_monai.runtime.values import (
    check_bool,
    check_counts,
    check_image_size,
    check_optional_counts,
    check_steps,
)
from medfusion_monai.training.preflight.disk import (
    check_disk,
    check_room,
    latents_bytes,
    pictures_bytes,
    snapshots_bytes,
)
from medfusion_monai.training.preflight.image_sample import check_sample
from medfusion_monai.training.preflight.machine import check_device, check_versions
from medfusion_monai.training.preflight.run_checks import Check, check_all, contact_sheet, is_rehearsal
from medfusion_monai.training.preflight.trial_step import check_memory
from medfusion_monai.weights.model_info import DIFFUSION, kind_of, read_model_info

if TYPE_CHECKING:
    from medfusion_monai.networks.medfusion import Medfusion
    from medfusion_monai.training.run import TrainingRun
    from medfusion_monai.training.train_autoencoder import AutoencoderTraining
    from medfusion_monai.training.train_diffusion import DiffusionTraining
    from medfusion_monai.training.training_images import TrainingImages


class TrainingChecks:
    """Checks settings and data of a training, then what depends on its networks.

    Both phases are checked before the first one begins; otherwise the second could fail after days.

    Args:
        run: what both phases share.
        images: of training and validation.
        phases: ``steps``, ``val_interval`` and ``batch_size`` of each phase, by its name.
    """

    kind = DIFFUSION

    def __init__(self, run: TrainingRun, images: TrainingImages, **phases: Mapping[str, Any]) -> None:
        self.run, self.images, self.phases = run, images, phases

    def check_settings(self) -> None:
        """Check machine, settings and data.

        Raises:
            ValueError: one problem, or all of them.
        """
        check_all(self._checks_of_settings())

    def _checks_of_settings(self) -> list[Check]:
        run, images = self.run, self.images
        return [
            Check("machine", "versions", check_versions),
            Check("machine", "device", lambda: check_device(run.device)),
            Check("settings", "image_size", lambda: check_image_size(images.image_size, images.downsampling)),
            Check("settings", "choices", images.check_choices),
            *(
                Check(
                    "settings",
                    f"{name}_steps",
                    partial(check_steps, name, phase["steps"], phase["val_interval"], run.val_interval),
                )
                for name, phase in self.phases.items()
            ),
            Check("settings", "seed", lambda: check_counts(0, seed=run.seed)),
            Check("settings", "counts", self._check_counts),
            Check("settings", "switches", self._check_switches),
            Check("settings", "pretrained_model", self._check_start),
            Check("data", "training", lambda: images.training and None),
            Check("data", "validation", lambda: images.validation and None),
            Check("data", "sample", self._check_sample),
            Check("data", "labels", images.describe_labels),
            Check("data", "folders", self._check_folders),
            Check("machine", "compile", lambda: check_compile(run.device) if run.compile is True else None),
            Check("networks", "precision", lambda: run.dtype and None),
            Check("networks", "class_shares", lambda: images.shares and None),
        ]

    def check_networks(
        self, network: Medfusion, autoencoder: AutoencoderTraining, diffusion: DiffusionTraining
    ) -> None:
        """Check disks and memory, given the networks and trainers of both phases.

        Raises:
            ValueError: one problem, or all of them.
        """
        trainers = [autoencoder, diffusion] if autoencoder.is_needed else [diffusion]
        check_all(
            [
                Check("networks", "networks", lambda: None),
                Check("data", "latents", lambda: refuse_unwritable(diffusion.latent_folders)),
                Check("room", "disk", lambda: self._check_disk(network, autoencoder, diffusion)),
                Check("room", "memory", lambda: check_memory(trainers) if self.run.trial_step else "not tried"),
            ]
        )

    def check_trainer(self, trainer: Any) -> None:
        """Check disks and memory, given the trainer of a training with one phase.

        Raises:
            ValueError: one problem, or all of them.
        """
        check_all(
            [
                Check("networks", "networks", lambda: None),
                Check("data", "latents", lambda: refuse_unwritable(trainer.latent_folders)),
                Check("room", "disk", lambda: self._check_room(trainer)),
                Check("room", "memory", lambda: check_memory([trainer]) if self.run.trial_step else "not tried"),
            ]
        )

    def _check_start(self) -> None:
        self.run.pretrained.refuse_own_output(self.run.model_dir)

    def _check_counts(self) -> None:
        batch_sizes = {f"{name}_batch_size": phase["batch_size"] for name, phase in self.phases.items()}
        check_counts(val_images=self.images.val_images, log_interval=self.run.log_interval, **batch_sizes)
        check_optional_counts(checkpoint_interval=self.run.checkpoint_interval)
        if self.run.workers != "auto":
            check_counts(0, num_workers=self.run.workers)

    def _check_switches(self) -> None:
        run = self.run
        choose_channels_last(run.channels_last, "cpu", torch.float32, [1])
        switches = {"resume": run.resume, "compile": run.compile, "trial_step": run.trial_step}
        check_bool(**switches, check_files=self.images.check_files)

    def _check_sample(self) -> str:
        images = self.images
        if images.check_files and not is_rehearsal():
            return "all images are read before the first step"
        paths = [item["image"] for item in images.training + images.validation]
        return check_sample(paths, **images.reading, contact_sheet=contact_sheet())

    def _check_folders(self) -> None:
        self._refuse_other_kind()
        refuse_used(self.run.folders)
        refuse_unwritable(self.run.folders)

    def _refuse_other_kind(self) -> None:
        """Raise a ValueError if the training would replace the weights of another kind of model by its own."""
        file = self.run.model_file
        info = read_model_info(file) if file.is_file() else None
        if info is not None and kind_of(info) != self.kind:
            raise ValueError(
                f"{file} are the weights of {kind_of(info)}, and the training of {self.kind} would replace them: "
                "choose another --model_dir"
            )

    def _check_disk(self, network: Medfusion, autoencoder: AutoencoderTraining, diffusion: DiffusionTraining) -> str:
        run = self.run
        other = self._other_bytes(diffusion)
        other[str(run.output_dir)] += pictures_bytes(self.images.image_size, 3, autoencoder.state.max_epochs or 0)
        if diffusion.snapshots is not None:
            folder, count = diffusion.snapshots.folder, diffusion.snapshots.count
            other[str(folder)] = snapshots_bytes(folder, count, network.autoencoder, network.unet)
        return check_disk(
            run.ckpt_dir, run.model_dir, network.autoencoder, network.unet, autoencoder.adversarial, other
        )

    def _check_room(self, trainer: Any) -> str:
        return check_room(trainer.files(), self._other_bytes(trainer))

    def _other_bytes(self, trainer: Any) -> dict[str, int]:
        """Return the bytes of pictures and latents that a trainer writes, by folder."""
        images = self.images
        pictures = pictures_bytes(images.image_size, trainer.picture_rows, trainer.state.max_epochs or 0)
        other = {str(self.run.output_dir): pictures}
        counts = (len(images.training), len(images.validation))
        for folder, count in zip(trainer.latent_folders, counts, strict=False):  # no folders without a cache
            channels, *sides = trainer.averaged_model.latent_shape
            other[str(folder)] = latents_bytes(folder, count, channels, sides, 1 + len(trainer.dataset.flips))
        return other
