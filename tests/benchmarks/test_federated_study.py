import csv
import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.evaluation.metrics.intervals import Figure

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
sites, protocol, trainings, measuring, costs, summary, picture, federated_study, store = (
    import_module(name)
    for name in (
        "hospitals.sites",
        "hospitals.protocol",
        "hospitals.trainings",
        "hospitals.measuring",
        "hospitals.costs",
        "hospitals.summary",
        "hospitals.picture",
        "federated_study",
        "study.store",
    )
)
sys.path.remove(str(BENCHMARKS))
SITES, ALL = sites.SITES, sites.ALL
SIDE = 32


def make_rows(patients=60):
    """Give patients of every kind: with and without an effusion, standing, lying, or both."""
    rows, number = [], 0
    for found in (0, 1):
        for views in (("PA",), ("PA", "AP"), ("AP",)):
            for _ in range(patients):
                number += 1
                rows += [
                    {"image": f"{number}_{view}.png", "label": found, "patient": str(number), "view": view}
                    for view in views
                ]
    return rows


def write_xrays(folder, rows):
    """Draw images that are bright with an effusion and dark without, and their table."""
    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for row in rows:
        pixels = generator.integers(0, 100, (SIDE, SIDE)) + 150 * row["label"]
        pixels[0, 0], pixels[0, 1] = 0, 255
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / row["image"])
    with (folder / "labels.csv").open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["filename", "label", "effusion", "view", "patient_id"])
        for row in rows:
            words = "finding" if row["label"] else "no_finding"
            writer.writerow([row["image"], words, row["label"], row["view"], row["patient"]])
    return folder


@pytest.fixture(scope="module")
def xrays(tmp_path_factory):
    return write_xrays(tmp_path_factory.mktemp("xrays"), make_rows())


@pytest.fixture(scope="module")
def data(xrays, tmp_path_factory):
    return sites.prepare_sites(xrays, tmp_path_factory.mktemp("data"))


QUICK = protocol.Protocol(samples=(20, 10), measured=20, classifiers=2, classifier_steps=40, replicates=50)


@pytest.fixture(scope="module")
def measure(data):
    """Measure training images of each site in place of samples, and all of them as if they were shared."""

    def read(path):
        return torch.from_numpy(np.array(Image.open(path), dtype=np.float32) / 255)[None]

    return measuring.Measuring(data, lambda name: data[name], read, QUICK)


# Sites


def test_all_images_of_a_patient_are_at_one_site_and_in_one_split():
    divided = sites.divide(make_rows())
    homes = {}
    for name, rows in divided.items():
        for row in rows:
            homes.setdefault(row["patient"], set()).add((name, row["split"]))
    assert {len(places) for places in homes.values()} == {1}
    assert sum(len(rows) for rows in divided.values()) == len(make_rows())


def test_sites_differ_in_size_classes_and_views():
    divided = sites.divide(make_rows(patients=200))
    # As many patients of each kind; in the data, most stand and have no finding.
    sizes = {name: len(rows) for name, rows in divided.items()}
    lying = {name: sum(row["view"] == "AP" for row in rows) / len(rows) for name, rows in divided.items()}
    found = {name: sum(row["label"] for row in rows) / len(rows) for name, rows in divided.items()}
    assert sizes["north"] > sizes["south"]
    assert lying["north"] < lying["south"] < lying["west"]
    assert found["north"] < found["west"]


def test_patients_are_divided_by_the_shares_of_their_kind():
    divided = sites.divide(make_rows(patients=100))
    kind = {row["patient"] for row in make_rows(patients=100)[:100]}  # stand, no finding
    counts = [len({row["patient"] for row in divided[name]} & kind) for name in SITES]
    assert counts == [82, 16, 2]
    assert all(sum(shares) == pytest.approx(1) for shares in sites.SHARES.values())


def test_data_set_of_all_sites_is_the_union_of_theirs(data):
    def names(site, split):
        return {Path(item["image"]).name for item in read_datalist(data[site], split)}

    for split in ("training", "validation", "test"):
        parts = [names(site, split) for site in SITES]
        assert names(ALL, split) == set.union(*parts)
        assert all(parts)


def test_other_findings_are_left_out(tmp_path):
    write_xrays(tmp_path, make_rows(1))
    table = tmp_path / "labels.csv"
    table.write_text(table.read_text() + "mass.png,finding,0,PA,900\n")
    assert len(sites.read_table(tmp_path)) == len(make_rows(1))


def test_folder_without_a_table_or_columns_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--xrays is a folder with images and labels.csv"):
        sites.read_table(tmp_path)
    (tmp_path / "labels.csv").write_text("filename,label\na.png,no_finding\n")
    with pytest.raises(ValueError, match="no columns effusion, patient_id, view"):
        sites.read_table(tmp_path)


# Trainings


def test_every_training_takes_the_steps_of_a_site_in_all_rounds(tmp_path):
    plan = protocol.Protocol(round_steps=7, autoencoder_rounds=2, diffusion_rounds=3)
    commands = trainings.Commands(Path("bundles/medfusion_cxr"), dict.fromkeys((*SITES, ALL), tmp_path), tmp_path, plan)
    words = [str(word) for word in commands._training("north")]
    assert words[words.index("--autoencoder_steps") + 1] == words[words.index("--autoencoder_val_interval") + 1] == "14"
    assert words[words.index("--diffusion_steps") + 1] == "21"
    together = [str(word) for word in commands._federated()]
    rounds = {name: together[together.index(f"--{name}") + 1] for name in ("autoencoder-rounds", "rounds", "steps")}
    assert rounds == {"autoencoder-rounds": "2", "rounds": "3", "steps": "7"}
    assert {path.stem for path in (tmp_path / "federated" / "sites").iterdir()} == set(SITES)


def test_site_keeps_its_seed_and_settings_in_the_federation(tmp_path):
    commands = trainings.Commands(Path("bundles/medfusion_cxr"), dict.fromkeys(SITES, tmp_path), tmp_path, QUICK)
    commands._federated()
    text = (tmp_path / "federated" / "sites" / "west.yaml").read_text()
    alone = [str(word) for word in commands._training("west")]
    assert f"seed: {alone[alone.index('--seed') + 1]}\n" in text
    assert "label_dropout: 0.2" in text
    assert protocol.seed_of("central") == protocol.seed_of("north") == 0


def test_finished_training_is_not_run_again(tmp_path):
    commands = trainings.Commands(Path("bundles/medfusion_cxr"), {ALL: tmp_path}, tmp_path, QUICK)
    (tmp_path / "central").mkdir()
    (tmp_path / "central" / "finished").touch()
    commands.run = None
    assert commands.train("central") is None


def test_failed_command_says_why(tmp_path):
    commands = trainings.Commands(Path("bundles/medfusion_cxr"), {}, tmp_path, QUICK)
    with pytest.raises(trainings.Failed, match="the reason"):
        commands.run([sys.executable, "-c", "raise SystemExit('the reason')"], tmp_path / "log.txt")


def test_failed_training_leaves_the_others(tmp_path, capsys):
    class Broken:
        def train(self, name):
            raise trainings.Failed("no memory")

    results = store.Store(tmp_path)
    federated_study.train(results, Broken(), "central")
    assert "central: not trained\nno memory" in capsys.readouterr().out
    assert results.read("training central") is None


def test_refusal_of_a_site_to_share_is_a_result():
    class Refusing:
        def share(self, site):
            if site == "west":
                raise trainings.Failed("Traceback\nerror: 3.0% are copies")
            return Path(__file__)

        def combine(self, packages):
            raise AssertionError

    found = federated_study.share(Refusing())
    assert found["refused"] == {"west": "error: 3.0% are copies"}
    assert set(found["bytes"]) == {"north", "south"}


def test_study_with_another_rule_or_other_settings_is_refused(data, tmp_path):
    bundle = BENCHMARKS.parent / "bundles" / "medfusion_cxr"
    begun = federated_study.identity(data, bundle, protocol.Protocol())
    results = store.Store(tmp_path)
    results.claim(begun)
    results.claim(json.loads(json.dumps(begun)))
    with pytest.raises(ValueError, match="diffusion_rounds 14, not 20"):
        results.claim(federated_study.identity(data, bundle, protocol.Protocol(diffusion_rounds=20)))
    with pytest.raises(ValueError, match="holds a study with rule"):
        results.claim({**begun, "rule": "central wins"})


# Measuring


def test_samples_are_taken_in_the_ratio_of_the_sites():
    sets = [[{"image": f"{site}{n}", "label": n % 2} for n in range(40)] for site in "abc"]
    taken = measuring.take(sets, [10, 5], [0.6, 0.3, 0.1])
    counts = {(item["image"][0], item["label"]): 0 for item in taken}
    for item in taken:
        counts[item["image"][0], item["label"]] += 1
    assert [counts[site, 0] for site in "abc"] == [6, 3, 1]
    assert sum(counts[site, 1] for site in "abc" if (site, 1) in counts) == 5
    with pytest.raises(ValueError, match="set 0 has 20 images of label 0, 30 are needed"):
        measuring.take(sets[:1], [30, 0], [1.0])


def test_distance_is_measured_with_the_classes_of_the_test(measure):
    labels = measure.test.labels
    negative, positive = measure.measured_counts
    assert negative + positive == QUICK.measured
    assert positive / QUICK.measured == pytest.approx(float(labels.double().mean()), abs=0.5 / QUICK.measured)


def test_classifier_of_images_that_show_their_class_is_right_on_the_test(measure):
    record = measure.taught(read_datalist(measure.data["north"], "training"))
    judged = summary.Summary(None, measure.test, 50)
    assert judged.taught(record).value == pytest.approx(1.0, abs=0.01)
    assert len(record["scores"]) == QUICK.classifiers
    assert sum(record["images"]) == len(read_datalist(measure.data["north"], "training"))


def test_arm_has_all_figures(measure):
    record = measure.arm("north")
    assert record["fid"]["low"] <= record["fid"]["value"] <= record["fid"]["high"]
    assert len(record["without"]) == 10
    assert record["label"]["value"] > 0.9  # their labels are true
    json.dumps(record)


# Summary


def held_out(views, labels):
    return measuring.TestImages([], torch.tensor(labels), torch.arange(len(labels)), list(views))


def test_classifier_of_views_alone_knows_nothing_within_views():
    test = held_out("AAAPAPPP", [1, 1, 1, 1, 0, 0, 0, 0])
    weights = torch.ones(1, 8, dtype=torch.float64)
    scores = torch.tensor([float(view == "A") for view in test.views], dtype=torch.float64)
    assert summary.areas_within_views(scores, test, weights).tolist() == [0.5]
    by_label = test.labels.double() + 10 * scores
    assert summary.areas_within_views(by_label, test, weights).tolist() == [1.0]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.7, 0.95, "better"), (1.02, 1.3, "worse"), (0.95, 1.08, "equal"), (0.97, 0.99, "equal"), (0.8, 1.2, "no diff")],
)
def test_distances_are_compared_by_their_ratio(low, high, verdict):
    assert summary.verdict_of_ratio((low + high) / 2, low, high).startswith(verdict)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.01, 0.2, "better"), (-0.2, -0.01, "worse"), (-0.02, 0.02, "equal"), (-0.1, 0.1, "no diff")],
)
def test_classifiers_are_compared_by_their_difference(low, high, verdict):
    assert summary.verdict_of_difference(Figure(0.0, low, high)).startswith(verdict)
    assert summary.verdict_of_difference(Figure(0.0)).startswith("no diff")


def arm_record(test, seed=0, fid=50.0):
    generator = np.random.default_rng(seed)
    figure = {"value": fid, "low": fid - 1, "high": fid + 1, "note": ""}
    scores = generator.normal(size=(2, len(test.labels))) + test.labels.numpy()
    without = (fid * np.exp(0.01 * generator.normal(size=10))).tolist()
    return {
        **dict.fromkeys(("fid", "precision", "recall", "label"), figure),
        "without": without,
        "scores": scores.tolist(),
    }


def test_report_has_the_arms_that_are_finished_and_names_the_others(tmp_path):
    test = held_out("AP" * 20, [0, 0, 1, 1] * 10)
    results = store.Store(tmp_path)
    for name, fid in (("central", 40.0), ("federated", 50.0)):
        results.write(f"arm {name}", arm_record(test, fid=fid))
    results.write("sharing", {"bytes": {}, "refused": {"west": "copies"}})
    text = summary.Summary(results, test, 50).text()
    assert "| central | 40.0 (39.0 to 41.0) |" in text
    assert "| federated and central | 1.250" in text
    assert "| worse |" in text
    assert "west may not share: copies" in text
    assert "Not finished: north, south, west, shared." in text


def test_figures_of_an_audit_that_are_withheld_say_why():
    withheld = {"value": None, "low": None, "high": None, "note": "too few"}
    audit = {"rows": [{"copy_rate": withheld}]}
    assert summary.audit_cells(audit)[0] == "withheld: too few"
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "note": ""}
    row = {"copy_rate": figure, "copies": 2, "count": 900, "expected_false_alarms": 1.34}
    audit = {"rows": [row], "nearer_to_training": figure, "membership": {"auc": withheld}}
    assert summary.audit_cells(audit) == ["2 of 900", "1.3", "0.500 (0.400 to 0.600)", "withheld: too few"]


# Costs and picture


def test_weights_travel_in_every_round_and_the_autoencoder_of_phase_two_only_to_the_sites(tmp_path):
    autoencoder, unet = torch.zeros(10), torch.zeros(100)
    torch.save({"autoencoder.w": autoencoder}, tmp_path / "autoencoder.pt")
    torch.save({"autoencoder.w": autoencoder, "unet.w": unet, "averaged.w": unet}, tmp_path / "diffusion.pt")
    plan = protocol.Protocol(autoencoder_rounds=2, diffusion_rounds=3)
    sent, received = costs.weights_bytes(tmp_path, plan)
    assert sent == 4 * (3 * 10 + 3 * 200)
    assert received == 4 * (3 * 10 + 3 * 210)


def test_travelling_is_of_the_arms_that_are_there(data, tmp_path):
    rows = costs.travelling(data, tmp_path, {}, QUICK)
    files = [item["image"] for split in ("training", "validation") for item in read_datalist(data["west"], split)]
    assert rows["central"]["west"] == sum(Path(file).stat().st_size for file in files)
    assert set(rows) == {"central"}
    assert costs.travelling(data, tmp_path, {"west": 7}, QUICK)["shared"] == {"west": 7}


def test_picture_has_a_row_per_arm(tmp_path):
    rows = {name: torch.rand(2 * picture.EACH, 1, 64, 64) for name in ("real", "central")}
    picture.save_picture(rows, tmp_path / "one.png")
    picture.save_picture({**rows, "west": rows["real"]}, tmp_path / "two.png")
    heights = [Image.open(tmp_path / name).height for name in ("one.png", "two.png")]
    assert heights[1] > heights[0]
