import pytest
import torch
from torch import nn

from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.networks.autoencoder import Autoencoder
from medfusion_monai.networks.unet import NO_LABEL
from medfusion_monai.training.prepare_batch import AutoencoderPrepareBatch, DiffusionPrepareBatch, SamplingPrepareBatch

CPU = torch.device("cpu")


@pytest.fixture
def autoencoder():
    torch.manual_seed(0)
    network = Autoencoder(latent_channels=2, channels=(8, 8))
    network.set_latent_statistics(torch.tensor([0.3, -0.2]), torch.tensor([0.5, 2.0]))
    return network


@pytest.fixture
def certain(autoencoder):
    """An autoencoder whose posterior has no width: latents are its mean."""
    last = autoencoder.to_moments[1]
    last.weight.data[2:], last.bias.data[2:] = 0.0, -30.0
    return autoencoder


def make_batch(size=4, first_seed=100):
    source = torch.Generator().manual_seed(first_seed)
    images = torch.rand(size, 1, 8, 4, generator=source)
    return {"image": images, "label": torch.arange(size) % 2, "seed": torch.arange(first_seed, first_seed + size)}


def part(batch, index):
    return {key: value[index] for key, value in batch.items()}


def clean_latents(autoencoder, batch):
    mean = autoencoder.encode(batch["image"] * 2 - 1).mean
    shift, scale = torch.tensor([0.3, -0.2])[:, None, None], torch.tensor([0.5, 2.0])[:, None, None]
    return ((mean - shift) / scale).detach()


def signal_and_sigma(schedule, timesteps):
    alphas = torch.tensor([schedule.exact_alphas_cumprod[t] for t in timesteps.tolist()])[:, None, None, None]
    return alphas.sqrt(), (1 - alphas).sqrt()


def test_autoencoder_sees_images_from_minus_one_to_one(autoencoder):
    image = torch.tensor([0.0, 0.25, 0.5, 1.0]).reshape(1, 1, 2, 2)
    inputs, targets, arguments, _ = AutoencoderPrepareBatch(autoencoder)({"image": image, "seed": [1]}, CPU)
    assert inputs.flatten().tolist() == [-1.0, -0.5, 0.0, 1.0]
    assert torch.equal(targets, inputs)
    assert arguments == ()


def test_autoencoder_gets_the_noise_of_its_latents(autoencoder):
    batch = make_batch(64)
    image, _, _, keywords = AutoencoderPrepareBatch(autoencoder)(batch, CPU)
    assert keywords["noise"].shape == autoencoder.encode(image).mean.shape
    assert keywords["noise"].mean().item() == pytest.approx(0.0, abs=0.1)
    assert keywords["noise"].std().item() == pytest.approx(1.0, abs=0.1)


def test_noise_of_the_autoencoder_does_not_depend_on_the_batch(autoencoder):
    prepare, batch = AutoencoderPrepareBatch(autoencoder), make_batch()
    together = prepare(batch, CPU)[3]["noise"]
    assert not torch.equal(together[0], together[1])
    other = prepare(part(batch, [3, 1]), CPU)[3]["noise"]
    assert torch.equal(other, together[[3, 1]])


def test_sample_of_the_diffusion_model_does_not_depend_on_the_batch(autoencoder):
    prepare, batch = DiffusionPrepareBatch(autoencoder, NoiseSchedule()), make_batch(16)
    noisy, noise, _, keywords = prepare(batch, CPU)
    for index in ([5], [3, 0, 15, 8]):
        other_noisy, other_noise, _, other_keywords = prepare(part(batch, index), CPU)
        assert torch.equal(other_noise, noise[index])
        assert torch.equal(other_keywords["timesteps"], keywords["timesteps"][index])
        assert torch.equal(other_keywords["class_labels"], keywords["class_labels"][index])
        torch.testing.assert_close(other_noisy, noisy[index], rtol=1e-5, atol=1e-5)


def test_other_seeds_draw_other_noise_for_the_same_images(autoencoder):
    prepare, batch = DiffusionPrepareBatch(autoencoder, NoiseSchedule()), make_batch()
    again = {**batch, "seed": batch["seed"] + 1000}
    assert not torch.isclose(prepare(batch, CPU)[1], prepare(again, CPU)[1]).any()


def test_noisy_latents_are_the_schedules_mix_of_normalized_latents_and_noise(certain):
    schedule, batch = NoiseSchedule(), make_batch(8)
    noisy, noise, arguments, keywords = DiffusionPrepareBatch(certain, schedule)(batch, CPU)
    signal, sigma = signal_and_sigma(schedule, keywords["timesteps"])
    expected = signal * clean_latents(certain, batch) + sigma * noise
    torch.testing.assert_close(noisy, expected, rtol=1e-4, atol=1e-4)
    assert arguments == ()


def test_cached_moments_are_prepared_like_their_images(autoencoder):
    prepare, batch = DiffusionPrepareBatch(autoencoder, NoiseSchedule()), make_batch()
    posterior = autoencoder.encode(batch["image"] * 2 - 1)
    kept = torch.cat([posterior.mean, posterior.logvar], dim=1)
    noisy, target, _, keywords = prepare(batch, CPU)
    moments = {"moments": kept, "label": batch["label"], "seed": batch["seed"]}
    other_noisy, other_target, _, other_keywords = prepare(moments, CPU)
    torch.testing.assert_close(other_noisy, noisy, rtol=1e-5, atol=1e-5)
    assert torch.equal(other_target, target)
    for name, value in keywords.items():
        assert torch.equal(other_keywords[name], value), name


def test_target_follows_the_prediction_type(certain):
    batch = make_batch(8)
    targets, keywords = {}, {}
    for kind in ("epsilon", "sample", "v_prediction"):
        schedule = NoiseSchedule(prediction_type=kind)
        _, targets[kind], _, keywords = DiffusionPrepareBatch(certain, schedule)(batch, CPU)
    clean = clean_latents(certain, batch)
    signal, sigma = signal_and_sigma(schedule, keywords["timesteps"])
    torch.testing.assert_close(targets["sample"], clean, rtol=1e-4, atol=1e-4)
    velocity = signal * targets["epsilon"] - sigma * clean
    torch.testing.assert_close(targets["v_prediction"], velocity, rtol=1e-4, atol=1e-4)


def test_latents_are_drawn_from_the_posterior_apart_from_the_noise(autoencoder):
    nn.init.zeros_(autoencoder.to_moments[1].weight)
    nn.init.zeros_(autoencoder.to_moments[1].bias)  # a unit Gaussian whatever the image
    batch = make_batch(300)
    prepared = [
        DiffusionPrepareBatch(autoencoder, NoiseSchedule(prediction_type=kind))(batch, CPU)
        for kind in ("sample", "epsilon")
    ]
    latents, noise = (target for _, target, _, _ in prepared)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.tensor([-0.6, 0.1]), rtol=0, atol=0.1)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.tensor([2.0, 0.5]), rtol=0.05, atol=0)
    torch.testing.assert_close(noise.std(dim=(0, 2, 3)), torch.ones(2), rtol=0.05, atol=0)
    correlation = torch.corrcoef(torch.stack([latents[:, 0].flatten(), noise[:, 0].flatten()]))[0, 1]
    assert abs(correlation) < 0.1


def test_timesteps_cover_the_schedule_evenly(autoencoder):
    prepare = DiffusionPrepareBatch(autoencoder, NoiseSchedule(num_train_timesteps=5))
    timesteps = prepare(make_batch(1000), CPU)[3]["timesteps"]
    counts = torch.bincount(timesteps, minlength=5)
    assert len(counts) == 5
    assert counts.min() > 150  # 200 expected, standard deviation 13


@pytest.mark.parametrize(("dropout", "low", "high"), [(0.0, 0.0, 0.0), (0.3, 0.24, 0.36), (1.0, 1.0, 1.0)])
def test_label_is_dropped_per_sample(autoencoder, dropout, low, high):
    batch = make_batch(1000)
    labels = DiffusionPrepareBatch(autoencoder, NoiseSchedule(), dropout)(batch, CPU)[3]["class_labels"]
    dropped = labels == NO_LABEL
    assert low <= dropped.float().mean() <= high
    assert torch.equal(labels[~dropped], batch["label"][~dropped])


def test_dropped_label_becomes_the_null_label(autoencoder):
    prepare = DiffusionPrepareBatch(autoencoder, NoiseSchedule(), label_dropout=1.0, null_label=7)
    assert prepare(make_batch(3), CPU)[3]["class_labels"].tolist() == [7, 7, 7]


@pytest.mark.parametrize("dropout", [-0.1, 1.1])
def test_label_dropout_that_is_not_a_probability_is_refused(autoencoder, dropout):
    with pytest.raises(ValueError, match=f"label_dropout must be between 0 and 1, received {dropout}"):
        DiffusionPrepareBatch(autoencoder, NoiseSchedule(), dropout)


def test_autoencoder_stays_frozen_and_untouched(autoencoder):
    before = {name: value.clone() for name, value in autoencoder.state_dict().items()}
    prepare = DiffusionPrepareBatch(autoencoder, NoiseSchedule())
    autoencoder.train()  # as a trainer does with all its networks
    noisy, target, _, _ = prepare(make_batch(), CPU)
    assert not autoencoder.training
    assert not noisy.requires_grad
    assert not target.requires_grad
    assert not [name for name, parameter in autoencoder.named_parameters() if parameter.grad is not None]
    for name, value in autoencoder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_sampler_gets_labels_and_seeds():
    seed = 2**62 + 1
    labels, targets, arguments, keywords = SamplingPrepareBatch()(
        {"label": [1, 0], "seed": torch.tensor([3, seed])}, CPU
    )
    assert labels.tolist() == [1, 0]
    assert targets is None
    assert arguments == ()
    assert keywords == {"seeds": [3, seed]}


def test_moments_in_float16_are_used_in_float32(autoencoder):
    prepare, batch = DiffusionPrepareBatch(autoencoder, NoiseSchedule()), make_batch()
    del batch["image"]
    moments = torch.randn(4, 4, 4, 2).half()
    noisy, _, _, _ = prepare({**batch, "moments": moments}, CPU)
    expected, _, _, _ = prepare({**batch, "moments": moments.float()}, CPU)
    assert noisy.dtype is torch.float32
    assert torch.equal(noisy, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["image", "moments"])
def test_batch_is_prepared_without_waiting_for_the_gpu(autoencoder, kind):
    gpu, schedule = torch.device("cuda"), NoiseSchedule().cuda()
    batch = make_batch()
    batch = {**batch, "image": batch["image"].pin_memory()}
    expected = DiffusionPrepareBatch(autoencoder, NoiseSchedule())(batch, CPU)
    prepare = DiffusionPrepareBatch(autoencoder.to(gpu), schedule)
    prepare(batch, gpu, non_blocking=True)
    if kind == "moments":
        posterior = autoencoder.encode(batch["image"].to(gpu) * 2 - 1)
        moments = torch.cat([posterior.mean, posterior.logvar], dim=1).detach().cpu().pin_memory()
        batch = {"moments": moments, "label": batch["label"], "seed": batch["seed"]}
    torch.cuda.set_sync_debug_mode("error")
    try:
        prepared = prepare(batch, gpu, non_blocking=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(prepared[0].cpu(), expected[0], rtol=1e-3, atol=1e-3)
    assert torch.equal(prepared[3]["timesteps"].cpu(), expected[3]["timesteps"])
