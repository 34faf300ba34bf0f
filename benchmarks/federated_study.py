"""What can three hospitals reach alone, by pooling their X-rays, by federated training, and by sharing samples?

    OMP_NUM_THREADS=1 python benchmarks/federated_study.py --xrays DIR --output DIR

DIR of --xrays has ``images`` and ``labels.csv`` of NIH ChestX-ray14. Effusion against no finding; patients are divided
among three hospitals of unequal size, shares of effusions and views (``hospitals/sites.py``), and each hospital holds
out a fifth of its patients. The held-out images of all three are the test of every arm.

Arms: each site alone; ``central``, one training on the images of all; ``federated``, by ``examples/federated/train.py``
in the simulator of NVIDIA FLARE, both phases; ``shared``, the audited samples of the three sites' own models, packed by
``medfusion share`` and combined by ``medfusion prepare shared``, drawn in the ratio of the sites' training images. All
trainings take as many steps, in the federation at each site, and take their last weights.

Figures, with 95% intervals: Fréchet distance, precision and recall of samples against the test images in features of
EfficientNet-Lite0, classes as frequent as in the test; label AUC, of classifiers of all real training images on the
samples; and the AUC on the test patients of a classifier of the samples alone, the mean of both views, as the views of
the sites differ. The audit of each model at each site. The rule of the comparisons and all settings were committed
before the first result, see ``hospitals/protocol.py``.

Kill it at any time: the same command continues, also within a training. Another rule, other settings or other data are
refused in the same --output. An arm that cannot be finished is named with the reason, and the others are measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hospitals.protocol import MODELS, Protocol
from hospitals.sites import ALL, SITES, prepare_sites
from hospitals.trainings import Commands, Failed
from study.store import Store

from medfusion_monai.data.datalist import DATALIST_NAME, read_datalist
from medfusion_monai.data.pixels import fingerprint
from medfusion_monai.runtime.files import file_sha256

PROTOCOL = Protocol()


def main() -> None:
    """Do what is left of the study, and print its tables."""
    arguments = parse()
    store = Store(arguments.output)
    data = {name: arguments.output / "data" / name for name in (*SITES, ALL)}
    if not all((folder / DATALIST_NAME).is_file() for folder in data.values()):
        prepare_sites(arguments.xrays, arguments.output / "data")
    store.claim(identity(data, arguments.bundle, PROTOCOL))
    commands = Commands(arguments.bundle, data, arguments.output, PROTOCOL)
    for name in MODELS:
        train(store, commands, name)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--xrays", type=Path, required=True, help="folder with images and labels.csv")
    parser.add_argument("--output", type=Path, required=True, help="folder of everything that the study writes")
    parser.add_argument("--bundle", type=Path, default=Path("bundles/medfusion_cxr"), help="folder of the bundle")
    return parser.parse_args()


def identity(data: Mapping[str, Path], bundle: Path, protocol: Protocol) -> dict[str, Any]:
    """Return what a study is recognised by: protocol, configs, and the images of each site and split."""
    configs = {name: file_sha256(bundle / "configs" / name) for name in ("train.yaml", *protocol.overlays)}
    images = {
        f"{name}, {split}": fingerprint(read_datalist(data[name], split))
        for name in (*SITES, ALL)
        for split in ("training", "validation", "test")
    }
    return {**protocol.describe(), "configs": configs, "images": images}


def train(store: Store, commands: Commands, name: str) -> None:
    """Train a model if that is not done, and keep its cost, or why it failed."""
    try:
        cost = commands.train(name)
    except Failed as error:
        print(f"{name}: not trained\n{error}", flush=True)
        return
    if cost is not None:
        store.write(f"training {name}", cost)
        print(
            f"{name}: trained in {cost['seconds'] / 60:.1f} min, {cost['cpu_seconds'] / 60:.1f} of a core", flush=True
        )


if __name__ == "__main__":
    main()
