import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
phantoms = import_module("federated_phantoms")


def rows(federated, spread=0.0):
    """Figures of all arms, whose groups of images differ by a spread."""

    def row(fid, changes):
        figures = {"precision": 0.5, "recall": 0.3, "auc": 0.9}
        return {**figures, "fid": fid, "without": [{"fid": fid * (1 + spread * change)} for change in changes]}

    still, moving = [0] * 10, [-1, 1] * 5
    arms = {phantoms.CENTRAL: row(10.0, still), phantoms.OTHER_SEED: row(11.0, still)}
    return {**arms, phantoms.FEDERATED: row(federated, moving), phantoms.REAL: row(2.0, still)}


@pytest.mark.parametrize(
    ("federated", "spread", "outcome"),
    [(12.9, 0.0, True), (13.1, 0.0, False), (12.9, 0.02, False), (8.0, 0.02, True), (0.0, 0.0, False)],
)
def test_rule_needs_the_ratio_and_its_interval(federated, spread, outcome):
    assert phantoms.keeps_up(rows(federated, spread)) is outcome


def test_table_has_a_row_per_arm():
    lines = phantoms.table(rows(12.0)).split("\n")
    assert len(lines) == 6
    assert lines[4] == "| federated | 12.0 | 1.200 (1.200 to 1.200) | 0.500 | 0.300 | 0.900 |"
    assert {line.count("|") for line in lines} == {7}


def test_each_image_goes_to_one_site_by_the_shares():
    entries = [{"image": f"{number}.png", "label": number % 2, "patient": str(number)} for number in range(140)]
    everything = {"class_names": ["a", "b"], "training": entries, "validation": entries[:14], "test": []}
    parts = phantoms.shared_out(everything, [4, 2, 1])
    assert [len(part["training"]) for part in parts] == [80, 40, 20]
    assert [Counter(entry["label"] for entry in part["training"]) for part in parts] == [
        {0: 40, 1: 40},
        {0: 20, 1: 20},
        {0: 10, 1: 10},
    ]
    assert sorted(entry["image"] for part in parts for entry in part["training"]) == sorted(
        entry["image"] for entry in entries
    )
