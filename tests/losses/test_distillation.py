import pytest
import torch

from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.losses.distillation import DistillationLoss


def test_loss_of_known_distances():
    loss = DistillationLoss(NoiseSchedule(prediction_type="v_prediction"))
    prediction, target = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    target[1] = 1.2
    assert loss(prediction, target).item() == pytest.approx(1.44 / 2)


def test_same_estimates_have_the_same_loss_whatever_the_network_predicts():
    timesteps, source = torch.tensor([10, 400, 900]), torch.Generator().manual_seed(0)
    noisy, one, other = (torch.randn(3, 2, 4, 4, generator=source) for _ in range(3))
    losses = []
    for prediction_type in ("epsilon", "sample", "v_prediction"):
        schedule = NoiseSchedule(prediction_type=prediction_type)
        values = [schedule.target(x, schedule.noise_in(noisy, x, timesteps), timesteps) for x in (one, other)]
        losses.append(DistillationLoss(schedule)(*values, timesteps))
    torch.testing.assert_close(torch.stack(losses), losses[0].expand(3), rtol=1e-3, atol=0.0)
