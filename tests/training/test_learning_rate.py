import math

import pytest
import torch

from medfusion_monai.training import learning_rate
from medfusion_monai.training.learning_rate import Adam, AdamW, warmup_decay


def rates(steps, **keywords):
    """Return the learning rate of each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = warmup_decay(optimizer, **keywords)
    taken = []
    for _ in range(steps):
        taken.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return taken


def test_learning_rate_rises_linearly_and_stays():
    taken = rates(7, warmup_steps=4, total_steps=7)
    assert taken == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5])


def test_learning_rate_is_constant_without_warm_up():
    assert rates(4, warmup_steps=0, total_steps=4) == [0.5] * 4


def test_linear_decay_has_its_closed_form():
    taken = rates(13, warmup_steps=2, total_steps=10, decay="linear")
    expected = [0.25, 0.5, *(0.5 * (1 - k / 8) for k in range(8)), 0.0, 0.0, 0.0]
    assert taken == pytest.approx(expected)


def test_cosine_decay_has_its_closed_form():
    taken = rates(11, warmup_steps=0, total_steps=10, decay="cosine")
    assert taken == pytest.approx([0.5 * math.cos(math.pi * k / 20) ** 2 for k in range(11)], abs=1e-12)
    assert taken[5] == pytest.approx(0.25)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_final_fraction_is_left_at_the_end(decay):
    taken = rates(12, warmup_steps=2, total_steps=10, decay=decay, final_fraction=0.1)
    assert taken[2] == pytest.approx(0.5)
    assert taken[6] == pytest.approx(0.5 * 0.55)
    assert taken[10:] == pytest.approx([0.05, 0.05])


def test_warm_up_as_long_as_the_training_is_accepted():
    assert rates(4, warmup_steps=4, total_steps=4, decay="linear") == pytest.approx([0.125, 0.25, 0.375, 0.5])


def test_unknown_decay_is_refused_by_name():
    with pytest.raises(ValueError, match="decay must be .* received 'exponential'"):
        rates(1, warmup_steps=0, total_steps=1, decay="exponential")


def test_restart_takes_the_rate_of_the_current_run():
    def make(rate):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
        return optimizer, warmup_decay(optimizer, warmup_steps=2, total_steps=10, decay="linear")

    optimizer, schedule = make(1.0)
    for _ in range(6):
        optimizer.step()
        schedule.step()
    lower_optimizer, lower = make(0.1)
    lower_optimizer.load_state_dict(optimizer.state_dict())
    lower.load_state_dict(schedule.state_dict())
    assert lower_optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * optimizer.param_groups[0]["lr"])
    for pair in ((optimizer, schedule), (lower_optimizer, lower)):
        pair[0].step()
        pair[1].step()
    assert lower.get_last_lr()[0] == pytest.approx(0.1 * schedule.get_last_lr()[0])
    assert lower.get_last_lr()[0] == pytest.approx(0.1 * (1 - 5 / 8))


def test_later_part_has_its_own_learning_rate_instead_of_the_schedule():
    optimizer, scheduler = Adam(lr=0.1, warmup_steps=2, decay="linear", later_lr=0.003, later_from=3).build(
        [torch.nn.Parameter(torch.zeros(1))], total_steps=10
    )
    seen = []
    for _ in range(6):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([0.05, 0.1, 0.1, 0.003, 0.003, 0.003])
    never, _ = Adam(lr=0.1, warmup_steps=0, later_lr=0.003).build([torch.nn.Parameter(torch.zeros(1))], 10)
    assert never.param_groups[0]["lr"] == 0.1


def trained(eight_bit_moments, steps=60):
    """Return a network after some steps, its optimizer, and the last loss."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.SiLU(), torch.nn.Linear(128, 64))
    optimizer, _ = AdamW(lr=1e-3, eight_bit_moments=eight_bit_moments).build(network.parameters(), steps)
    inputs = torch.randn(256, 64)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(network(inputs), inputs.roll(1, dims=1))
        loss.backward()
        optimizer.step()
    return network, optimizer, loss.item()


def test_eight_bit_moments_take_two_bytes_per_weight_and_train_as_well():
    network, optimizer, loss = trained(eight_bit_moments=True)
    exact, _, exact_loss = trained(eight_bit_moments=False)
    for own, other in zip(network.parameters(), exact.parameters(), strict=True):
        assert torch.allclose(own, other, atol=4e-3)  # of steps whose sum is up to 0.06
    assert loss == pytest.approx(exact_loss, rel=0.01)
    weights = network[0].weight
    tensors = [value for value in optimizer.state[weights].values() if torch.is_tensor(value)]
    assert [value.element_size() for value in tensors if value.shape == weights.shape] == [1, 1]


def test_eight_bit_moments_without_their_package_are_refused_by_what_to_do(monkeypatch):
    monkeypatch.setattr(learning_rate, "find_spec", lambda name: None)
    AdamW()
    with pytest.raises(ValueError, match=r"eight_bit_moments: true needs .* pip install bitsandbytes"):
        AdamW(eight_bit_moments=True)


@pytest.mark.parametrize("value", [8, "yes", None])
def test_eight_bit_moments_are_true_or_false(value):
    with pytest.raises(ValueError, match="eight_bit_moments must be true or false"):
        AdamW(eight_bit_moments=value)
