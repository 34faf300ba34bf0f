import copy
import math

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from states import assert_same
from torch import nn

from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.losses.denoising import DiffusionLoss
from medfusion_monai.networks.autoencoder import Autoencoder
from medfusion_monai.networks.unet import UNet
from medfusion_monai.runtime.distributed import data_parallel
from medfusion_monai.runtime.dtype import autocast
from medfusion_monai.runtime.out_of_memory import BatchTooLargeError
from medfusion_monai.training import diffusion_step
from medfusion_monai.training.diffusion_step import DiffusionStep
from medfusion_monai.training.handlers.ema import AveragedWeights
from medfusion_monai.training.handlers.non_finite_loss import NonFiniteLossError, StopOnNonFiniteLoss
from medfusion_monai.training.prepare_batch import DiffusionPrepareBatch


def make_unet():
    torch.manual_seed(0)
    network = UNet(in_channels=2, channels=(8, 8, 16), embedding_channels=32, norm_groups=4, num_res_blocks=1)
    nn.init.normal_(network.conv_out.weight, std=0.1)
    return network


def make_batch(size=6):
    source = torch.Generator().manual_seed(1)
    moments = torch.randn(size, 4, 4, 4, generator=source)
    return {"moments": moments, "label": torch.arange(size) % 2, "seed": torch.arange(size) + 50}


def train(step, steps=1, network=None, batch=None, lr=1.0e-3, handlers=(), loss_function=None, prepare_batch=None):
    """Train a tiny UNet on one batch and return the trainer."""
    network = make_unet() if network is None else network
    schedule = NoiseSchedule(num_train_timesteps=100)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        epoch_length=steps,
        train_data_loader=[make_batch() if batch is None else batch] * steps,
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=lr, fused=True),
        loss_function=loss_function or DiffusionLoss(schedule),
        prepare_batch=prepare_batch or DiffusionPrepareBatch(Autoencoder(latent_channels=2, channels=(8, 8)), schedule),
        iteration_update=step,
        train_handlers=list(handlers),
        decollate=False,
    )
    losses = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output["loss"].item())
    )
    trainer.run()
    return trainer, losses


class Gradients:
    """Records the gradients that the optimizer sees."""

    def __init__(self):
        self.kept = []

    def attach(self, engine):
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine):
        self.kept.append({name: p.grad.clone() for name, p in engine.network.named_parameters()})


def gradients(step, **kwargs):
    seen = Gradients()
    trainer, _ = train(step, handlers=[seen], **kwargs)
    return seen.kept[-1], trainer.state.output


def test_step_is_that_of_monais_trainer():
    ours, theirs = make_unet(), make_unet()
    _, losses = train(DiffusionStep(), steps=3, network=ours)
    _, expected = train(None, steps=3, network=theirs, loss_function=nn.L1Loss())
    assert losses == expected
    for (name, value), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("size", [1, 2, 4, 5, 6, 100])
def test_micro_batches_have_the_gradients_and_the_output_of_the_whole_batch(size):
    expected, output = gradients(DiffusionStep())
    found, parts = gradients(DiffusionStep(micro_batch_size=size))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert parts.keys() == output.keys()
    for name, value in output.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-5)
        assert not parts[name].requires_grad


def test_micro_batches_keep_the_weights_of_timesteps():
    loss = DiffusionLoss(NoiseSchedule(num_train_timesteps=100), loss="l2", weighting="min_snr")
    expected, output = gradients(DiffusionStep(), loss_function=loss)
    found, parts = gradients(DiffusionStep(4), loss_function=loss)
    plain, _ = gradients(
        DiffusionStep(), loss_function=DiffusionLoss(NoiseSchedule(num_train_timesteps=100), loss="l2")
    )
    torch.testing.assert_close(parts["loss"], output["loss"])
    torch.testing.assert_close(found["conv_out.weight"], expected["conv_out.weight"], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(expected["conv_out.weight"], plain["conv_out.weight"], rtol=1e-2)


def test_network_sees_at_most_a_micro_batch():
    network, sizes = make_unet(), []
    network.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    train(DiffusionStep(micro_batch_size=4), network=network)
    assert sizes == [4, 2]


def test_events_fire_once_per_step_and_in_order():
    names = ["FORWARD_COMPLETED", "LOSS_COMPLETED", "BACKWARD_COMPLETED", "MODEL_COMPLETED"]

    class Listen:
        def attach(self, engine):
            for name in names:
                engine.add_event_handler(IterationEvents[name], self.note, name)

        def __init__(self):
            self.seen = []

        def note(self, engine, name):
            output = engine.state.output
            self.seen.append((name, len(output["pred"]), float(output["loss"])))

    listen = Listen()
    _, (loss,) = train(DiffusionStep(micro_batch_size=4), handlers=[listen])
    assert [name for name, _, _ in listen.seen] == names
    assert all(count == 6 and value == loss for _, count, value in listen.seen)


def test_gradient_is_clipped_after_it_is_accumulated():
    norms = []

    class Norm(Gradients):
        def __call__(self, engine):
            norms.append(nn.utils.get_total_norm([p.grad for p in engine.network.parameters()]).item())

    network = make_unet()
    train(DiffusionStep(2), network=network, handlers=[Norm(), StopOnNonFiniteLoss(network, max_norm=0.01), Norm()])
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("bad", [0, 5])
def test_loss_that_is_not_finite_in_any_micro_batch_stops_before_the_weights_change(bad, wait):
    network = make_unet()
    before = copy.deepcopy(network.state_dict())
    batch = make_batch()
    batch["moments"][bad, 0] = math.nan
    with pytest.raises(NonFiniteLossError, match="stopped at step 1: the loss is nan"):
        train(DiffusionStep(2), network=network, batch=batch, handlers=[StopOnNonFiniteLoss(network, 1.0, wait=wait)])
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_network_runs_in_the_lower_precision_and_everything_else_in_float32():
    network, seen = make_unet(), []
    network.middle[0].first.conv.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trainer, _ = train(DiffusionStep(4, torch.bfloat16), network=network)
    assert set(seen) == {torch.bfloat16}
    assert {value.dtype for value in trainer.state.output.values()} == {torch.float32}
    tensors = list(network.parameters()) + [p.grad for p in network.parameters()]
    tensors += [value for state in trainer.optimizer.state.values() for value in state.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_step_keeps_no_casts_of_weights_and_has_the_same_gradients(monkeypatch, gradient_checkpointing):
    def results(cached):
        network, seen = make_unet(), []
        network.gradient_checkpointing = gradient_checkpointing
        network.conv_in.register_forward_hook(lambda *_: seen.append(torch.is_autocast_cache_enabled()))
        found, _ = gradients(DiffusionStep(4, torch.bfloat16), network=network)
        assert set(seen) == {cached}
        return found

    own = results(cached=False)
    monkeypatch.setattr(diffusion_step, "autocast", lambda device, dtype, cached: autocast(device, dtype))
    assert_same(own, results(cached=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_in_a_lower_precision_are_close_to_those_of_float32(dtype, relative_error):
    expected, output = gradients(DiffusionStep())
    step = DiffusionStep(4, dtype)

    class Unscale:
        def attach(self, engine):
            engine.add_event_handler(
                IterationEvents.BACKWARD_COMPLETED,
                lambda engine: engine.scaler and engine.scaler.unscale_(engine.optimizer),
            )

    seen = Gradients()
    trainer, _ = train(step, handlers=[Unscale(), seen])
    assert trainer.state.output["loss"] == pytest.approx(float(output["loss"]), rel=0.01)
    assert relative_error(seen.kept[0]["conv_in.weight"], expected["conv_in.weight"]) < 0.05
    assert not torch.equal(seen.kept[0]["conv_in.weight"], expected["conv_in.weight"])


def test_float16_skips_a_step_whose_scaled_gradients_overflow_and_lowers_the_scale():
    step, network = DiffusionStep(dtype=torch.float16), make_unet()
    step.load_state_dict({**torch.amp.GradScaler("cpu").state_dict(), "scale": 2.0**40})
    before = copy.deepcopy(network.state_dict())
    train(step, network=network, handlers=[StopOnNonFiniteLoss(network, 1.0)])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert step.state_dict()["scale"] == 2.0**39
    step.load_state_dict({**step.state_dict(), "scale": 1024.0})
    train(step, network=network, handlers=[StopOnNonFiniteLoss(network, 1.0)])
    assert not torch.equal(network.conv_in.weight, before["conv_in.weight"])
    assert step.state_dict()["scale"] == 1024.0


def test_scale_of_float16_survives_a_restart():
    first = DiffusionStep(dtype=torch.float16)
    first.load_state_dict({**torch.amp.GradScaler("cpu").state_dict(), "scale": 1024.0})
    train(first, steps=2)
    assert first.state_dict()["_growth_tracker"] == 2
    second = DiffusionStep(dtype=torch.float16)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict(), "before the first step as well"
    train(second)
    assert second.state_dict()["_growth_tracker"] == 3


@pytest.mark.parametrize("state", [{}, {"scale": 8.0}])
def test_precision_may_change_at_a_restart(state):
    step = DiffusionStep(dtype=torch.bfloat16)
    step.load_state_dict(state)
    assert step.state_dict() == {}
    fresh = DiffusionStep(dtype=torch.float16)
    fresh.load_state_dict({})
    train(fresh)
    assert fresh.state_dict()["scale"] > 2.0**10


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "4"])
def test_micro_batch_size_that_is_not_a_count_is_refused(size):
    with pytest.raises(ValueError, match="micro_batch_size must be an integer of at least 1"):
        DiffusionStep(micro_batch_size=size)


class Limited(nn.Module):
    """A network into whose memory a given number of images fits."""

    def __init__(self, most, error):
        super().__init__()
        self.unet, self.most, self.error = make_unet(), most, error

    def forward(self, x, **keywords):
        if len(x) > self.most:
            raise self.error
        return self.unet(x, **keywords)


def test_batch_too_large_for_memory_ends_with_the_largest_that_fits():
    network = Limited(4, torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB."))
    message = r"a batch of 16 images .* cpu; 4 were measured .* --micro_batch_size 4, .* \(CUDA out of memory\.\)$"
    with pytest.raises(BatchTooLargeError, match=message):
        train(DiffusionStep(), network=network, batch=make_batch(16))
    assert all(p.grad is None for p in network.parameters())
    train(DiffusionStep(4), network=network, batch=make_batch(16))


def test_micro_batch_too_large_for_memory_is_reported_as_one():
    with pytest.raises(BatchTooLargeError, match=r"a micro-batch of 6 of 16 images .* 3 were measured"):
        train(DiffusionStep(6), network=Limited(4, MemoryError()), batch=make_batch(16))


def test_network_too_large_for_one_image_is_reported():
    with pytest.raises(BatchTooLargeError, match=r"not even one fits: set gradient_checkpointing"):
        train(DiffusionStep(), network=Limited(0, MemoryError()))


def test_other_errors_are_passed_on():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train(DiffusionStep(), network=Limited(0, RuntimeError("shapes cannot be multiplied")))


def test_two_processes_average_the_gradients_of_all_micro_batches(two_processes):
    batch = {name: values.double() if name == "moments" else values for name, values in make_batch(8).items()}

    class InDouble(DiffusionPrepareBatch):
        def __call__(self, *args, **kwargs):
            noisy, target, _, keywords = super().__call__(*args, **kwargs)
            return noisy.double(), target.double(), (), keywords

    schedule = NoiseSchedule(num_train_timesteps=100)
    prepare = InDouble(Autoencoder(latent_channels=2, channels=(8, 8)), schedule)

    def weights_after(items, size, parallel):
        network = make_unet().double()
        part = {name: values[items] for name, values in batch.items()}
        wrapped = data_parallel(network, "cpu") if parallel else network
        train(DiffusionStep(size), 2, wrapped, part, loss_function=DiffusionLoss(schedule), prepare_batch=prepare)
        return nn.utils.parameters_to_vector(network.parameters()).detach().numpy()

    together = weights_after(slice(0, 8), None, False)
    alone = weights_after(slice(0, 4), None, False)
    assert abs(alone - together).max() > 1e-4
    for found in two_processes(lambda rank: weights_after(slice(4 * rank, 4 * rank + 4), 3, True)):
        assert abs(found - together).max() < 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_step_waits_for_the_gpu(dtype):
    network, schedule = make_unet().cuda(), NoiseSchedule(num_train_timesteps=100).cuda()
    batch = {name: values.pin_memory() for name, values in make_batch().items()}
    trainer = SupervisedTrainer(
        device="cuda",
        max_epochs=1,
        train_data_loader=[batch] * 6,
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), fused=True),
        loss_function=DiffusionLoss(schedule),
        prepare_batch=DiffusionPrepareBatch(Autoencoder(latent_channels=2, channels=(8, 8)).cuda(), schedule),
        iteration_update=DiffusionStep(4, dtype),
        train_handlers=[AveragedWeights(network), StopOnNonFiniteLoss(network, 1.0, wait=False)],
        decollate=False,
        non_blocking=True,
    )
    trainer.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: torch.cuda.set_sync_debug_mode("error"))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda: torch.cuda.set_sync_debug_mode("default"))
    try:
        trainer.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_batch_too_large_for_the_gpu_ends_with_the_largest_that_fits():
    network = make_unet().cuda()

    class Greedy(nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = network

        def forward(self, x, **keywords):
            free, _ = torch.cuda.mem_get_info()
            held = torch.empty(len(x) * free // 5, dtype=torch.uint8, device=x.device)  # four images fit
            return self.unet(x, **keywords) + 0 * held[0]

    schedule = NoiseSchedule(num_train_timesteps=100).cuda()
    trainer = SupervisedTrainer(
        device="cuda",
        max_epochs=1,
        train_data_loader=[make_batch(16)],
        network=Greedy(),
        optimizer=torch.optim.AdamW(network.parameters(), fused=True),
        loss_function=DiffusionLoss(schedule),
        prepare_batch=DiffusionPrepareBatch(Autoencoder(latent_channels=2, channels=(8, 8)).cuda(), schedule),
        iteration_update=DiffusionStep(),
        decollate=False,
    )
    with pytest.raises(BatchTooLargeError, match="4 were measured to fit"):
        trainer.run()
