import copy

import pytest
from PIL import Image

SHA = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
CLASSES = ("no_cardiomegaly", "cardiomegaly")


def figure(value, width=0.05, note=""):
    return {"value": value, "low": value - width, "high": value + width, "note": note}


def image_set(name, count):
    classes = dict.fromkeys(CLASSES, count // 2)
    return {
        "name": name,
        "source": f"runs/{name}",
        "count": count,
        "classes": classes,
        "size": [64, 48],
        "channels": 1,
        "content_sha256": SHA,
    }


def fidelity(name, class_name, fid):
    count = 128 if class_name is None else 64
    return {
        "name": name,
        "class_name": class_name,
        "reference_count": 200,
        "count": count,
        "fid": figure(fid, 2.0, f"{count} samples for 2048 features."),
        "kid": figure(fid / 4000, 0.001),
        "precision": figure(0.9 - fid / 100),
        "recall": figure(0.8 - fid / 100),
        "diversity_ms_ssim": figure(0.3),
    }


def spread(mean, std):
    return {"mean": mean, "std": std, "low": mean - std / 10, "high": mean + std / 10}


RESULTS = {
    "title": "Generated X-rays against the reference",
    "summary": ["Two generators were compared."],
    "warnings": ["128 images are few for FID."],
    "reference": image_set("reference", 200),
    "sets": [image_set("ours", 128), image_set("other", 128)],
    "features": {"name": "inception-v3", "sha256": SHA, "dimensions": 2048, "resize": "299x299", "is_inception": True},
    "fidelity": [
        fidelity(name, class_name, fid + shift)
        for class_name, shift in ((None, 0.0), (CLASSES[0], 1.0), (CLASSES[1], 2.0))
        for name, fid in (("ours", 20.25), ("other", 30.5))
    ],
    "published": {
        "note": "Table 3 of the paper.",
        "rows": [{"name": "Medfusion (paper)", "fid": 1.28, "precision": 0.99, "recall": 0.99}],
    },
    "reconstructions": [
        {"name": name, "split": "test", "count": 200, "ms_ssim": spread(ms_ssim, 0.003), "mse": spread(mse, 9e-5)}
        for name, ms_ssim, mse in (("ours", 0.989, 25e-5), ("other", 0.973, 90e-5))
    ],
    "published_reconstructions": {
        "note": "Table 2 of the paper.",
        "rows": [{"name": "Medfusion (paper)", "ms_ssim_paper": [0.994, 0.001], "mse": [25e-5, 9e-5]}],
    },
    "sweep": {
        "name": "ours",
        "note": "The same seeds throughout.",
        "rows": [
            {
                "num_inference_steps": steps,
                "count": 64,
                "fid": figure(fid),
                "precision": figure(0.6),
                "recall": figure(0.3),
            }
            for steps, fid in ((50, 31.0), (150, 24.0), (250, 24.5))
        ],
    },
    "steering": {
        "note": "Balanced accuracy.",
        "rows": [
            {
                "trained_on": "real",
                "tested_on": "ours",
                "train_count": 1600,
                "test_count": 128,
                "seeds": 3,
                "accuracy": figure(0.912),
                "auc": figure(0.94),
            }
        ],
    },
    "pictures": [{"file": "samples.png", "title": "Samples", "caption": "Not selected."}],
    "repeat": {
        "versions": {"torch": "2.15.0"},
        "commands": ["medfusion compare --images ours=runs/ours"],
        "checksums": {"models/model.pt": SHA},
        "seeds": {"bootstrap": 0},
        "settings": {"k": 3, "steps": [50, 150]},
    },
}


@pytest.fixture
def results():
    """Return results with every part of a report; a test may change them."""
    return copy.deepcopy(RESULTS)


@pytest.fixture
def pictures():
    return {"samples.png": Image.linear_gradient("L").resize((1200, 300))}
