"""Federations of three sites with tiny networks on phantoms, whose folders, files and patients have a planted name."""

import json
import os
import sys
from pathlib import Path

import torch
from tiny_training import TINY_NETWORKS

from medfusion_monai.demo.phantoms.families import prepare_phantoms
from medfusion_monai.sites.site_file import write_site

ROOT = Path(__file__).parents[2]
PLANTED = "Musterfrau-Erika-1964"
SITES = ["north", "south", "west"]
TINY = {
    **TINY_NETWORKS,
    "autoencoder_batch_size": 4,
    "diffusion_batch_size": 4,
    "num_inference_steps": 3,
    "precision": "float32",
}


def prepare_sites(folder):
    """Write the images of all sites."""
    for number, name in enumerate(SITES):
        data = folder / PLANTED / name
        prepare_phantoms(data, num_images=24, size=32, seed=number)
        for path in (data / "images").rglob("*.png"):
            path.rename(path.with_name(f"{PLANTED}_{path.name}"))
        text = (data / "datalist.json").read_text()
        names = {path.name.removeprefix(f"{PLANTED}_") for path in (data / "images").rglob("*.png")}
        for file in names:
            text = text.replace(f'{file}"', f'{PLANTED}_{file}"')
        (data / "datalist.json").write_text(text)


def write_sites(folder, files, **changes):
    """Write the files of the sites, with changes of the last."""
    for name in SITES:
        settings = TINY | {"trial_step": False, "device": "cpu"} | (changes if name == SITES[-1] else {})
        place = folder / PLANTED / files / name
        places = {"dataset_dir": folder / PLANTED / name, "output_dir": place / "runs", "model_dir": place / "models"}
        write_site(folder / files, name, ROOT / "bundles" / "medfusion_cxr", ["demo.yaml"], settings, **places)
    return folder / files


def command(output, *options, rounds=2, steps=2):
    """Return the command that trains over the sites."""
    keys = [f"{key}={json.dumps(value)}" for key, value in TINY.items()]
    words = [sys.executable, str(ROOT / "examples" / "federated" / "train.py"), "--overlays", "demo.yaml"]
    words += ["--bundle", str(ROOT / "bundles" / "medfusion_cxr"), "--sites", *SITES, "--output", str(output)]
    words += ["--rounds", str(rounds), "--steps", str(steps), *map(str, options)]
    return [*words, *(word for key in keys for word in ("--set", key))]


def environment(**variables):
    """Return the environment of all processes."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}


def kept_rounds(output, phase="diffusion"):
    """Return how many rounds of a phase the server has kept."""
    kept = output / f"{phase}_kept.pt"
    found = torch.load(kept, weights_only=True, mmap=True) if kept.is_file() else {}
    rounds = found.get("model", found).get("rounds")
    return 0 if rounds is None else int(torch.as_tensor(rounds).item())
