import pytest
import torch

from medfusion_monai.audit.measure import find_copies, make_guard
from medfusion_monai.audit.power import DEGRADATIONS, measure_power


@pytest.fixture(scope="module")
def power(alike, prints, unknown):
    training, held_out = alike
    known, others = prints(training), prints(held_out, 1000 + torch.arange(len(held_out)))
    copies = find_copies(known, others, unknown(training[:1]), torch.zeros(len(held_out)).bool())
    guard = make_guard(known, others, copies, (64, 64), "horizontal")
    return guard, copies.held_out.scores


def test_degraded_copies_of_training_images_are_found(power, alike):
    found = measure_power(power[0], alike[0][:20], power[1])
    assert found["images"] == 20
    assert set(found["recall"]) == set(DEGRADATIONS)
    assert all(figure["value"] >= 0.9 for figure in found["recall"].values())
    assert found["false_alarms"]["value"] <= 0.03


def test_images_that_were_not_trained_on_are_not_found(power, others):
    found = measure_power(power[0], others[:20], power[1])
    assert all(figure["value"] <= 0.1 for figure in found["recall"].values())


def test_degradations_change_images_as_their_names_state():
    images = torch.rand(2, 1, 20, 24, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    changed = {name: degrade(images) for name, degrade in DEGRADATIONS.items()}
    assert all(each.shape == images.shape for each in changed.values())
    assert (changed["noise 0.05"] - images).std().item() == pytest.approx(0.05, rel=0.1)
    assert torch.equal(changed["shift 2"][..., 2:, 2:], images[..., :-2, :-2])
    assert torch.equal(changed["shift 1"][..., 0, 1:], images[..., 0, :-1])
    assert torch.equal(changed["mirrored"][..., 0], images[..., -1])
    assert torch.allclose(DEGRADATIONS["blur"](torch.full((1, 3, 9, 9), 0.4)), torch.tensor(0.4))
    spot = torch.zeros(1, 1, 41, 41)
    spot[..., 20, 40] = 1.0  # 20 pixels right of the centre: one lower or higher after 3 degrees
    row, column = divmod(int(DEGRADATIONS["rotation 3"](spot).argmax()), 41)
    assert (abs(row - 20), column) == (1, 40)
    spot = torch.zeros(1, 1, 61, 61)
    spot[..., 30, 50] = 1.0
    assert divmod(int(DEGRADATIONS["zoom 1.05"](spot).argmax()), 61) == (30, 51)
