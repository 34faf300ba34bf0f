import math

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from torch import nn

from medfusion_monai.training.handlers.non_finite_loss import NonFiniteLossError, StopOnNonFiniteLoss


def make_trainer(batches, max_norm=None, gradient_hook=None, wait=True, fused=False):
    """Train three weights by plain gradient descent with learning rate 1 on the loss (weights * image).sum()."""
    network = nn.Linear(3, 1, bias=False)
    nn.init.zeros_(network.weight)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[{"image": torch.tensor([batch]), "label": torch.zeros(1, 1)} for batch in batches],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0, fused=fused),
        loss_function=lambda prediction, label: prediction.sum(),
        train_handlers=[StopOnNonFiniteLoss(network, max_norm, kept="the vault", wait=wait)],
        decollate=False,
    )
    if gradient_hook is not None:
        network.weight.register_hook(lambda gradient: gradient_hook(trainer.state.iteration, gradient))
    weights = [network.weight.detach().clone()]

    @trainer.on(Events.ITERATION_COMPLETED)
    def remember(engine):
        weights.append(network.weight.detach().clone())

    return trainer, network, weights


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_loss_that_is_not_finite_stops_before_the_weights_change(bad):
    batches = [[1.0, 2.0, 3.0], [1.0, 0.0, 5.0], [bad, 1.0, 1.0], [1.0, 1.0, 1.0]]
    trainer, network, weights = make_trainer(batches)
    # The weights are negative at step 3, which changes the sign.
    with pytest.raises(NonFiniteLossError, match=rf"stopped at step 3: the loss is {-bad}\..*kept in the vault"):
        trainer.run()
    assert len(weights) == 3
    assert torch.equal(network.weight, weights[-1])
    assert network.weight.tolist() == [[-2.0, -2.0, -8.0]]


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_gradient_that_is_not_finite_stops_before_the_weights_change(bad, max_norm):
    def spoil(step, gradient):
        return gradient * torch.tensor([1.0, bad, 1.0]) if step == 2 else gradient

    trainer, network, weights = make_trainer([[0.5, 0.5, 0.5]] * 3, max_norm, spoil)
    with pytest.raises(NonFiniteLossError, match=r"step 2: the gradient norm is"):
        trainer.run()
    assert torch.equal(network.weight, weights[1])
    assert network.weight.tolist() == [[-0.5, -0.5, -0.5]]


def test_large_gradient_is_scaled_to_the_norm():
    trainer, network, _ = make_trainer([[3.0, 0.0, 4.0]], max_norm=0.5)
    trainer.run()
    torch.testing.assert_close(network.weight.detach(), torch.tensor([[-0.3, 0.0, -0.4]]))


def test_small_gradient_is_left_as_it_is():
    trainer, network, _ = make_trainer([[0.25, 0.0, -0.125]], max_norm=0.5)
    trainer.run()
    assert network.weight.tolist() == [[-0.25, 0.0, 0.125]]


def test_gradients_are_not_clipped_without_a_norm():
    trainer, network, _ = make_trainer([[3000.0, 0.0, 4.0e8]], max_norm=None)
    trainer.run()
    assert network.weight.tolist() == [[-3000.0, 0.0, -4.0e8]]


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan])
def test_norm_that_is_not_positive_is_refused(max_norm):
    with pytest.raises(ValueError, match=f"max_norm must be a finite number above 0, received {max_norm}"):
        StopOnNonFiniteLoss(nn.Linear(1, 1), max_norm)


def test_term_that_is_not_finite_is_named():
    engine = Engine(lambda *_: None)
    engine.state.iteration = 9
    engine.state.output = {"loss": torch.tensor(1.0), "terms": {"discriminator": torch.tensor(float("nan"))}}
    with pytest.raises(NonFiniteLossError, match="step 9: the discriminator is nan"):
        StopOnNonFiniteLoss(torch.nn.Linear(1, 1))(engine)


@pytest.mark.parametrize("broken", [0, 1])
def test_loss_of_one_process_that_is_not_finite_stops_all_with_one_message(broken, two_processes):
    def train(rank):
        batches = [[1.0, 2.0, 3.0], [1.0, math.nan if rank == broken else 1.0, 1.0]]
        trainer, network, weights = make_trainer(batches)
        with pytest.raises(NonFiniteLossError) as caught:
            trainer.run()
        return str(caught.value), torch.equal(network.weight, weights[-1])

    (message, kept), (same, kept_too) = two_processes(train)
    assert kept
    assert kept_too
    assert message == same
    assert f"stopped at step 2: the loss of process {broken} is nan" in message


def make_late_trainer(batches, **kwargs):
    """Like ``make_trainer``, with a fused optimizer and a guard that does not wait."""
    trainer, network, weights = make_trainer(batches, wait=False, fused=True, **kwargs)
    return trainer, network, weights


@pytest.mark.parametrize("steps_after", [0, 1, 3])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_that_is_not_waited_for_never_reaches_the_weights(bad, steps_after):
    good = [1.0, 2.0, 3.0]
    trainer, network, weights = make_late_trainer([good, good, [bad, 1.0, 1.0]] + [good] * steps_after)
    with pytest.raises(NonFiniteLossError, match=r"stopped at step 3: the loss is"):
        trainer.run()
    assert trainer.state.iteration == 3 + min(1, steps_after)
    assert network.weight.tolist() == [[-2.0, -4.0, -6.0]]
    assert torch.equal(weights[2], network.weight)


def test_gradient_that_is_not_waited_for_never_reaches_the_weights():
    def spoil(step, gradient):
        return gradient * torch.tensor([1.0, math.nan, 1.0]) if step == 2 else gradient

    trainer, network, _ = make_late_trainer([[0.5, 0.5, 0.5]] * 4, gradient_hook=spoil, max_norm=10.0)
    with pytest.raises(NonFiniteLossError, match=r"step 2: the gradient norm is nan"):
        trainer.run()
    assert network.weight.tolist() == [[-0.5, -0.5, -0.5]]


def test_training_that_is_not_waited_for_takes_the_same_steps():
    batches = [[3.0, 0.0, 4.0], [0.1, -0.1, 0.2], [1.0, 1.0, 1.0]]
    _, expected, _ = run(make_trainer(batches, max_norm=0.5, fused=True))
    _, network, _ = run(make_late_trainer(batches, max_norm=0.5))
    assert torch.equal(network.weight, expected.weight)


def test_end_of_an_epoch_looks_back_before_other_handlers():
    trainer, _, _ = make_late_trainer([[1.0, 1.0, 1.0], [math.nan, 1.0, 1.0]])
    reached = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: reached.append(1))
    with pytest.raises(NonFiniteLossError, match="step 2"):
        trainer.run()
    assert not reached


def test_optimizer_that_cannot_skip_a_step_is_waited_for():
    trainer, network, _ = make_trainer([[1.0, 1.0, 1.0], [math.nan, 1.0, 1.0], [1.0, 1.0, 1.0]], wait=False)
    with pytest.raises(NonFiniteLossError, match="step 2"):
        trainer.run()
    assert trainer.state.iteration == 2
    assert network.weight.tolist() == [[-1.0, -1.0, -1.0]]


def test_new_run_takes_steps_again_after_one_that_was_stopped():
    trainer, network, _ = make_trainer([[1.0, 2.0, 3.0]], fused=True)
    trainer.optimizer.found_inf = torch.ones(())  # left by a guard that does not wait
    trainer.run()
    assert network.weight.tolist() == [[-1.0, -2.0, -3.0]]


def run(made):
    made[0].run()
    return made


@pytest.mark.gpu
def test_no_step_waits_for_the_gpu():
    network = nn.Linear(3, 1, bias=False).cuda()
    batch = {"image": torch.ones(1, 3).pin_memory(), "label": torch.zeros(1, 1).pin_memory()}
    trainer = SupervisedTrainer(
        device="cuda",
        max_epochs=1,
        train_data_loader=[batch] * 6,
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), fused=True),
        loss_function=nn.L1Loss(),
        train_handlers=[StopOnNonFiniteLoss(network, 1.0, wait=False)],
        decollate=False,
        non_blocking=True,
    )
    trainer.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: torch.cuda.set_sync_debug_mode("error"))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda: torch.cuda.set_sync_debug_mode("default"))
    trainer.run()


@pytest.mark.gpu
def test_loss_that_is_not_finite_never_reaches_weights_on_the_gpu():
    network = nn.Linear(3, 1, bias=False).cuda()
    before = network.weight.detach().clone()
    trainer = SupervisedTrainer(
        device="cuda",
        max_epochs=1,
        train_data_loader=[{"image": torch.full((1, 3), math.nan), "label": torch.zeros(1, 1)}] * 4,
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), fused=True),
        loss_function=nn.L1Loss(),
        train_handlers=[StopOnNonFiniteLoss(network, 1.0, wait=False)],
        decollate=False,
    )
    with pytest.raises(NonFiniteLossError, match="step 1"):
        trainer.run()
    assert torch.equal(network.weight, before)
