import json

import numpy as np
import pytest
import torch

from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.weights.power_average import (
    LENGTHS,
    Profile,
    coefficients,
    inner_product,
    power_decay,
    rebuild_average,
    snapshot_files,
    write_average,
)
from medfusion_monai.weights.state_dict import read_state

STEPS = 400


def shares(length, step):
    """Return the share of each step's weights in a power average: the profile, integrated over the step."""
    exponent = Profile(step, length).gamma + 1.0
    bounds = (np.arange(step + 1) / step) ** exponent
    return np.append(np.diff(bounds), np.zeros(STEPS - step))


def weights_of(step):
    """Return weights that wander and settle, as those of a training."""
    places = np.arange(5)
    return np.cos(places + step / 40.0) * (1.0 + places) / (1.0 + step / 100.0)


ALL = np.stack([weights_of(step) for step in range(1, STEPS + 1)])


def write_snapshots(folder, steps, dtype=torch.float16):
    folder.mkdir(parents=True, exist_ok=True)
    for step in steps:
        averages = {length: {"w": torch.tensor(shares(length, step) @ ALL).to(dtype)} for length in LENGTHS}
        for state in averages.values():
            state["counter"] = torch.tensor(step)
            state["frequencies"] = torch.tensor([1.0, 0.3])
        info = {"training": {"steps": step, "image_count": 7}, "class_names": ["a", "b"]}
        autoencoder = {"v": torch.ones(2)}
        snapshot = {"step": step, "info": json.dumps(info), "averages": averages, "autoencoder": autoencoder}
        torch.save(snapshot, folder / f"{step}.pt")
    return folder


def test_exponents_are_those_of_the_paper():
    assert Profile(1, 0.05).gamma == pytest.approx(16.97, abs=0.005)
    assert Profile(1, 0.10).gamma == pytest.approx(6.94, abs=0.005)
    assert Profile(1, 12**-0.5).gamma == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("length", [0.03, 0.05, 0.1, 0.25])
def test_length_is_the_deviation_of_the_profile(length):
    times, mass = (np.arange(STEPS) + 0.5) / STEPS, shares(length, STEPS)
    mean = mass @ times
    assert np.sqrt(mass @ (times - mean) ** 2) == pytest.approx(length, rel=1e-3)


@pytest.mark.parametrize("length", [0.05, 0.2])
def test_repeated_updates_give_the_profile(length):
    found = np.zeros(STEPS)
    for step in range(1, STEPS + 1):
        decay = power_decay(length, step)
        found *= decay
        found[step - 1] += 1.0 - decay
    np.testing.assert_allclose(found, shares(length, STEPS), rtol=1e-9, atol=1e-15)


def test_inner_product_is_the_integral():
    one, other = Profile(300, 0.05), Profile(400, 0.1)
    times = (np.arange(400_000) + 0.5) / 1000

    def density(profile):
        values = (profile.gamma + 1) * times**profile.gamma / profile.step ** (profile.gamma + 1)
        return np.where(times < profile.step, values, 0.0)

    integral = float((density(one) * density(other)).sum() / 1000)
    assert inner_product(one, other) == pytest.approx(integral, rel=1e-6)
    assert inner_product(other, one) == inner_product(one, other)


def test_stored_average_is_rebuilt_by_itself():
    stored = [Profile(step, length) for step in (100, 200, 300, 400) for length in LENGTHS]
    factors, error = coefficients(stored, Profile(400, 0.1))
    np.testing.assert_allclose(factors, [0] * 7 + [1], atol=1e-6)
    assert error < 1e-6


@pytest.mark.parametrize(("length", "error"), [(0.03, 0.04), (0.07, 0.004), (0.15, 0.01), (0.2, 0.03), (0.25, 0.08)])
def test_sixteen_snapshots_meet_most_profiles(length, error):
    stored = [Profile(step, own) for step in range(1000, 16001, 1000) for own in LENGTHS]
    factors, found = coefficients(stored, Profile(16000, length))
    assert sum(factors) == pytest.approx(1.0)
    assert found < error


@pytest.mark.parametrize("length", [0.03, 0.05, 0.07, 0.1, 0.15, 0.2])
def test_rebuilt_average_is_that_of_all_weights(length, tmp_path):
    folder = write_snapshots(tmp_path, range(25, STEPS + 1, 25), torch.float16)
    state, error = rebuild_average(folder, length)
    expected = shares(length, STEPS) @ ALL
    assert state["w"].dtype == torch.float32
    assert error < 0.05
    np.testing.assert_allclose(state["w"].numpy(), expected, atol=0.01 * np.abs(ALL).max())
    others = [shares(other, STEPS) @ ALL for other in (0.03, 0.05, 0.07, 0.1, 0.15, 0.2) if other != length]
    nearest = min(np.abs(state["w"].numpy() - other).max() for other in others)
    assert np.abs(state["w"].numpy() - expected).max() < 0.2 * nearest


def test_average_that_ends_earlier_uses_no_later_weights(tmp_path):
    folder = write_snapshots(tmp_path, range(25, STEPS + 1, 25))
    state, _ = rebuild_average(folder, 0.07, step=200)
    np.testing.assert_allclose(state["w"].numpy(), shares(0.07, 200) @ ALL, atol=0.01)
    for step in range(225, STEPS + 1, 25):
        (folder / f"{step}.pt").write_bytes(b"not read")
    assert torch.equal(rebuild_average(folder, 0.07, step=200)[0]["w"], state["w"])


def test_buffers_are_those_of_the_last_step(tmp_path):
    state, _ = rebuild_average(write_snapshots(tmp_path, (200, 400)), 0.07)
    assert (state["counter"].item(), state["counter"].dtype) == (400, torch.int64)
    assert torch.equal(state["frequencies"], torch.tensor([1.0, 0.3]))


def test_model_is_written_with_its_length_and_step(tmp_path):
    folder = write_snapshots(tmp_path / "averages", (200, 400))
    path, _ = write_average(folder, tmp_path / "earlier", 0.05, step=200)
    state, info = read_state(path), json.loads(path.with_suffix(".json").read_text())
    assert sorted(state) == ["autoencoder.v", "unet.counter", "unet.frequencies", "unet.w"]
    np.testing.assert_allclose(state["unet.w"].numpy(), shares(0.05, 200) @ ALL, rtol=1e-3)
    assert info["training"] == {"steps": 200, "image_count": 7, "average": 0.05}
    with pytest.raises(WeightsError, match="exists: choose another folder"):
        write_average(folder, tmp_path / "earlier", 0.05)


@pytest.mark.parametrize("length", [0, -0.1, 0.3, float("nan"), "long"])
def test_length_out_of_range_is_refused(length, tmp_path):
    with pytest.raises(ValueError, match="length must be above 0 and at most 0.28"):
        rebuild_average(write_snapshots(tmp_path, (200, 400)), length)


def test_step_without_a_snapshot_is_refused_with_those_that_have_one(tmp_path):
    with pytest.raises(ValueError, match="200, 400; received 300"):
        rebuild_average(write_snapshots(tmp_path, (200, 400)), 0.05, step=300)


def test_length_that_the_snapshots_do_not_give_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="an average of length 0.01 only to within 61%"):
        rebuild_average(write_snapshots(tmp_path, (200, 400)), 0.01)


def test_folder_without_snapshots_is_named(tmp_path):
    with pytest.raises(WeightsError, match="has no snapshots of averages: train with --average_snapshots 16"):
        rebuild_average(tmp_path, 0.05)


def test_damaged_snapshot_is_named(tmp_path):
    folder = write_snapshots(tmp_path, (200, 400))
    (folder / "200.pt").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=r"snapshot .*200\.pt cannot be read"):
        rebuild_average(folder, 0.05)
    (folder / "200.pt").write_bytes((folder / "400.pt").read_bytes())
    with pytest.raises(WeightsError, match=r"snapshot .*200\.pt is of another step"):
        rebuild_average(folder, 0.05)


def test_snapshots_are_found_by_step(tmp_path):
    for name in ("1000.pt", "200.pt", "notes.pt"):
        (tmp_path / name).write_bytes(b"")
    assert list(snapshot_files(tmp_path)) == [200, 1000]
