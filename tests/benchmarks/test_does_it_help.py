import csv
import json
import shutil
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import CLASSES

from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.data.pixels import fingerprint
from medfusion_monai.data.preparing.new_datalist import write_datalist
from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.demo.phantoms.families import draw_chest_phantom, prepare_phantoms
from medfusion_monai.evaluation.metrics.features import load_extractor
from medfusion_monai.evaluation.metrics.intervals import Figure
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import file_sha256

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
protocol, draws, classifier, summary, runs, material, does_it_help, store = (
    import_module(name)
    for name in (
        "helps.protocol",
        "helps.draws",
        "helps.classifier",
        "helps.summary",
        "helps.runs",
        "helps.material",
        "does_it_help",
        "study.store",
    )
)
sys.path.remove(str(BENCHMARKS))
Arm = protocol.Arm
QUICK = protocol.Recipe(steps=60, every=10, patience=3, batch_size=64, learning_rate=1e-2, weight_decay=1e-2)
REAL, SYNTHETIC, MIXED = Arm("real"), Arm("synthetic", 10), Arm("mixed", 5)


def quick(*arms, **changed):
    return protocol.Protocol(arms=(REAL, *arms), head=QUICK, replicates=200, **{"fractions": (0.25,), **changed})


def points(labels, generator, distance, dimensions=60):
    """Draw normal features whose classes have means at this distance."""
    shift = distance / dimensions**0.5
    return torch.from_numpy(generator.normal(size=(len(labels), dimensions))).float() + shift * labels[:, None]


def make_pool(samples=300, label_noise=0.0, distance=2.0, images_per_patient=1):
    """Give 100 training and 150 test patients of each class, and samples of the same distribution."""
    generator = np.random.default_rng(0)
    patients = torch.arange(500).repeat_interleave(images_per_patient)
    labels = torch.cat([patients % 2, torch.arange(2 * samples) % 2])
    inputs = points(labels, generator, distance)
    wrong = torch.from_numpy(generator.random(2 * samples)) < label_noise
    labels[len(patients) :] = torch.where(wrong, 1 - labels[len(patients) :], labels[len(patients) :])
    ends = (200 * images_per_patient, len(patients), len(labels))
    places = [torch.arange(*pair) for pair in zip((0, *ends[:2]), ends, strict=True)]
    return draws.Pool(inputs, labels, torch.cat([patients, torch.full((2 * samples,), -1)]), *places)


def run(folder, pool, plan, **others):
    study = runs.Study(store.Store(folder), {"head": pool}, plan, **others)
    study.run()
    return {row["arm"]: row for row in summary.summarise(study.store.records(), pool, plan)}


@pytest.fixture(scope="module")
def helpful(tmp_path_factory):
    """Run a study of samples of the true distribution, and give its folder, images and protocol."""
    folder, pool, plan = tmp_path_factory.mktemp("helpful"), make_pool(), quick(SYNTHETIC, MIXED)
    run(folder, pool, plan)
    return folder, pool, plan


# Draws


def test_no_patient_is_in_two_parts_and_all_images_of_one_stay_together():
    pool = make_pool(images_per_patient=3)
    part = draws.draw_part(pool, 0, 0.5)
    groups = [pool.patients[places].tolist() for places in (part.real, part.tuning, pool.test)]
    assert [len(set(group)) for group in groups] == [80, 40, 300]
    assert [len(group) for group in groups] == [240, 120, 900]
    assert len({patient for group in groups for patient in group}) == 420


def test_a_smaller_share_of_the_patients_lies_in_a_larger_one_and_has_both_classes():
    pool = make_pool()
    quarter, half, whole = (set(draws.draw_part(pool, 1, share).real.tolist()) for share in (0.25, 0.5, 1.0))
    assert (len(quarter), len(half), len(whole)) == (40, 80, 160)
    assert quarter < half < whole
    assert draws.counts_of(pool.labels[list(quarter)]) == [20, 20]


def test_splits_have_other_tuning_patients():
    pool = make_pool()
    one, other = (set(draws.draw_part(pool, seed, 1.0).tuning.tolist()) for seed in (0, 1))
    assert one != other


def test_each_class_has_a_multiple_of_its_own_real_images():
    pool = make_pool()
    assert draws.needed(pool, SYNTHETIC, draws.Part(torch.tensor([0, 2, 4, 1]), pool.training)) == [30, 10]


def test_fewer_samples_of_a_split_lie_in_more_and_have_their_labels():
    pool = make_pool()
    few, many, other = (
        draws.draw_samples(pool, counts, seed) for counts, seed in (([9, 3], 0), ([20, 30], 0), ([9, 3], 1))
    )
    assert draws.counts_of(pool.labels[few]) == [9, 3]
    assert set(few.tolist()) < set(many.tolist()) <= set(pool.samples.tolist())
    assert set(few.tolist()) != set(other.tolist())


def test_all_images_of_a_patient_are_resampled_together_and_no_class_is_lost():
    labels, patients = torch.tensor([0, 0, 1, 0, 1, 0]), torch.tensor([7, 7, 3, 3, 4, 5])
    weights = draws.resample_patients(labels, patients, 50)
    assert torch.equal(weights[:, 0], weights[:, 1])
    assert torch.equal(weights[:, 2], weights[:, 3])
    assert torch.equal(weights[:, 2] + weights[:, 4], torch.full((50,), 2.0, dtype=torch.float64))  # two positive ones
    assert len(weights.unique(dim=0)) > 3


def test_a_test_patient_in_training_is_refused():
    pool = make_pool()
    pool.patients[pool.test[5]] = pool.patients[pool.training[0]]
    with pytest.raises(DataError, match="1 patients are in training and test"):
        draws.refuse_small_sets(pool, quick(), CLASSES)


def test_a_set_too_small_for_a_classifier_is_refused_with_its_name():
    pool = make_pool()
    draws.refuse_small_sets(pool, quick(), CLASSES)
    with pytest.raises(DataError, match="10% of the training patients of split 0: 8 images of 'no_cardiomegaly'"):
        draws.refuse_small_sets(pool, quick(fractions=(0.1,)), CLASSES)


# Trainings


def test_a_training_is_left_with_the_weights_that_are_best_on_the_tuning_patients():
    pool = make_pool()
    part = draws.draw_part(pool, 0, 0.25)
    network = classifier.Head(pool.inputs[part.real], 0)
    record = classifier.train(network, pool, part.real, part.tuning, QUICK, 0)
    values = classifier.scores(network, pool, part.tuning)
    assert classifier.area(values, pool.labels[part.tuning]) == record["tuning_auc"] > 0.6
    assert 0 < record["best_step"] <= record["steps"] <= QUICK.steps
    assert record["images"] == [20, 20]


def test_a_training_ends_when_the_tuning_patients_gain_nothing():
    pool = make_pool(distance=0.0)
    pool = pool._replace(inputs=torch.ones(len(pool.labels), 3))
    part = draws.draw_part(pool, 0, 1.0)
    record = classifier.train(classifier.Head(pool.inputs, 0), pool, part.real, part.tuning, QUICK, 0)
    assert (record["tuning_auc"], record["best_step"], record["steps"]) == (0.5, 0, 30)


def test_a_pretrained_network_goes_on_with_the_real_images(tmp_path, monkeypatch):
    pool, seen = make_pool(), []

    def train(network, pool, chosen, *others):
        seen.append((network, draws.counts_of(pool.labels[chosen]), bool((pool.patients[chosen] < 0).all())))
        return {"images": [0, 0]}

    monkeypatch.setattr(runs, "train", train)
    runs.Study(store.Store(tmp_path), {"head": pool}, quick()).measure(Arm("pretrained", 5), 0, 0.25)
    (first, *samples), (second, *real) = seen
    assert first is second
    assert (samples, real) == ([[100, 100], True], [[20, 20], False])


def test_every_layer_of_the_whole_network_is_trained():
    network = classifier.WholeNetwork(0).train()
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.nn.functional.cross_entropy(network(images), torch.tensor([0, 1, 0, 1])).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in network.parameters())


def test_images_are_read_at_the_positions_asked_for():
    files = classifier.ImageFiles(["3", "5", "8"], lambda path: torch.full((1, 2, 2), float(path)))
    assert files[torch.tensor([2, 0])][:, 0, 0, 0].tolist() == [8.0, 3.0]


@pytest.mark.slow
def test_arms_of_the_whole_network_are_set_against_its_own_real_images_at_the_largest_share(tmp_path, monkeypatch):
    pool, plan = make_pool(), quick(fractions=(0.25, 0.5))._replace(whole=QUICK)
    images = pool._replace(inputs=-pool.inputs)  # the whole network sees something else than the head
    monkeypatch.setattr(runs, "WholeNetwork", lambda seed: classifier.Head(images.inputs, seed))
    study = runs.Study(store.Store(tmp_path), {"head": pool, "whole": images}, plan)
    study.run(protocol.WHOLE_ARMS[:2])
    rows = {(row["arm"], row["fraction"]): row for row in summary.summarise(study.store.records(), pool, plan)}
    assert set(rows) == {("head_real", 0.25), ("head_real", 0.5), ("whole_real", 0.5), ("whole_mixed_100", 0.5)}
    real, mixed = rows["whole_real", 0.5], rows["whole_mixed_100", 0.5]
    assert mixed["difference"]["value"] == pytest.approx(mixed["auc"]["value"] - real["auc"]["value"])
    assert real["by_seed"] != rows["head_real", 0.5]["by_seed"]
    assert "| 50% | whole network, real and 100% synthetic | 80 + 80 |" in summary.markdown(list(rows.values()))


# Arms


def test_samples_of_the_true_distribution_help_where_real_images_are_few(helpful):
    folder, pool, plan = helpful
    rows = {row["arm"]: row for row in summary.summarise(store.Store(folder).records(), pool, plan)}
    assert rows[SYNTHETIC.name]["verdict"] == rows[MIXED.name]["verdict"] == "helps"
    assert rows[SYNTHETIC.name]["images"] == "200 + 200"
    assert rows[MIXED.name]["images"] == "120 + 120"
    assert rows[REAL.name]["verdict"] == ""


def test_samples_with_shuffled_labels_do_not_help(tmp_path):
    rows = run(tmp_path, make_pool(label_noise=0.5), quick(SYNTHETIC, MIXED))
    assert rows[SYNTHETIC.name]["verdict"] == "harms"
    assert rows[MIXED.name]["verdict"] != "helps"


def test_samples_with_opposite_labels_harm(tmp_path):
    rows = run(tmp_path, make_pool(label_noise=1.0), quick(SYNTHETIC))
    assert rows[SYNTHETIC.name]["verdict"] == "harms"
    assert rows[SYNTHETIC.name]["auc"]["value"] < 0.5


def test_the_filter_drops_samples_of_wrong_labels_far_more_often(tmp_path):
    clean, pool = make_pool(distance=3.0), make_pool(distance=3.0, label_noise=0.3)
    study = runs.Study(store.Store(tmp_path), {"head": pool}, quick())
    chosen = draws.draw_samples(pool, [200, 200], 0)
    kept = study.filtered(chosen, 0, 0.25)
    wrong = [float((pool.labels[places] != clean.labels[places]).double().mean()) for places in (chosen, kept)]
    assert wrong[0] > 0.2
    assert wrong[1] < wrong[0] / 2
    assert len(kept) > 0.5 * len(chosen)


def test_a_judge_near_chance_filters_nothing_and_the_arm_is_reported_as_such(tmp_path):
    filtered = SYNTHETIC._replace(filtered=True)
    rows = run(tmp_path, make_pool(distance=0.0), quick(SYNTHETIC, filtered))
    assert rows[filtered.name]["verdict"].startswith("judge near chance in ")
    assert rows[filtered.name]["difference"] is None
    assert "0.6 and an interval above 0.5 are needed" in rows[filtered.name]["text"]
    assert rows[SYNTHETIC.name]["auc"] is not None
    text = summary.markdown(list(rows.values()))
    assert "| judge near chance in " in text
    assert "\nRefused, synthetic only, 1000%, filtered at 25%: the judge of split 0" in text


@pytest.mark.parametrize(("value", "low", "refused"), [(0.7, 0.51, False), (0.7, 0.5, True), (0.59, 0.55, True)])
def test_a_judge_needs_an_auc_of_0_6_and_an_interval_above_0_5(tmp_path, value, low, refused):
    pool, kept = make_pool(), store.Store(tmp_path)
    study = runs.Study(kept, {"head": pool}, quick())
    record = study.measure(REAL, 0, 0.25)
    kept.write(f"{REAL.name}.share0.25.seed0", {**record, "judge": Figure(value, low, 0.9).as_dict()})
    if refused:
        with pytest.raises(runs.Refused, match="the judge of split 0 at 25%"):
            study.filtered(pool.samples, 0, 0.25)
    else:
        assert len(study.filtered(pool.samples, 0, 0.25)) > 20


def test_an_arm_with_too_few_samples_is_refused_and_the_others_run(tmp_path):
    asked = []
    rows = run(
        tmp_path,
        make_pool(samples=150),
        quick(SYNTHETIC, MIXED),
        more_samples=lambda counts: asked.append(counts) or "Go.",
    )
    assert rows[SYNTHETIC.name]["verdict"] == "too few samples in 5 of 5 splits"
    assert rows[SYNTHETIC.name]["text"] == "200 negative and 200 positive samples are needed, 150 and 150 found. Go."
    assert asked == [[200, 200]] * 5
    assert rows[MIXED.name]["verdict"] == "helps"


# Figures and verdict


def test_equal_splits_have_the_interval_of_the_test_patients():
    resampled = torch.from_numpy(np.random.default_rng(0).normal(0.7, 0.02, 5000))
    values = torch.cat([torch.tensor([0.7], dtype=torch.float64), resampled]).repeat(4, 1)
    figure = summary.over_splits(values)
    assert figure.value == pytest.approx(0.7)
    assert (figure.low, figure.high) == pytest.approx((0.7 - 1.96 * 0.02, 0.7 + 1.96 * 0.02), abs=1e-3)


def test_splits_that_alone_vary_have_the_interval_of_student():
    values = torch.tensor([0.6, 0.7, 0.8, 0.7, 0.7], dtype=torch.float64)[:, None].repeat(1, 101)
    figure = summary.over_splits(values)
    half = 2.7764 * 0.07071 / 5**0.5  # Student's quantile with 4 degrees of freedom
    assert (figure.low, figure.high) == pytest.approx((0.7 - half, 0.7 + half), abs=1e-4)


def test_one_split_has_no_interval_and_no_verdict():
    figure = summary.over_splits(torch.full((1, 10), 0.3, dtype=torch.float64))
    assert (figure.value, figure.low) == (pytest.approx(0.3), None)
    assert summary.verdict(figure) == "no difference shown"


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        ((0.02, 0.001, 0.04), "helps"),
        ((0.009, 0.001, 0.02), "no difference shown"),
        ((0.05, -0.001, 0.1), "no difference shown"),
        ((-0.02, -0.04, -0.001), "harms"),
        ((-0.009, -0.02, -0.001), "no difference shown"),
        ((-0.05, -0.1, 0.001), "no difference shown"),
    ],
)
def test_the_verdict_takes_both_the_interval_and_the_margin(difference, expected):
    assert summary.verdict(Figure(*difference)) == expected


def test_an_arm_with_the_scores_of_real_only_shows_no_difference(helpful):
    folder, pool, plan = helpful
    records = store.Store(folder).records()
    real = {record["seed"]: record["scores"] for record in records if record["arm"] == REAL.name}
    row = summary.summarise([{**record, "scores": real[record["seed"]]} for record in records], pool, plan)[1]
    assert row["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0, "note": ""}
    assert row["verdict"] == "no difference shown"


def test_an_arm_that_is_refused_in_one_split_has_no_verdict(helpful):
    folder, pool, plan = helpful
    records = store.Store(folder).records()
    place = next(i for i, each in enumerate(records) if (each["arm"], each["seed"]) == (SYNTHETIC.name, 3))
    records[place] = {
        "arm": SYNTHETIC.name,
        "fraction": 0.25,
        "seed": 3,
        "refused": "judge near chance",
        "text": "Why.",
    }
    row = summary.summarise(records, pool, plan)[1]
    assert row["verdict"] == "judge near chance in 1 of 5 splits"
    assert row["auc"] is None


def test_an_arm_is_in_the_table_when_all_of_its_splits_are_done(helpful):
    folder, pool, plan = helpful
    records = [each for each in store.Store(folder).records() if (each["arm"], each["seed"]) != (MIXED.name, 4)]
    assert [row["arm"] for row in summary.summarise(records, pool, plan)] == [REAL.name, SYNTHETIC.name]


# Stopping and going on


@pytest.mark.slow
def test_a_study_that_was_stopped_gives_the_same_figures_and_trains_nothing_twice(helpful, tmp_path, monkeypatch):
    folder, pool, plan = helpful
    trained, own = [], runs.train

    def train(*arguments):
        trained.append(None)
        if len(trained) == 8:
            raise KeyboardInterrupt
        return own(*arguments)

    monkeypatch.setattr(runs, "train", train)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, pool, plan)
    rows = run(tmp_path, pool, plan)
    assert list(rows.values()) == summary.summarise(store.Store(folder).records(), pool, plan)
    assert len(trained) == 1 + 3 * 5


def test_a_filter_uses_the_judge_of_a_study_that_was_stopped(helpful, tmp_path):
    folder, pool, plan = helpful
    shutil.copytree(folder, tmp_path / "copy")
    chosen = draws.draw_samples(pool, [50, 50], 0)
    kept = [
        runs.Study(store.Store(each), {"head": pool}, plan).filtered(chosen, 1, 0.25)
        for each in (tmp_path / "copy", tmp_path / "new")
    ]
    assert torch.equal(*kept)


# Data, samples and weights


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Draw phantoms of 300 patients."""
    folder = tmp_path_factory.mktemp("data")
    prepare_phantoms(folder, num_images=300, size=24)
    return folder


@pytest.fixture
def made(tmp_path, data, save_model):
    """Give a data set, and samples with the weights that they are said to be of."""
    trained_on = fingerprint(read_datalist(data, "training"))
    model = save_model(tmp_path / "models" / "model.pt", training={"images": trained_on})
    write_samples(tmp_path / "samples", 60, file_sha256(model))
    return {"dataset_dir": data, "samples_dir": tmp_path / "samples", "model_file": model}


def write_samples(folder, count, weights_sha256, names=CLASSES):
    folder.mkdir()
    rows = []
    for index in range(2 * count):
        label = index % 2
        file = f"{label}_{names[label]}_{index:06d}.png"
        image, _ = draw_chest_phantom(10**9 + index, label, 24)
        Image.fromarray(np.rint(image[0] * 255).astype(np.uint8)).save(folder / file)
        rows.append({"file": file, "label": label, "class_name": names[label], "weights_sha256": weights_sha256})
    with open(folder / "manifest.csv", "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


def test_the_test_images_are_those_of_the_validation_and_test_splits(made):
    found = material.read_material(**made)
    expected = [item["image"] for split in ("validation", "test") for item in read_datalist(made["dataset_dir"], split)]
    assert [item["image"] for item in found.test] == expected
    pool = found.pool(None)
    assert (len(pool.training), len(pool.test), len(pool.samples)) == (240, 60, 120)
    assert pool.labels[pool.samples].tolist() == [0] * 60 + [1] * 60  # in the order of the files' names
    assert (pool.patients[pool.samples] == -1).all()


def test_samples_of_a_model_that_was_trained_on_other_images_are_refused(made, save_model):
    save_model(made["model_file"], training={"images": "cd" * 16})
    with pytest.raises(WeightsError, match="was not trained on the training split .* has the fingerprint cdcd"):
        material.read_material(**made)


def test_samples_of_a_model_that_does_not_say_what_it_was_trained_on_are_refused(made, save_model):
    save_model(made["model_file"], training={"images": None})
    with pytest.raises(WeightsError, match="the description of the weights does not say on which"):
        material.read_material(**made)


def test_samples_of_other_weights_are_refused(made, tmp_path):
    write_samples(tmp_path / "others", 3, "ef" * 32)
    with pytest.raises(WeightsError, match="has samples of other weights .SHA-256 efefefefefef. than .*model.pt"):
        material.read_material(**{**made, "samples_dir": tmp_path / "others"})


def test_images_without_a_manifest_are_refused(made):
    with pytest.raises(DataError, match="has no manifest.csv: name a folder that run inference wrote"):
        material.read_material(**{**made, "samples_dir": made["dataset_dir"] / "images"})


def test_samples_without_one_of_the_classes_are_refused(made, tmp_path):
    write_samples(tmp_path / "others", 3, file_sha256(made["model_file"]), ("no_cardiomegaly", "other"))
    with pytest.raises(DataError, match="has samples of no_cardiomegaly, other, none of cardiomegaly"):
        material.read_material(**{**made, "samples_dir": tmp_path / "others"})


@pytest.mark.parametrize("classes", [["cardiomegaly"] * 2, ["no_cardiomegaly", "effusion"]])
def test_classes_that_are_not_two_of_the_data_set_are_refused(made, classes):
    with pytest.raises(DataError, match="Give --classes with two of no_cardiomegaly, cardiomegaly"):
        material.read_material(**made, classes=classes)


def test_the_positive_class_is_the_second_one_named(made):
    found = material.read_material(**made, classes=["cardiomegaly", "no_cardiomegaly"])
    first = read_datalist(made["dataset_dir"], "training")[0]
    assert found.training[0]["image"] == first["image"]
    assert found.training[0]["label"] == 1 - first["label"]


def three_classes(folder, data):
    """Rewrite a data set: a third of the patients with label 1 have label 2."""
    splits = {}
    for name in ("training", "validation", "test"):
        items = read_datalist(data, name)
        for place, item in enumerate(items):
            item["label"] += item["label"] == 1 and place % 3 == 0
        splits[name] = items
    write_datalist(folder / "datalist.json", splits, ["none", "effusion", "mass"], "phantoms", 0)


def test_two_classes_of_three_are_chosen_by_name(made, tmp_path, save_model):
    three_classes(tmp_path / "three", made["dataset_dir"])
    trained_on = fingerprint(read_datalist(tmp_path / "three", "training"))
    model = save_model(made["model_file"], training={"images": trained_on})
    write_samples(tmp_path / "of_three", 5, file_sha256(model), ("none", "mass"))
    changed = {"dataset_dir": tmp_path / "three", "samples_dir": tmp_path / "of_three", "model_file": model}
    with pytest.raises(DataError, match="without --classes: a study is of two classes, the negative first"):
        material.read_material(**changed)
    found = material.read_material(**changed, classes=["none", "mass"])
    known = {item["image"]: item["label"] for item in read_datalist(tmp_path / "three", "training")}
    assert {(known[item["image"]], item["label"]) for item in found.training} == {(0, 0), (2, 1)}


def test_an_image_of_the_test_that_is_in_training_under_another_patient_is_refused(made, tmp_path, save_model):
    splits = {name: read_datalist(made["dataset_dir"], name) for name in ("training", "validation", "test")}
    splits["test"].append({**splits["training"][0], "patient": "another"})
    splits = {
        name: [{k: v for k, v in item.items() if k != "pixels"} for item in items] for name, items in splits.items()
    }
    write_datalist(tmp_path / "leak" / "datalist.json", splits, CLASSES, "phantoms", 0)
    with pytest.raises(DataError):
        material.read_material(**{**made, "dataset_dir": tmp_path / "leak"})


# The command


@pytest.fixture
def command(made, tmp_path, monkeypatch, capsys):
    """Run the study with three arms on averaged pixels, and return what it printed."""
    plan = quick(Arm("synthetic", 2), Arm("synthetic", 5), fractions=(0.5,), seeds=(0, 1))
    monkeypatch.setattr(does_it_help, "PROTOCOL", plan)
    monkeypatch.setattr(does_it_help, "load_extractor", lambda _: load_extractor(None))

    def execute(*options, **changed):
        given = {**made, **changed}
        places = ("--dataset-dir", given["dataset_dir"], "--samples", given["samples_dir"])
        arguments = [*places, "--model-file", given["model_file"], "--output", tmp_path / "study", *options]
        monkeypatch.setattr(sys, "argv", ["does_it_help.py", *map(str, arguments)])
        does_it_help.main()
        return capsys.readouterr().out

    return execute


def test_a_plan_names_the_samples_that_lack_and_does_nothing(command, tmp_path):
    text = command("--plan")
    assert "  at 50%: 200% 96 and 96; 500% 240 and 240\n" in text
    assert "--label \"['no_cardiomegaly', 'cardiomegaly']\" --num_samples \"[240, 240]\"" in text
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_the_command_gives_the_same_table_when_it_is_run_again(command, tmp_path, made):
    (made["samples_dir"] / "manifest.csv").unlink()
    for file in made["samples_dir"].glob("*.png"):
        file.unlink()
    made["samples_dir"].rmdir()
    write_samples(made["samples_dir"], 100, file_sha256(made["model_file"]))
    figures = tmp_path / "figures.json"
    first = command("--json", figures)
    table = first[first.index("| real patients") :]
    assert "| 50% | synthetic only, 500% |  |  |  | too few samples in 2 of 2 splits |" in table
    assert table.count("\n| 50% | synthetic only, 200% | 96 + 96 | 0.") == 1
    second = command()
    assert second[second.index("| real patients") :] == table
    assert ": AUC" not in second  # nothing was trained
    result = json.loads(figures.read_text())
    assert [row["arm"] for row in result["rows"]] == ["head_real", "head_synthetic_200", "head_synthetic_500"]
    assert result["class_names"] == list(CLASSES)
    assert "scores" not in result["records"][0]


@pytest.mark.slow
def test_a_study_does_not_go_on_with_other_samples_classes_or_rules(command, made, tmp_path, monkeypatch):
    command()
    with pytest.raises(ValueError, match=r"holds a study with class_names \['no_.*, not \['cardiomegaly', 'no_"):
        command("--classes", "cardiomegaly", "no_cardiomegaly")
    write_samples(tmp_path / "others", 5, file_sha256(made["model_file"]))
    with pytest.raises(ValueError, match=r"holds a study with samples [0-9a-f]{32}, not [0-9a-f]{32}"):
        command(samples_dir=tmp_path / "others")
    monkeypatch.setattr(does_it_help, "PROTOCOL", does_it_help.PROTOCOL._replace(seeds=(0, 1, 2)))
    with pytest.raises(ValueError, match=r"holds a study with seeds \[0, 1\], not \[0, 1, 2\]"):
        command()
