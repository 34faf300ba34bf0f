"""Sites with a tiny model each, its samples, an audit of these, and the package."""

from types import SimpleNamespace

import torch
from tiny_models import info_of, tiny

from medfusion_monai.cli import main
from medfusion_monai.evaluation.image_form import content_sha256, inspect_set
from medfusion_monai.evaluation.image_set import open_image_set
from medfusion_monai.model import Model
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.runtime.locks import leave_folders
from medfusion_monai.sampling.plan import sampling_plan
from medfusion_monai.sampling.writer import SampleWriter, sample_settings
from medfusion_monai.weights.model_info import write_model_info
from medfusion_monai.weights.state_dict import save_weights

PLANTED = "Musterfrau-Erika-1964"
"""Part of the names of the folders, users and patients of a site."""
TRAINED_ON = "ab" * 16


def textures(count, seed, size=(16, 24)):
    """Images (N, 1, H, W) in [0, 1] of 8 bits, each different from all others."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 4, 6, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    return (images * 255).round() / 255


def write_model(folder, scale=1.0, trained_on=TRAINED_ON, **changes):
    """Write the weights of a site, which differ by their scale, and return their place."""
    folder.mkdir(parents=True, exist_ok=True)
    network = tiny(**changes)
    network.unet.conv_out.weight.data *= scale
    info = info_of(network)
    info["training"]["images"] = trained_on
    save_weights(network, folder / "model.pt")
    write_model_info(folder / "model.pt", info)
    return folder / "model.pt"


def write_samples(folder, model_file, seed=0, count=30, images=None):
    """Write samples as inference does, and return their folder."""
    model = Model(model_file)
    folder.mkdir(parents=True, exist_ok=True)
    plan = sampling_plan(model.class_names, num_samples=count, seed=seed)
    settings = sample_settings(model.sampler, model.network, model.image_size, 10, "png")
    writer = SampleWriter(plan, folder, settings, model.path, 10)
    pixels = textures(len(plan), seed, model.image_size) if images is None else images
    pixels = pixels.expand(-1, model.image_channels, -1, -1)
    for batch in writer:
        columns = {name: [plan[index][name] for index in batch] for name in plan[0]}
        writer(SimpleNamespace(state=SimpleNamespace(batch=columns, output={"pred": pixels[batch]})))
    writer.report()
    return folder


def figure(value, low, high):
    return {"value": value, "low": low, "high": high, "note": ""}


def audit_results(samples, model_file):
    """Return what an audit of samples finds, with the names of the site wherever one can be."""
    images = open_image_set("generated", samples)
    count, half = len(images.items), len(images.items) // 2
    form = {"classes": images.counts(), "size": [16, 24], "channels": 1}
    sets = [
        {
            "name": "generated",
            "source": PLANTED,
            "count": count,
            **form,
            "content_sha256": content_sha256(inspect_set(images)),
        },
        {"name": "training", "source": f"'training' of {PLANTED}", "count": 60, **form, "content_sha256": "1" * 64},
        {"name": "held-out", "source": f"'test' of {PLANTED}", "count": 120, **form, "content_sha256": "2" * 64},
    ]
    withheld = {"value": None, "low": None, "high": None, "note": f"withheld: {half} generated images"}
    found = {"class_name": None, "count": count, "copies": 0, "training_images": 0, "expected_false_alarms": 0.5}
    guard = {"threshold": 0.6, "rate": 0.01, "held_out": 118, "apart": 2}
    audit = {
        **guard,
        "flips": "horizontal",
        "orientations": 2,
        "wanted_rate": 0.01,
        "measures": ["pixels", "structure"],
        "leaked": 1,
        "passed": {"count": count, "nearer_than_99": figure(0.0, 0.0, 0.06), "nearer_than_all": figure(0.0, 0.0, 0.06)},
        "median_held_out": 0.84,
        "median_generated": 0.88,
        "features": {"name": f"TorchScript {PLANTED}.pt", "sha256": "3" * 64, "dimensions": 8, "resize": "none"},
        "rows": [
            {**found, "copy_rate": figure(0.0, 0.0, 0.06)},
            *({"class_name": name, "count": half, "copy_rate": withheld} for name in images.class_names),
        ],
        "repeats": 0,
        "leaks": [{"split": "test", "number": 3, "equal": True, "file": PLANTED}],
        "nearer_to_training": figure(0.5, 0.4, 0.6),
        "closest": [{"file": f"{PLANTED}.png", "training": 49, "score": 0.7, "copy": False, "ratios": {"pixels": 0.8}}],
        "membership": {},
        "earlier_trainings_on_other_images": 0,
        "guard": guard,
        "power": {},
    }
    checksums = {"model.pt": file_sha256(model_file), "training images": TRAINED_ON, "datalist.json": "4" * 64}
    return {
        "title": f"Audit of {PLANTED}",
        "warnings": [f"{PLANTED} could not be read"],
        "sets": sets,
        "pictures": [],
        "audit": audit,
        "summary": [PLANTED],
        "repeat": {
            "versions": {"medfusion_monai": "0.1.0", "torch": "2.15.0"},
            "commands": [f"medfusion audit --dataset-dir {PLANTED}"],
            "checksums": checksums,
            "seeds": {},
            "settings": {"place": PLANTED},
        },
    }


def shared(samples, model, audit, licence, output, *options):
    """Run ``medfusion share`` and return the package."""
    places = ["--model-file", str(model), "--audit", str(audit), "--licence", str(licence), "--output", str(output)]
    try:
        assert main(["share", str(samples), *places, *options]) == 0
    finally:
        leave_folders()
    return output
