import itertools
import math

import numpy as np
import pytest
import torch
from ignite.engine import Events
from torch import nn

from medfusion_monai.losses.adversarial import AdversarialLoss
from medfusion_monai.losses.reconstruction import ReconstructionLoss
from medfusion_monai.networks.autoencoder import Autoencoder
from medfusion_monai.networks.discriminator import PatchDiscriminator
from medfusion_monai.training.autoencoder_step import AutoencoderTrainer
from medfusion_monai.training.handlers.non_finite_loss import NonFiniteLossError, StopOnNonFiniteLoss
from medfusion_monai.training.prepare_batch import AutoencoderPrepareBatch

RECONSTRUCTION_TERMS = {"pixel", "ssim", "pixel_low", "ssim_low", "kl"}
ADVERSARIAL_TERMS = {f"{name}{end}" for name in ("adversarial", "adversarial_weight") for end in ("", "_low")}
ADVERSARIAL_TERMS |= {"discriminator"}


class DoublePrepareBatch(AutoencoderPrepareBatch):
    """Noise in double precision, where sums hardly depend on their order."""

    def __call__(self, *args, **kwargs):
        image, target, _, keywords = super().__call__(*args, **kwargs)
        return image, target, (), {name: value.double() for name, value in keywords.items()}


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(before, after):
    return all(torch.equal(value, after[name]) for name, value in before.items())


def make_batch():
    blocks = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(5))
    return {"image": blocks.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3), "seed": torch.arange(4)}


def make_networks(adversarial_start=None):
    torch.manual_seed(0)
    network = Autoencoder(latent_channels=2, channels=(8, 16))
    return network, AdversarialLoss([PatchDiscriminator(1, (8, 16)) for _ in range(2)], adversarial_start)


def train(steps, adversarial_start=None, with_adversarial=True, **kwargs):
    """Train a tiny network on one batch and return the output of each step."""
    network, adversarial = make_networks(adversarial_start)
    pair = {"adversarial": adversarial, "discriminator_optimizer": torch.optim.SGD(adversarial.parameters(), lr=0.1)}
    trainer = AutoencoderTrainer(
        device="cpu",
        max_epochs=1,
        epoch_length=steps,
        train_data_loader=[make_batch()] * steps,
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=3.0e-3),
        loss_function=ReconstructionLoss(perceptual_weight=0.0, ssim_window=7, kl_weight=1.0e-4),
        prepare_batch=AutoencoderPrepareBatch(network),
        decollate=False,
        **(pair if with_adversarial else {}),
        **kwargs,
    )
    outputs, networks, discriminators = [], [snapshot(network)], [snapshot(adversarial)]

    @trainer.on(Events.ITERATION_COMPLETED)
    def look(engine):
        outputs.append(dict(engine.state.output))
        networks.append(snapshot(network))
        discriminators.append(snapshot(adversarial))

    trainer.run()
    return outputs, networks, discriminators


def test_training_lowers_the_loss():
    outputs, _, _ = train(40, with_adversarial=False)
    assert outputs[-1]["loss"] < 0.6 * outputs[0]["loss"]
    assert outputs[-1]["terms"]["pixel"] < 0.6 * outputs[0]["terms"]["pixel"]


def test_terms_are_separate_and_add_up_to_the_loss():
    ((output,), _, _) = train(1, with_adversarial=False)
    assert output["terms"].keys() == RECONSTRUCTION_TERMS
    torch.testing.assert_close(output["loss"], sum(output["terms"].values()))
    assert not output["loss"].requires_grad
    assert output["image"].min() < -0.5
    assert output["pred"].shape == output["image"].shape


def test_discriminators_start_exactly_after_the_start_step():
    outputs, networks, discriminators = train(4, adversarial_start=2)
    changed = [not same(before, after) for before, after in itertools.pairwise(discriminators)]
    assert changed == [False, False, True, True]
    names = [set(output["terms"]) for output in outputs]
    assert names == [RECONSTRUCTION_TERMS] * 2 + [RECONSTRUCTION_TERMS | ADVERSARIAL_TERMS] * 2
    assert not any(same(before, after) for before, after in itertools.pairwise(networks))


def test_loss_in_the_adversarial_phase_keeps_the_other_terms():
    outputs, _, _ = train(4, adversarial_start=1)
    terms = outputs[-1]["terms"]
    assert terms["adversarial"] != 0
    assert terms["adversarial_weight"] > 0
    expected = sum(terms[name] for name in (*RECONSTRUCTION_TERMS, "adversarial", "adversarial_low"))
    torch.testing.assert_close(outputs[-1]["loss"], expected)


def test_autoencoder_is_trained_as_without_discriminators_until_they_start():
    _, alone, _ = train(4, with_adversarial=False)
    _, together, _ = train(4, adversarial_start=2)
    assert same(alone[2], together[2])
    assert same(alone[3], together[3]), "zero-started discriminators say nothing in their first step"
    assert not same(alone[4], together[4])


def test_discriminators_without_a_start_step_never_join():
    _, networks, discriminators = train(3, adversarial_start=None)
    assert same(discriminators[0], discriminators[-1])
    assert same(networks[-1], train(3, with_adversarial=False)[1][-1])


def test_discriminators_take_a_step_down_their_own_loss_only():
    outputs, _, discriminators = train(1, adversarial_start=0)
    assert outputs[0]["terms"]["discriminator"].item() == pytest.approx(2.0)  # 1 per resolution, as logits are 0
    network, adversarial = make_networks()
    image, _, _, keywords = AutoencoderPrepareBatch(network)(make_batch(), torch.device("cpu"))
    adversarial.discriminator_loss(network(image, **keywords), image).backward()
    expected = {name: (weight - 0.1 * weight.grad).detach() for name, weight in adversarial.named_parameters()}
    torch.testing.assert_close(discriminators[1], expected)
    assert not same(discriminators[0], discriminators[1])


def test_discriminators_never_see_a_loss_that_is_not_finite():
    """Their optimizer steps in the same iteration, for which the guard waits even with fused optimizers."""
    network, adversarial = make_networks(adversarial_start=0)
    batches = [make_batch(), make_batch()]
    batches[1]["image"][0, 0, 0, 0] = math.nan
    trainer = AutoencoderTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=batches,
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), fused=True),
        loss_function=ReconstructionLoss(perceptual_weight=0.0, ssim_window=7),
        prepare_batch=AutoencoderPrepareBatch(network),
        adversarial=adversarial,
        discriminator_optimizer=torch.optim.SGD(adversarial.parameters(), lr=0.1),
        train_handlers=[StopOnNonFiniteLoss(network, 1.0, wait=False)],
        decollate=False,
    )
    seen = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: seen.append((snapshot(network), snapshot(adversarial)))
    )
    with pytest.raises(NonFiniteLossError, match="step 2: the loss is nan"):
        trainer.run()
    assert len(seen) == 1
    assert same(seen[0][0], snapshot(network))
    assert same(seen[0][1], snapshot(adversarial))


@pytest.mark.parametrize("given", ["adversarial", "discriminator_optimizer"])
def test_adversarial_loss_and_its_optimizer_need_each_other(given):
    network, loss = Autoencoder(channels=(8, 16)), AdversarialLoss([nn.Conv2d(1, 1, 1)])
    pair = {"adversarial": loss, "discriminator_optimizer": torch.optim.Adam(loss.parameters())}
    with pytest.raises(ValueError, match="pass both or neither"):
        AutoencoderTrainer(
            device="cpu",
            max_epochs=1,
            train_data_loader=[],
            network=network,
            optimizer=torch.optim.Adam(network.parameters()),
            loss_function=ReconstructionLoss(perceptual_weight=0.0),
            **{given: pair[given]},
        )


def test_two_processes_train_as_one_with_their_batches_together(two_processes):
    batch = make_batch()

    def weights_after(items):
        network, adversarial = (module.double() for module in make_networks(adversarial_start=1))
        part = {name: values[items].double() if name == "image" else values[items] for name, values in batch.items()}
        trainer = AutoencoderTrainer(
            device="cpu",
            max_epochs=1,
            epoch_length=4,
            train_data_loader=[part] * 4,
            network=network,
            optimizer=torch.optim.Adam(network.parameters(), lr=3.0e-3),
            loss_function=ReconstructionLoss(perceptual_weight=0.0, ssim_window=7),
            prepare_batch=DoublePrepareBatch(network),
            adversarial=adversarial,
            discriminator_optimizer=torch.optim.Adam(adversarial.parameters(), lr=1.0e-2),
            train_handlers=[StopOnNonFiniteLoss(network, max_norm=0.01)],
            decollate=False,
        )
        trainer.run()
        assert trainer.state.output["terms"]["adversarial"] != 0
        return torch.nn.utils.parameters_to_vector([*network.parameters(), *adversarial.parameters()]).detach().numpy()

    together, alone = weights_after(slice(0, 4)), weights_after(slice(0, 2))
    assert np.abs(alone - together).max() > 1e-3
    for found in two_processes(lambda rank: weights_after(slice(2 * rank, 2 * rank + 2))):
        assert np.abs(found - together).max() < 1e-7


def test_training_in_bfloat16_lowers_the_loss_as_in_float32():
    expected, _, _ = train(20, with_adversarial=False)
    outputs, _, _ = train(20, with_adversarial=False, dtype=torch.bfloat16)
    assert expected[-1]["loss"] < 0.8 * expected[0]["loss"]
    assert outputs[0]["loss"] == pytest.approx(expected[0]["loss"].item(), rel=0.01)
    assert outputs[-1]["loss"] == pytest.approx(expected[-1]["loss"].item(), rel=0.1)
    assert not torch.equal(outputs[-1]["loss"], expected[-1]["loss"])


def test_losses_and_weights_stay_float32_in_bfloat16():
    outputs, networks, discriminators = train(3, adversarial_start=1, dtype=torch.bfloat16)
    values = [outputs[-1]["loss"], outputs[-1]["pred"], *outputs[-1]["terms"].values()]
    values += [*networks[-1].values(), *discriminators[-1].values()]
    assert {value.dtype for value in values} == {torch.float32}
    assert all(torch.isfinite(value).all() for value in values)


def test_both_networks_run_in_bfloat16():
    kinds = {}

    def note(module, inputs, output):
        kinds[type(module).__name__] = getattr(output, "reconstruction", output).dtype

    class Listen:
        def attach(self, engine):
            engine.add_event_handler(Events.STARTED, self)

        def __call__(self, engine):
            for module in (engine.network, *engine.adversarial.discriminators):
                module.register_forward_hook(note)

    train(3, adversarial_start=1, dtype=torch.bfloat16, train_handlers=[Listen()])
    assert kinds == {"Autoencoder": torch.bfloat16, "PatchDiscriminator": torch.bfloat16}


def test_float16_is_refused_without_a_scaled_loss():
    with pytest.raises(ValueError, match="float16 requires: set dtype to bfloat16 or float32"):
        train(1, dtype=torch.float16)
