import json

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from medfusion_monai.training.handlers.average_snapshots import AverageSnapshots, kept_steps
from medfusion_monai.weights.power_average import LENGTHS, power_decay, rebuild_average, snapshot_files

EPOCH_LENGTH = 5


class Run:
    """A training whose weights take new values at each step, and that records them."""

    def __init__(self, folder, count=8):
        torch.manual_seed(0)
        self.network, self.autoencoder, self.values = nn.Linear(3, 2), nn.Linear(2, 2), []
        self.snapshots = AverageSnapshots(self.network, folder, count, self.autoencoder, self.info)
        self.trainer = Engine(self.step)
        self.snapshots.attach(self.trainer)

    def info(self):
        return {"training": {"steps": self.trainer.state.iteration}}

    def step(self, engine, batch):
        generator = torch.Generator().manual_seed(engine.state.iteration)
        with torch.no_grad():
            for weight in self.network.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator))
        self.values.append({name: value.double().clone() for name, value in self.network.state_dict().items()})

    def __call__(self, epochs):
        self.trainer.run([0] * EPOCH_LENGTH, max_epochs=epochs)
        return self


def brute_force(values, length):
    average = {name: torch.zeros_like(value) for name, value in values[0].items()}
    for step, state in enumerate(values, 1):
        decay = power_decay(length, step)
        average = {name: decay * average[name] + (1 - decay) * state[name] for name in state}
    return average


def test_snapshots_are_the_averages_of_all_weights_so_far(tmp_path):
    run = Run(tmp_path)(epochs=4)
    assert list(snapshot_files(tmp_path)) == [5, 10, 15, 20]
    for step, path in snapshot_files(tmp_path).items():
        snapshot = torch.load(path, weights_only=True)
        assert json.loads(snapshot["info"])["training"]["steps"] == snapshot["step"] == step
        for length in LENGTHS:
            expected = brute_force(run.values[:step], length)
            for name, value in snapshot["averages"][length].items():
                assert value.dtype == torch.float16
                torch.testing.assert_close(value.double(), expected[name], rtol=1e-3, atol=1e-6)
        assert torch.equal(snapshot["autoencoder"]["weight"], run.autoencoder.weight)


@pytest.mark.parametrize("length", [0.06, 0.08])
def test_average_of_another_length_is_rebuilt_from_a_training(length, tmp_path):
    run = Run(tmp_path, count=16)(epochs=16)
    state, error = rebuild_average(tmp_path, length)
    expected = brute_force(run.values, length)
    for name, value in state.items():  # the weights of steps have nothing in common: the hardest case
        torch.testing.assert_close(value.double(), expected[name], rtol=0, atol=0.01)
    assert error < 0.01


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ([5], [5]),
        ([5, 10, 15, 20], [5, 10, 15, 20]),
        ([5, 10, 15, 20, 25], [10, 20, 25]),
        ([10, 20, 25, 30], [10, 20, 30]),
        ([10, 20, 30, 40, 45], [20, 40, 45]),
    ],
)
def test_snapshots_stay_evenly_spread_and_bounded(steps, kept):
    assert kept_steps(steps, 4, interval=5) == kept


def test_number_of_snapshots_is_bounded(tmp_path):
    Run(tmp_path, count=4)(epochs=13)
    assert list(snapshot_files(tmp_path)) == [20, 40, 60, 65]


def test_training_resumes_with_the_same_averages(tmp_path):
    whole = Run(tmp_path / "whole")(epochs=4)
    first, second = Run(tmp_path / "parts")(epochs=2), Run(tmp_path / "parts")
    second.snapshots.load_state_dict(first.snapshots.state_dict())
    second.trainer.load_state_dict(first.trainer.state_dict() | {"max_epochs": 4})
    second(epochs=4)
    assert list(snapshot_files(tmp_path / "parts")) == [5, 10, 15, 20]
    for length in LENGTHS:
        assert torch.equal(second.snapshots.modules[length].weight, whole.snapshots.modules[length].weight)


def test_training_from_scratch_deletes_the_snapshots_of_another_one(tmp_path):
    Run(tmp_path)(epochs=4)
    (tmp_path / "7.pt").write_bytes(b"of another interval")
    Run(tmp_path)(epochs=1)
    assert list(snapshot_files(tmp_path)) == [5]


def test_snapshots_of_steps_that_are_repeated_are_deleted(tmp_path):
    first = Run(tmp_path)(epochs=1)
    state = first.snapshots.state_dict()
    state = {**state, "averages": {name: dict(value) for name, value in state["averages"].items()}}
    (tmp_path / "15.pt").write_bytes(b"later than the checkpoint")
    second = Run(tmp_path)
    second.snapshots.load_state_dict(state)
    second.trainer.load_state_dict(first.trainer.state_dict() | {"max_epochs": 2})
    second(epochs=2)
    assert list(snapshot_files(tmp_path)) == [5, 10]
