import json

import numpy as np
import pytest
import torch

from medfusion_monai.audit.guard import GUARD_NAME, CopyGuard, GuardError, guard_sha256, load_guard
from medfusion_monai.audit.measure import find_copies, make_guard


@pytest.fixture(scope="module")
def guard(alike, prints, unknown, others):
    training, held_out = prints(alike[0]), prints(alike[1], 1000 + torch.arange(len(alike[1])))
    copies = find_copies(training, held_out, unknown(others[:1]), torch.zeros(len(alike[1])).bool())
    made = make_guard(training, held_out, copies, (64, 64), "horizontal")
    assert made is not None
    return made


def test_copies_are_told_from_new_images(guard, alike, others):
    training, _ = alike
    verdict = guard.check(torch.cat([(0.9 * training[:6] + 0.05), others[:6]]))
    assert verdict.copies.tolist() == [True] * 6 + [False] * 6
    assert verdict.places[:6].tolist() == list(range(6))
    assert (verdict.scores[:6] < guard.calibration.threshold).all()


def test_verdict_of_an_image_does_not_depend_on_its_batch(guard, alike, others):
    images = torch.cat([alike[0][:3] + 0.02 * torch.rand(3, 1, 64, 64), others[:3]])
    together = guard.check(images)
    alone = [guard.check(image[None]) for image in images.flip(0)]
    assert torch.equal(together.scores.flip(0), torch.cat([one.scores for one in alone]))


def test_rate_of_false_alarms_is_that_of_the_held_out_images(guard):
    calibration = guard.calibration
    assert calibration.held_out + calibration.apart == 100
    assert calibration.rate == pytest.approx(1 / (calibration.held_out + 1))


def test_guard_that_was_written_and_read_judges_alike(guard, alike, others, tmp_path):
    path = guard.save(tmp_path)
    assert path == tmp_path / GUARD_NAME
    read = load_guard(tmp_path)
    images = torch.cat([alike[0][:3], others[:3]])
    assert torch.equal(read.check(images).scores, guard.check(images).scores)
    assert read.calibration == guard.calibration
    assert read.flips == guard.flips
    assert guard_sha256(tmp_path) == guard_sha256(path)


def test_equal_guards_are_equal_files(guard, tmp_path):
    (tmp_path / "again").mkdir()
    guard.save(tmp_path)
    load_guard(tmp_path).save(tmp_path / "again")
    with np.load(tmp_path / GUARD_NAME) as one, np.load(tmp_path / "again" / GUARD_NAME) as two:
        assert str(one["digest"]) == str(two["digest"])


def test_images_of_another_size_are_brought_to_that_of_the_audit(guard, alike):
    larger = torch.nn.functional.interpolate(alike[0][:4], scale_factor=3, mode="nearest")
    noise = 0.2 * torch.rand(larger.shape, generator=torch.Generator().manual_seed(0))
    verdict = guard.check((larger + noise).clamp(0, 1))
    assert verdict.copies.all()
    assert torch.equal(
        guard.check(larger).scores,
        guard.check(torch.nn.functional.interpolate(larger, size=(64, 64), mode="bilinear", antialias=True)).scores,
    )


def test_no_images_get_no_verdicts(guard):
    assert guard.check(torch.empty(0, 1, 64, 64)).copies.tolist() == []


def test_missing_guard_says_what_makes_one(tmp_path):
    with pytest.raises(GuardError, match="run medfusion audit with at least 50 held-out images"):
        load_guard(tmp_path)


def test_damaged_guard_is_refused(guard, tmp_path):
    path = guard.save(tmp_path)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["training"] = arrays["training"] * 0
    np.savez_compressed(path, **arrays)
    with pytest.raises(GuardError, match="damaged or of another version"):
        load_guard(tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(GuardError, match="cannot be read"):
        load_guard(tmp_path)


def test_guard_with_another_threshold_is_refused(guard, tmp_path):
    path = guard.save(tmp_path)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    facts = json.loads(str(arrays["facts"]))
    arrays["facts"] = np.array(json.dumps({**facts, "threshold": 0.0}))
    np.savez_compressed(path, **arrays)
    with pytest.raises(GuardError, match="damaged"):
        load_guard(path)


def test_too_few_held_out_images_make_no_guard(alike, prints, unknown, others):
    training, held_out = prints(alike[0]), prints(alike[1][:49], 1000 + torch.arange(49))
    copies = find_copies(training, held_out, unknown(others[:1]), torch.zeros(49).bool())
    assert copies is not None
    assert make_guard(training, held_out, copies, (64, 64), "horizontal") is None


def test_guard_beside_features_has_the_threshold_of_an_audit_without(alike, prints, unknown, others, guard):
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(len(images), 2, 3, generator=generator) for images in (*alike, others[:1])]
    training = prints(alike[0], features=features[0])
    held_out = prints(alike[1], 1000 + torch.arange(len(alike[1])), features[1])
    copies = find_copies(training, held_out, unknown(others[:1], features[2]), torch.zeros(len(alike[1])).bool())
    found = make_guard(training, held_out, copies, (64, 64), "horizontal")
    assert found.calibration.threshold == pytest.approx(guard.calibration.threshold, rel=1e-5)


def test_guard_is_made_of_fingerprints_alone(guard):
    assert isinstance(guard, CopyGuard)
    assert guard.matcher.measures == ("pixels", "structure")


def test_guard_of_other_training_images_is_refused(guard, tmp_path):
    guard.trained_on = "a" * 16
    guard.save(tmp_path)
    assert load_guard(tmp_path, "a" * 16).trained_on == "a" * 16
    assert load_guard(tmp_path, None).trained_on == "a" * 16
    with pytest.raises(GuardError, match="guards other training images than those of the model .*b{16}"):
        load_guard(tmp_path, "b" * 16)


def test_guard_of_another_size_is_refused(guard, tmp_path):
    guard.save(tmp_path)
    assert load_guard(tmp_path, size=(64, 64)).size == [64, 64]
    with pytest.raises(GuardError, match=r"made for images of \[64, 64\].*\[64, 128\] are sampled"):
        load_guard(tmp_path, size=(64, 128))
