import ast
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from medfusion_monai.demo import run_demo as demo
from medfusion_monai.demo.phantoms.draw_chest import draw_chest_phantom
from medfusion_monai.demo.run_demo import figures_of_report, phantom_agreement, print_summary, run_demo

BUNDLES = Path(__file__).parents[2] / "bundles"


def write_phantoms(folder, labels_of_classes, size=64):
    """Write phantoms of the given labels as samples of classes, with their manifest."""
    folder.mkdir()
    lines = ["file,label,class_name,seed"]
    for number, (name, labels) in enumerate(labels_of_classes.items()):
        for index, label in enumerate(labels):
            image = draw_chest_phantom(index, label, size)[0][0]
            Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(folder / f"{number}_x_{index:06d}.png")
            lines.append(f"{number}_x_{index:06d}.png,{number},{name},{index}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")


def test_agreement_counts_hearts_on_the_side_of_their_class(tmp_path):
    write_phantoms(tmp_path / "s", {"no_cardiomegaly": [0, 0, 0, 1], "cardiomegaly": [1, 1, 0, 0]})
    assert phantom_agreement(tmp_path / "s") == {"no_cardiomegaly": 0.75, "cardiomegaly": 0.5}


def test_summary_takes_the_test_split_and_all_classes(tmp_path, capsys):
    value = {"mean": 0.5, "std": 0.1}
    row = {"count": 9, "ms_ssim": value, "ssim": value, "mse": value}
    figures = {name: {"value": 1.25} for name in ("fid", "precision", "recall")}
    other = {name: {"value": 7.0} for name in figures}
    results = {
        "reconstructions": [{"split": "reference", **row, "count": 5}, {"split": "test", **row}],
        "fidelity": [{"class_name": None, **figures}, {"class_name": "a", **other}],
        "features": {"name": "phantoms"},
    }
    (tmp_path / "report.json").write_text(json.dumps(results))
    summary = figures_of_report(tmp_path / "report.json")
    assert (summary["held_out_images"], summary["ms_ssim"], summary["ms_ssim_std"]) == (9, 0.5, 0.1)
    assert (summary["fid"], summary["recall"]) == (1.25, 1.25)
    shown = {"measured": "heart width", "class_agreement": {"cardiomegaly": 0.5}, "seconds": {"diffusion": 61.0}}
    print_summary(summary | shown, tmp_path)
    printed = capsys.readouterr().out
    assert "heart width fits 'cardiomegaly'" in printed
    assert "50.0%" in printed
    assert "report.html" in printed


def test_only_the_trainings_merge_the_demos_sizes_as_the_weights_say_them_then(tmp_path, monkeypatch):
    commands = []

    def ran(command, **options):
        commands.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(demo.subprocess, "run", ran)
    for name in ("train_phantom_features", "phantom_agreement", "figures_of_report", "print_summary"):
        monkeypatch.setattr(demo, name, lambda *_: {})
    run_demo(BUNDLES / "medfusion_cxr", tmp_path, num_images=20)
    files = {command[4]: [Path(file).name for file in ast.literal_eval(command[6])] for command in commands}
    training = ["train.yaml", "demo.yaml"]
    assert files == {
        "train_autoencoder": training,
        "train_diffusion": training,
        "inference": ["inference.yaml"],
        "evaluating": ["evaluate.yaml"],
    }


@pytest.mark.slow
@pytest.mark.parametrize(("bundle", "ms_ssim"), [("cxr", 0.95), ("fundus", 0.95), ("histo", 0.90)])
def test_demo_reaches_its_bars(bundle, ms_ssim, tmp_path):
    summary = run_demo(BUNDLES / f"medfusion_{bundle}", tmp_path)
    assert summary["ms_ssim"] >= ms_ssim
    assert min(summary["class_agreement"].values()) >= 0.9
    assert {"data", "autoencoder", "diffusion", "sampling"} <= summary["seconds"].keys()
    assert (tmp_path / "report" / "report.html").is_file()
