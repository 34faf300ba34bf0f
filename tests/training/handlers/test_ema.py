import pytest
import torch
from ignite.engine import Engine
from torch import nn

from medfusion_monai.training.handlers.ema import AveragedWeights


class OneWeight(nn.Module):
    def __init__(self, value=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))


def set_weights(network, value):
    with torch.no_grad():
        network.weight.copy_(torch.as_tensor(value))


def test_average_of_one_weight_has_its_closed_form():
    network = OneWeight()
    ema = AveragedWeights(network, power=1.0)  # decays 0, 0, 1/2, 2/3, 3/4: a plain mean from the second value on
    for value, expected in [(8.0, 8.0), (1.0, 1.0), (3.0, 2.0), (8.0, 4.0), (0.0, 3.0)]:
        set_weights(network, value)
        ema.update()
        assert ema.module.weight.item() == pytest.approx(expected)


def test_published_average_is_reproduced(vectors, relative_error):
    tensors, _ = vectors("ema_warmup")
    network = nn.Linear(3, 2, bias=False)
    ema, decays = AveragedWeights(network), []
    for weights in tensors["weights"]:
        set_weights(network, weights)
        decays.append(ema.decay())
        ema.update()
    assert relative_error(torch.tensor(decays, dtype=torch.float64), tensors["decays"]) < 1e-5
    assert relative_error(ema.module.weight, tensors["averaged"]) < 1e-5


def test_decay_rises_to_its_maximum():
    ema = AveragedWeights(OneWeight(), max_decay=0.9)
    ema.num_updates = 31
    assert ema.decay() == pytest.approx(1 - 31 ** (-2 / 3))
    ema.num_updates = 32  # 1 - 32 ** (-2/3) would be 0.9008
    assert ema.decay() == 0.9


def test_network_itself_is_not_changed():
    network = OneWeight(5.0)
    ema = AveragedWeights(network)
    for value in (1.0, 2.0, 7.0):
        set_weights(network, value)
        ema.update()
    assert network.weight.item() == 7.0
    assert ema.module.weight.item() != 7.0


def test_average_is_in_evaluation_mode_and_not_trainable():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    module = AveragedWeights(network).module
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_buffers_are_copied_not_averaged():
    network = nn.BatchNorm1d(2)
    ema = AveragedWeights(network)
    for value in (1.0, 2.0, 6.0):
        network.running_mean.fill_(value)
        network.num_batches_tracked += 1
        ema.update()
    assert ema.module.running_mean.tolist() == [6.0, 6.0]
    assert ema.module.num_batches_tracked == 3


def test_average_resumes_from_its_state_as_if_never_stopped():
    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0]
    network = OneWeight()
    whole, first = AveragedWeights(network), AveragedWeights(network)
    for value in values[:3]:
        set_weights(network, value)
        whole.update()
        first.update()
    second = AveragedWeights(OneWeight(-7.0))
    second.load_state_dict(first.state_dict())
    second.network = network
    for value in values[3:]:
        set_weights(network, value)
        whole.update()
        second.update()
    assert torch.equal(second.module.weight, whole.module.weight)
    assert second.num_updates == whole.num_updates == 6


def test_average_is_updated_once_per_iteration():
    network = OneWeight()
    ema = AveragedWeights(network, power=1.0)
    trainer = Engine(lambda engine, batch: set_weights(network, batch))
    ema.attach(trainer)
    trainer.run([8.0, 1.0, 3.0, 8.0], max_epochs=1)
    assert ema.num_updates == 4
    assert ema.module.weight.item() == pytest.approx(4.0)
