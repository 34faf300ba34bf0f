"""Images that a guard takes for copies are listed and not written."""

from types import SimpleNamespace

import torch

from medfusion_monai.sampling.refused_copies import REFUSED, Refusals


class DarkGuard:
    """Takes dark images for copies."""

    def check(self, images):
        means = images.mean(dim=(1, 2, 3))
        return SimpleNamespace(copies=means < 0.5, scores=means)


def rows_of(*names):
    return [{"file": name, "label": 0, "seed": 7} for name in names]


def gray(*values):
    return torch.tensor(values)[:, None, None, None].expand(-1, 1, 4, 4)


def test_images_that_are_not_copies_are_kept_and_the_others_listed(tmp_path):
    refusals = Refusals(tmp_path, DarkGuard())
    assert refusals.sift(gray(0.9, 0.1, 0.8), rows_of("a", "b", "c")) == [0, 2]
    assert (tmp_path / REFUSED).read_text() == "file,label,seed,copy_score\nb,0,7,0.1000\n"
    assert set(refusals.known) == {"b"}


def test_next_run_knows_what_was_refused_but_for_a_line_that_was_cut_off(tmp_path):
    Refusals(tmp_path, DarkGuard()).sift(gray(0.1, 0.2), rows_of("a", "b"))
    with open(tmp_path / REFUSED, "a") as file:
        file.write("c,0,")
    again = Refusals(tmp_path, DarkGuard())
    assert set(again.known) == {"a", "b"}
    again.sift(gray(0.3), rows_of("c"))
    assert set(Refusals(tmp_path, DarkGuard()).known) == {"a", "b", "c"}


def test_lists_of_several_processes_become_one_in_order(tmp_path, caplog):
    Refusals(tmp_path, DarkGuard()).sift(gray(0.1), rows_of("b"))
    Refusals(tmp_path, DarkGuard(), rank=1).sift(gray(0.2), rows_of("a"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["refused.1.csv", REFUSED]
    assert Refusals(tmp_path, DarkGuard()).finish() == 2
    assert [path.name for path in tmp_path.iterdir()] == [REFUSED]
    assert [line.split(",")[0] for line in (tmp_path / REFUSED).read_text().splitlines()] == ["file", "a", "b"]
    assert "2 images were refused" in caplog.text


def test_without_a_guard_nothing_is_refused_or_written(tmp_path):
    refusals = Refusals(tmp_path)
    assert refusals.sift(gray(0.1, 0.9), rows_of("a", "b")) == [0, 1]
    assert refusals.finish() == 0
    assert list(tmp_path.iterdir()) == []


def test_guard_that_finds_no_copies_leaves_no_list(tmp_path):
    refusals = Refusals(tmp_path, DarkGuard())
    assert refusals.sift(gray(0.9, 0.8), rows_of("a", "b")) == [0, 1]
    assert refusals.finish() == 0
    assert list(tmp_path.iterdir()) == []
