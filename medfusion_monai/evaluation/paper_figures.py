"""The figures of the paper (Müller-Franzes et al. 2023), for comparison.

They are those of arXiv:2212.07501, tables 1 to 3, and what the abstract of the journal version (Scientific Reports 13,
12098, doi:10.1038/s41598-023-39278-0) adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

DATA_SETS = {"cxr": "CheXpert", "fundus": "AIROGS", "histo": "CRC-DX"}
CLASS_NAMES = {
    "cxr": {"no_cardiomegaly", "cardiomegaly"},
    "fundus": {"no_referable_glaucoma", "referable_glaucoma"},
    "histo": {"msi", "mss"},
}
"""Of the three bundles."""

FIDELITY = {
    "cxr": {"ProGAN": (84.31, 0.30, 0.17), "Medfusion": (17.28, 0.68, 0.32)},
    "fundus": {"StyleGAN-3": (20.43, 0.43, 0.19), "Medfusion": (11.63, 0.70, 0.40)},
    "histo": {"cGAN": (49.26, 0.64, 0.02), "Medfusion": (30.03, 0.66, 0.41)},
}
"""FID, precision and recall of the published reference batches, Inception-v3 features."""

JOURNAL_RECALL = {"cxr": {"StyleGAN-3": 0.08}, "histo": {"StyleGAN-3": 0.24}}
"""Recall of the generators that only the journal version has; its abstract states neither their FID nor precision."""

RECONSTRUCTIONS = {
    "cxr": {"Medfusion": ((0.994, 0.001), (25e-5, 9e-5)), "Stable Diffusion VAE": ((0.973, 0.006), (90e-5, 30e-5))},
    "fundus": {"Medfusion": ((0.981, 0.007), (11e-5, 7e-5)), "Stable Diffusion VAE": ((0.973, 0.010), (22e-5, 10e-5))},
    "histo": {
        "Medfusion": ((0.901, 0.040), (541e-5, 305e-5)),
        "Stable Diffusion VAE": ((0.870, 0.049), (640e-5, 383e-5)),
    },
}
"""MS-SSIM of the paper's script (``ms_ssim_as_in_paper``) and mean squared error, each mean and standard deviation over
the images of the reference batch."""

NOTE = "From tables 1 to 3 of the paper: 15,738 images of CheXpert, 6,540 of AIROGS, 19,958 of CRC-DX."
JOURNAL_NOTE = (
    "The recall of StyleGAN-3 is from the abstract of the journal version (Scientific Reports 13, 12098), which states "
    "neither its FID nor its precision."
)


def modalities_of(class_names: Sequence[str]) -> list[str]:
    """Return the modality with these classes, in any order; nothing if the paper has no such data set."""
    return [modality for modality, names in CLASS_NAMES.items() if names == set(class_names)]


def published_fidelity(class_names: Sequence[str]) -> dict[str, Any]:
    """Return the published rows of a report's fidelity table."""
    modalities = modalities_of(class_names)
    rows: list[dict[str, Any]] = [
        {"name": f"{name} (paper, {DATA_SETS[modality]})", "fid": fid, "precision": precision, "recall": recall}
        for modality in modalities
        for name, (fid, precision, recall) in FIDELITY[modality].items()
    ]
    added = [
        {"name": f"{name} (journal version, {DATA_SETS[modality]})", "recall": recall}
        for modality in modalities
        for name, recall in JOURNAL_RECALL.get(modality, {}).items()
    ]
    return {"note": f"{NOTE} {JOURNAL_NOTE}" if added else NOTE, "rows": rows + added}


def published_reconstructions(class_names: Sequence[str]) -> dict[str, Any]:
    """Return the published rows of a report's table of reconstructions."""
    rows = [
        {"name": f"{name} (paper, {DATA_SETS[modality]})", "ms_ssim_paper": list(ms_ssim), "mse": list(mse)}
        for modality in modalities_of(class_names)
        for name, (ms_ssim, mse) in RECONSTRUCTIONS[modality].items()
    ]
    return {"note": NOTE, "rows": rows}
