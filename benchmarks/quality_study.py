"""Compare recipes of phase two for equal compute: train each for the same time, sample, and measure the images.

Kill it at any time; the same command resumes. Everything that is finished is a file in --output, and a training is
saved every two minutes. Start the same command twice to use two cores. The compute of an arm is counted in processor
seconds of one thread, which on a core of its own are seconds of the clock: the median step of each arm is measured
once, all arms in turn, and each arm gets as many steps as fit. So arms are compared for equal processor seconds, not
for equal steps.

With ``--overlay small.yaml`` it is a study of images of patients, by the rule of ``study/rule.py``; with ``demo.yaml``
one of phantoms, by that of ``study/summary.py``.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from study.arms import ARMS, Arm, choose_arms, why_not
from study.evaluation import Judge
from study.material import (
    SPLITS,
    Given,
    Materials,
    config_files,
    open_autoencoder,
    own_class_names,
    read_images,
    read_recipe,
    train_autoencoder,
    weights_at,
)
from study.plan import measure_costs, plan_text
from study.protocol import PROTOCOLS, Protocol
from study.real_tables import real_tables
from study.running import Study
from study.store import Store
from study.summary import markdown, summarise, verdict_table

from medfusion_monai.bundle.parser import read_files
from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.data.pixels import fingerprint
from medfusion_monai.demo.phantoms.families import family_of_classes, prepare_phantoms
from medfusion_monai.demo.phantoms.network import train_phantom_features
from medfusion_monai.evaluation.metrics.features import load_extractor
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.weights import efficientnet_lite

BUNDLE = Path(__file__).parents[1] / "bundles" / "medfusion_cxr"
PHANTOMS = "phantoms"
MOST_SAMPLES = 512


def main() -> None:
    """Do what is left of a study and print its tables."""
    setup = Setup(parse())
    torch.set_num_threads(1)
    if setup.arguments.plan:
        print(setup.plan(), flush=True)
        return
    for name, why in setup.skipped.items():
        print(f"{name} is not run: {why}", flush=True)
    setup.store.claim(setup.identity)
    with setup.store.alone("preparation"):
        materials = setup.materials()
        for arm in setup.arms:
            materials.material(arm)
        materials.reference()
    judge = Judge(materials, materials.material(setup.arms[0]), setup.phantoms, setup.samples)
    study = Study(setup.store, materials, judge, setup.seconds, setup.protocol)
    study.run(setup.arms, setup.seeds)
    report(setup.store, setup.arguments, setup.protocol)


def parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of everything that the study writes")
    parser.add_argument("--data", default=PHANTOMS, help="'phantoms', drawn here, or a folder of medfusion prepare")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="folder of the bundle whose recipe is compared")
    parser.add_argument("--overlay", choices=PROTOCOLS, default="demo.yaml", help="of the bundle: sizes and recipe")
    parser.add_argument("--seconds", type=float, help="processor seconds of one thread for each training (120 or 600)")
    parser.add_argument("--seeds", type=int, nargs="+", help="one training of each arm each (two or four)")
    parser.add_argument("--arms", nargs="+", help=f"of {', '.join(arm.name for arm in ARMS)}; the overlay's by default")
    parser.add_argument(
        "--samples",
        type=int,
        help=f"images of each sample ({MOST_SAMPLES}; small.yaml: at most as many as held-out ones)",
    )
    parser.add_argument("--unet-channels", type=int, nargs="+", help="widths of the UNet; the overlay's by default")
    parser.add_argument("--autoencoder", type=Path, help="weights, or a folder with them, in place of phase one")
    parser.add_argument("--equivariant-autoencoder", type=Path, help="weights for the arm 'equivariant'")
    parser.add_argument("--autoencoder-steps", type=int, help="of phase one; the overlay's by default")
    parser.add_argument(
        "--features", help="of load_extractor, or 'phantoms'; by default efficientnet-lite0, of phantoms their own"
    )
    parser.add_argument("--also", type=Path, nargs="+", default=[], help="folders of other studies, for the verdict")
    parser.add_argument("--plan", action="store_true", help="say what it would take, and train nothing")
    parser.add_argument("--json", type=Path, help="file for all figures")
    return parser.parse_args(given)


class Setup:
    """What a command line stands for.

    Args:
        arguments: of ``parse``.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.store = arguments, Store(arguments.output)
        self.bundle, self.overlay = arguments.bundle, arguments.overlay
        self.protocol: Protocol = PROTOCOLS[arguments.overlay]
        self.seeds = list(arguments.seeds or self.protocol.seeds)
        self.seconds = self.protocol.seconds if arguments.seconds is None else arguments.seconds
        chosen = choose_arms(arguments.arms or self.protocol.arms, self.protocol.reference)
        has_equivariant = arguments.equivariant_autoencoder is not None
        reasons = {arm.name: why_not(arm, self.recipe["latent_flips"], has_equivariant) for arm in chosen}
        self.skipped: dict[str, str] = {name: why for name, why in reasons.items() if why is not None}
        self.arms: list[Arm] = [arm for arm in chosen if arm.name not in self.skipped]

    @cached_property
    def dataset_dir(self) -> Path:
        """Folder of the data set; phantoms are drawn if they are asked for and not there."""
        if self.arguments.data != PHANTOMS:
            return Path(self.arguments.data)
        folder: Path = self.arguments.output / "data"
        with self.store.alone("preparation"):
            if not (folder / "datalist.json").is_file():
                prepare_phantoms(folder)
        return folder

    @cached_property
    def overrides(self) -> dict[str, Any]:
        """Keys of the bundle that the command line or the data set define."""
        own = own_class_names(self.dataset_dir) if self.arguments.data != PHANTOMS else None
        chosen = {
            "class_names": own,
            "autoencoder_steps": self.arguments.autoencoder_steps,
            "unet_channels": self.arguments.unet_channels,
        }
        return {name: value for name, value in chosen.items() if value is not None}

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Keys of the bundle that a study needs."""
        return read_recipe(self.bundle, self.overlay, self.overrides)

    @cached_property
    def items(self) -> dict[str, list[dict[str, Any]]]:
        """Entries of the datalist, by ``SPLITS``."""
        names = self.recipe["class_names"]
        return {
            split: [item for part in parts for item in read_datalist(self.dataset_dir, part, names)]
            for split, parts in SPLITS.items()
        }

    @property
    def samples(self) -> int:
        """Images of each sample.

        Raises:
            ValueError: for more than there are held-out images, if their distance is the scale.
        """
        held_out, wanted = len(self.items["held_out"]), self.arguments.samples
        if self.protocol.with_checks:  # whose distances are not ratios
            return wanted or MOST_SAMPLES
        if wanted is not None and wanted > held_out:
            raise ValueError(
                f"--samples {wanted}: there are {held_out} held-out images to compare with, and distances depend on "
                f"the number. Take at most {held_out}, or prepare the data with larger --fractions for them"
            )
        return min(held_out, MOST_SAMPLES) if wanted is None else wanted

    @property
    def phantoms(self) -> str | None:
        """Modality of the phantoms; None for images of patients."""
        return family_of_classes(self.recipe["class_names"]) if self.arguments.data == PHANTOMS else None

    @property
    def features(self) -> str:
        """What the judge's features are of."""
        chosen: str | None = self.arguments.features
        return chosen or (PHANTOMS if self.arguments.data == PHANTOMS else efficientnet_lite.NAME)

    def extractor(self) -> Any:
        """Return the network of the features; that of phantoms is trained if it is not there."""
        if self.features != PHANTOMS:
            return load_extractor(self.features)
        path = self.arguments.output / "features.pt"
        if not path.is_file():
            train_phantom_features(family_of_classes(self.recipe["class_names"]), path)
        return load_extractor(f"phantoms:{path}")

    @property
    def identity(self) -> dict[str, Any]:
        """What may not change while a study goes on."""
        given = {
            "autoencoder": self.arguments.autoencoder,
            "equivariant autoencoder": self.arguments.equivariant_autoencoder,
        }
        digests = {name: file_sha256(weights_at(path)) for name, path in given.items() if path is not None}
        return {
            "rule": self.protocol.rule,
            "overlay": self.overlay,
            "seconds": self.seconds,
            "samples": self.samples,
            "features": self.features,
            "recipe": self.recipe,
            **{f"{split} images": fingerprint(items) for split, items in self.items.items()},
            "autoencoder": "trained here",
            **digests,
            **{f"arm {arm.name}": arm.recipe for arm in self.arms},
        }

    def autoencoders(self) -> dict[str, Given]:
        """Open the autoencoders; the first is trained if no file is given."""
        path = self.arguments.autoencoder
        if path is None:
            output = self.arguments.output
            path = train_autoencoder(self.bundle, self.overlay, self.dataset_dir, output, self.overrides)
        paths = {"given": path}
        if self.arguments.equivariant_autoencoder is not None:
            paths["equivariant"] = self.arguments.equivariant_autoencoder
        return {name: open_autoencoder(each, self.bundle, self.overlay, self.overrides) for name, each in paths.items()}

    def materials(self) -> Materials:
        """Open autoencoders and features, and read the images."""
        autoencoders, extractor = self.autoencoders(), self.extractor()
        images = read_images(self.bundle, self.overlay, self.dataset_dir, self.overrides)
        return Materials(self.arguments.output, self.recipe, images, autoencoders, extractor)

    def plan(self) -> str:
        """Measure a few steps of each arm, unless the study did, and say what it takes."""
        if self.arguments.autoencoder is None:
            parser = read_files(config_files(self.bundle, self.overlay), self.overrides)
            networks = {"given": parser.get_parsed_content("autoencoder")}
        else:
            networks = {name: given.network for name, given in self.autoencoders().items()}
        if any(arm.autoencoder == "equivariant" for arm in self.arms) and "equivariant" not in networks:
            path = self.arguments.equivariant_autoencoder
            networks["equivariant"] = open_autoencoder(path, self.bundle, self.overlay, self.overrides).network
        has_own = self.features != PHANTOMS or (self.arguments.output / "features.pt").is_file()
        extractor = self.extractor() if has_own else load_extractor(efficientnet_lite.NAME)  # which costs more
        counts = {name: len(items) for name, items in self.items.items()}
        counts["samples"] = self.samples
        known = self.store.step_seconds()
        costs = measure_costs(self.arms, self.recipe, networks, extractor, (counts["training"], self.samples), known)
        flips = self.recipe["latent_flips"]
        text = plan_text(costs, self.arms, self.seeds, self.seconds, counts, self.protocol, self.skipped, flips)
        done = [
            each for each in of_kind(self.store.records(), "training") if each["length"] == self.protocol.lengths[-1]
        ]
        text += f"\n{len(done)} of {len(self.arms) * len(self.seeds)} trainings are finished, and counted above"
        return text if self.arguments.autoencoder else f"{text}\nPhase one is trained first, and not counted"


def report(store: Store, arguments: argparse.Namespace, protocol: Protocol) -> None:
    """Print the tables, the verdict, and write the JSON file."""
    records, rows = store.records(), []
    studies = {folder.name: Store(folder).records() for folder in (arguments.output, *arguments.also)}
    if protocol.with_checks:
        rows = summarise(of_kind(records, "evaluation"))
        baselines = {record["name"]: record for record in of_kind(records, "baseline")}
        print(f"\n{markdown(rows, of_kind(records, 'training'), baselines)}\n")
        print(verdict_table({name: of_kind(each, "evaluation") for name, each in studies.items()}))
    else:
        print(f"\n{real_tables(studies)}")
    if arguments.json:
        machine = {"processor": platform.processor() or platform.machine(), "threads": 1, "torch": torch.__version__}
        result = {"machine": machine, "study": store.identity(), "step_seconds": store.step_seconds()}
        arguments.json.write_text(json.dumps({**result, "rows": rows, "records": records}, indent=1) + "\n")


def of_kind(records: Sequence[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    """Return the records of a kind: ``baseline``, ``training`` or ``evaluation``."""
    return [record for record in records if record["kind"] == kind]


if __name__ == "__main__":
    main()
