import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from tiny_models import save, tiny

from medfusion_monai.demo.phantoms.families import prepare_phantoms
from medfusion_monai.weights.assembled import write_guided

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
sampler_choice = import_module("sampler_choice")
FIRST, SECOND = sampler_choice.CHOICE[:2]


def rows(distances, recall=0.3, auc=0.8):
    return [{"fid": each, "precision": 0.5, "recall": recall, "auc": auc, "cpu_seconds": 1.0} for each in distances]


@pytest.mark.parametrize(
    ("other", "wins"),
    [
        (rows([90, 91]), True),
        (rows([80, 101]), False),  # better on the average, not for every seed
        (rows([90, 91], recall=0.29), True),
        (rows([90, 91], recall=0.27), False),
        (rows([90, 91], auc=0.78), True),
        (rows([90, 91], auc=0.76), False),
    ],
)
def test_default_changes_by_the_rule_alone(other, wins):
    found = sampler_choice.choose({FIRST: rows([100, 100]), SECOND: other})
    assert found.startswith(f"{SECOND} becomes the default" if wins else f"{FIRST} stays the default")


def test_lowest_distance_of_those_that_pass_is_chosen_and_longer_samplers_do_not_compete():
    measured = {FIRST: rows([100, 100]), SECOND: rows([90, 92]), "UniPC 20": rows([95, 80])}
    assert sampler_choice.choose(measured | {"DDIM 100, noise": rows([1, 1])}).startswith("UniPC 20 becomes")
    assert "no choice" in sampler_choice.choose({SECOND: rows([1, 1])})


@pytest.fixture
def place(tmp_path):
    prepare_phantoms(tmp_path / "data", num_images=40, size=32, seed=0)
    save(tiny(["no_cardiomegaly", "cardiomegaly"], image_size=(32, 32)), tmp_path / "model.pt")
    return tmp_path


def test_study_continues_with_what_is_missing_and_refuses_other_weights(place, monkeypatch, capsys):
    words = ["sampler_choice", "--model-file", "model.pt", "--dataset-dir", "data", "--output", "out", "--samples", "6"]
    monkeypatch.chdir(place)
    monkeypatch.setattr(sampler_choice, "load_extractor", lambda _: lambda images: images.flatten(1)[:, ::64])
    train = sampler_choice.train_classifier
    monkeypatch.setattr(sampler_choice, "train_classifier", lambda *args: train(*args, steps=3))
    sampled = []
    sample = sampler_choice.sample
    monkeypatch.setattr(sampler_choice, "sample", lambda *args: sampled.append(args[2:]) or sample(*args))
    monkeypatch.setattr(sys, "argv", [*words, "--seeds", "0", "--arms", "UniPC 20"])
    sampler_choice.main()
    monkeypatch.setattr(sys, "argv", [*words, "--seeds", "0", "1", "--arms", "UniPC 20"])
    sampler_choice.main()
    assert sampled == [(6, 0), (6, 1)]
    table = capsys.readouterr().out
    assert "| UniPC 20 |" in table
    assert "| real test images |" in table
    with torch.no_grad():
        save(tiny(["no_cardiomegaly", "cardiomegaly"], image_size=(32, 40)), place / "model.pt")
        state = torch.load(place / "model.pt", weights_only=True)
        torch.save({name: value + 1 for name, value in state.items()}, place / "model.pt")
    with pytest.raises(ValueError, match="holds a study with weights"):
        sampler_choice.main()


def test_guided_arms_need_a_guide_and_take_it(place, monkeypatch, capsys):
    words = ["sampler_choice.py", "--model-file", ".", "--dataset-dir", ".", "--output", "."]
    monkeypatch.setattr(sys, "argv", [*words, "--arms", "UniPC 20", "UniPC 30, guide 1.5"])
    with pytest.raises(SystemExit):
        sampler_choice.parse()
    assert "UniPC 30, guide 1.5 need the weights of a --guide" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", words)
    assert not sampler_choice.GUIDED.keys() & set(sampler_choice.parse().arms)
    monkeypatch.setattr(sys, "argv", [*words, "--guide", "GUIDE"])
    assert set(sampler_choice.parse().arms) == set(sampler_choice.ARMS)


def test_arms_without_a_guide_leave_out_that_of_the_weights(place):
    worse = tiny(["no_cardiomegaly", "cardiomegaly"], image_size=(32, 32))
    for weight in worse.unet.parameters():
        weight.data *= 0.9
    guided = write_guided(save(worse, place / "worse" / "model.pt"), place / "model.pt", place / "guided", 3.0)
    model = sampler_choice.load(guided, "cpu")
    for name in sampler_choice.ARMS.keys() - sampler_choice.GUIDED.keys():
        sampler = sampler_choice.make_sampler(model, **sampler_choice.ARMS[name])
        assert (sampler.guide, sampler.guidance_scale > 1) == (None, "guidance" in name)


def test_samples_take_the_classes_in_turn_and_depend_on_the_seed(place):
    model = sampler_choice.load(place / "model.pt", "cpu")
    settings = sampler_choice.arm("unipc", 3)
    images, labels = sampler_choice.sample(model, settings, 4, 0)
    assert labels.tolist() == [0, 1, 0, 1]
    assert torch.equal(images, sampler_choice.sample(model, settings, 4, 0)[0])
    assert not torch.equal(images, sampler_choice.sample(model, settings, 4, 1)[0])
