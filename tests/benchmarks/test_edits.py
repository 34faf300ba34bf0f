import json
import sys
from importlib import import_module
from pathlib import Path

from PIL import Image

from medfusion_monai.demo.phantoms.families import prepare_phantoms

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))


def test_edits_of_a_split_are_measured(tmp_path, monkeypatch, save_model):
    edits = import_module("edits")
    save_model(tmp_path / "models" / "model.pt", sampler={"num_inference_steps": 3})
    prepare_phantoms(tmp_path / "data", num_images=40, size=32)
    places = ["--model", str(tmp_path / "models"), "--data", str(tmp_path / "data"), "--json", str(tmp_path / "f.json")]
    monkeypatch.setattr(sys, "argv", ["edits", *places, "--per-class", "2", "--picture", str(tmp_path / "p.png")])
    edits.main()
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["images"] == 4
    assert figures["largest error of a latent"] < 1e-2
    assert 1 <= figures["calls per step"] <= 20
    assert figures["class found"].startswith(("0 of 4", "1 of 4", "2 of 4", "3 of 4", "4 of 4"))
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size == (4 * 24, 3 * 16)
