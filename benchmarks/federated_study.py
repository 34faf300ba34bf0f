"""What can three hospitals reach alone, by pooling their X-rays, by federated training, and by sharing samples?

    OMP_NUM_THREADS=1 python benchmarks/federated_study.py --xrays DIR --output DIR [--json FILE] [--picture FILE]

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
refused in the same --output. An arm that cannot be finished is named, and the others are measured; --no-training
measures what is trained so far.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hospitals.costs import travelling
from hospitals.measuring import Measuring, test_images
from hospitals.picture import EACH, save_picture
from hospitals.protocol import ARMS, CENTRAL, FEDERATED, MODELS, SHARED, Protocol
from hospitals.sites import ALL, SITES, describe, divide, prepare_sites, read_table
from hospitals.summary import Summary
from hospitals.trainings import Commands, Failed
from study.store import Store

from medfusion_monai.data.datalist import DATALIST_NAME, read_datalist
from medfusion_monai.data.pixels import fingerprint
from medfusion_monai.model import load, make_preprocessing
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
    for name, rows in divide(read_table(arguments.xrays)).items():
        print(f"{name}: {describe(rows)}", flush=True)
    commands = Commands(arguments.bundle, data, arguments.output, PROTOCOL)
    for name in () if arguments.no_training else MODELS:
        train(store, commands, name)
    measuring = open_measuring(commands)
    if measuring is not None:
        measure(store, commands, measuring)
        if arguments.picture:
            save_picture(first_samples(store, measuring), arguments.picture)
    print(Summary(store, test_images(data[ALL]), PROTOCOL.replicates).text())
    if arguments.json:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        found = {path.stem: json.loads(path.read_text()) for path in sorted(store.results.glob("*.json"))}
        arguments.json.write_text(json.dumps({"machine": machine, **store.identity(), **found}, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--xrays", type=Path, required=True, help="folder with images and labels.csv")
    parser.add_argument("--output", type=Path, required=True, help="folder of everything that the study writes")
    parser.add_argument("--bundle", type=Path, default=Path("bundles/medfusion_cxr"), help="folder of the bundle")
    parser.add_argument("--no-training", action="store_true", help="measure what is trained")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--picture", type=Path, help="PNG with the first samples of each arm")
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


def open_measuring(commands: Commands) -> Measuring | None:
    """Return what measures arms, reading files as a trained model says; None without one."""
    trained = [name for name in MODELS if commands.is_trained(name)]
    if not trained:
        return None
    read: Any = make_preprocessing(load(commands.models(trained[0]), "cpu"))

    def opened(path: str) -> torch.Tensor:
        return torch.as_tensor(read({"image": path})["image"])

    return Measuring(commands.data, commands.samples, opened, commands.protocol)


def measure(store: Store, commands: Commands, measuring: Measuring) -> None:
    """Measure the models that are trained, and what their sites can share; the most important figures first."""
    trained = [name for name in MODELS if commands.is_trained(name)]
    for name in trained:
        commands.sample(name)
        keep(store, f"arm {name}", partial(measuring.arm, name))
    for name in (*SITES, ALL):
        keep(store, f"real {name}", partial(measuring.real, name))
    for site in (name for name in SITES if name in trained):
        keep(store, f"audit {site} {site}", partial(commands.audit, site, site))
    if all(site in trained for site in SITES):
        keep(store, "sharing", partial(share, commands))
    sharing = store.read("sharing") or {"bytes": {}, "refused": {}}
    shared = bool(sharing["bytes"]) and not sharing["refused"]
    if shared:
        keep(store, f"arm {SHARED}", partial(measuring.arm, SHARED))
    packages = sharing["bytes"] if shared else {}
    store.write("travelling", travelling(commands.data, commands.output / FEDERATED, packages, commands.protocol))
    for name in (name for name in (CENTRAL, FEDERATED) if name in trained):
        for data in SITES if name == FEDERATED else (ALL,):
            keep(store, f"audit {name} {data}", partial(commands.audit, name, data))
    for name in (FEDERATED, SHARED):
        for site in SITES if store.read(f"arm {name}") else ():
            keep(store, f"mixed {name} {site}", partial(measuring.mixed, name, site))


def keep(store: Store, name: str, work: Callable[[], Any]) -> None:
    """Do a piece of work and keep what it returns, unless that is done."""
    if store.read(name) is None:
        store.write(name, work())
        print(f"{name}: done", flush=True)


def share(commands: Commands) -> dict[str, Any]:
    """Pack the samples of all sites and combine them; return sizes, or why a site may not share."""
    packages, refused = {}, {}
    for site in SITES:
        try:
            packages[site] = commands.share(site)
        except Failed as error:
            refused[site] = str(error).splitlines()[-1]
    if not refused:
        commands.combine(list(packages.values()))
    return {"bytes": {site: path.stat().st_size for site, path in packages.items()}, "refused": refused}


def first_samples(store: Store, measuring: Measuring) -> dict[str, torch.Tensor]:
    """Return the first samples of each arm that is measured; no real images, so that the picture can be published."""
    return {
        name: measuring.open(measuring.samples(name, [EACH, EACH]))[0] for name in ARMS if store.read(f"arm {name}")
    }


if __name__ == "__main__":
    main()
