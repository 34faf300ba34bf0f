"""What is compared, how everything is trained, and the rule by which one way is better than another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from hospitals.sites import ALL, CLASSES, FRACTIONS, SHARES, SITES

CENTRAL, FEDERATED, SHARED = "central", "federated", "shared"
MODELS = (CENTRAL, FEDERATED, *SITES)
"""What is trained, in this order; a site's own model bears its name."""
ARMS = (*MODELS, SHARED)
PAIRS = (
    *((CENTRAL, site) for site in SITES),
    (FEDERATED, CENTRAL),
    *((FEDERATED, site) for site in SITES),
    (SHARED, CENTRAL),
    (SHARED, FEDERATED),
    *((SHARED, site) for site in SITES),
)
"""The comparisons that get a verdict."""
DISTANCE_MARGIN, AREA_MARGIN = 0.10, 0.03
RULE = (
    f"Of a pair, the first has the better distance if the 95% interval of the ratio of its distance to that of the "
    f"second lies below 1, the worse one if it lies above 1; they are equal if it lies between 1 / "
    f"{1 + DISTANCE_MARGIN:g} and {1 + DISTANCE_MARGIN:g}, which is said in place of better or worse. Its images teach "
    f"better if the 95% interval of the paired difference of the AUC of a classifier of them lies above 0, worse if it "
    f"lies below 0; equally well if it lies between -{AREA_MARGIN:g} and {AREA_MARGIN:g}, which is said in place of "
    "better or worse. Otherwise no difference is shown. Intervals cover generated images, test patients and trainings "
    "of the classifier, not another training of the generators."
)


class Protocol(NamedTuple):
    """All that was chosen before the first result; tests choose less of it.

    Attributes:
        round_steps: steps of a round of federated training, at each site.
        autoencoder_rounds: rounds of phase one; all trainings take as many steps as a site takes in all rounds.
        diffusion_rounds: rounds of phase two.
        samples: negative and positive images that each model samples.
        measured: how many of them, in the class shares of the test images, the distance is of.
        classifiers: trainings of each classifier.
        classifier_steps: of each.
        replicates: resampled sets of test patients.
        overlays: of the bundle, merged after its ``train.yaml``.
        keys: settings of the bundle, the same for all trainings.
    """

    round_steps: int = 100
    autoencoder_rounds: int = 8
    diffusion_rounds: int = 14
    samples: tuple[int, int] = (600, 300)
    measured: int = 500
    classifiers: int = 3
    classifier_steps: int = 300
    replicates: int = 1000
    overlays: tuple[str, ...] = ("demo.yaml",)
    keys: Mapping[str, Any] = {
        "class_names": list(CLASSES),
        "image_size": [64, 64],
        "perceptual_weight": 1.0,  # real X-rays have textures
        "ssim_window": 7,
        "autoencoder_batch_size": 8,
        "diffusion_batch_size": 32,
        "label_dropout": 0.2,
        "diffusion_loss": "l2",
        "sampler": "unipc",
        "eta": 0.0,
        "num_inference_steps": 30,
        "guidance_scale": 1.0,
        "compile": False,
        "channels_last": False,  # a sixth faster at this size
        "trial_step": False,
        "val_images": 64,
    }

    @property
    def steps(self) -> dict[str, int]:
        """Steps of every training, by phase."""
        return {
            "autoencoder": self.autoencoder_rounds * self.round_steps,
            "diffusion": self.diffusion_rounds * self.round_steps,
        }

    def site_keys(self) -> dict[str, Any]:
        """Return the keys of a training of one data set: one validation, at its end, as its last weights are taken."""
        steps = self.steps
        ends = {f"{phase}_{key}": count for phase, count in steps.items() for key in ("steps", "val_interval")}
        return {**self.keys, **ends, "checkpoint_interval": 200}

    def describe(self) -> dict[str, Any]:
        """Return the protocol for the file that a study is recognised by."""
        shares = {f"{'effusion' if found else 'none'}, {view}": part for (found, view), part in SHARES.items()}
        return {"rule": RULE, **self._asdict(), "pairs": PAIRS, "fractions": FRACTIONS, "site shares": shares}


def seed_of(name: str) -> int:
    """Return the seed of a training: that of a site is the same alone and in the federation."""
    return 0 if name not in SITES else SITES.index(name)


def data_of(name: str) -> str:
    """Return the name of the data set that a model is trained on."""
    return name if name in SITES else ALL
