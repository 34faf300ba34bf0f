import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.transforms import RandFlipd
from states import assert_same
from torch import nn
from torch.utils.data import DataLoader

from medfusion_monai.data.training.stream import SeededDataset, StreamSampler
from medfusion_monai.runtime.distributed import gather
from medfusion_monai.runtime.seeds import generators, randn
from medfusion_monai.training.handlers.checkpoint import BestWeights, CheckpointError, TrainingCheckpoint
from medfusion_monai.training.handlers.ema import AveragedWeights
from medfusion_monai.training.handlers.non_finite_loss import StopOnNonFiniteLoss
from medfusion_monai.training.learning_rate import warmup_decay
from medfusion_monai.weights.state_dict import load_weights

EPOCHS, EPOCH_LENGTH = 3, 4
SETTINGS = {"seed": 0, "image_size": [8, 8]}


class PowerCutError(Exception):
    """Stands for whatever stops a run."""


def denoising_batch(batch, device, non_blocking=False, **kwargs):
    noise = randn(batch["image"].shape[1:], generators(batch["seed"]))
    return batch["image"] + noise, noise, (), {}


def make_run(path, stop_at=None, width=4, start_weights=0, epochs=EPOCHS, **keywords):
    """Build all objects of a small training from scratch, as a new process would."""
    torch.manual_seed(start_weights)
    network = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.Conv2d(width, 1, 1))
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    items = [{"image": image, "label": 0} for image in images]
    dataset = SeededDataset(items, RandFlipd("image", prob=0.5, spatial_axis=1), seed=3)
    run = SimpleNamespace(network=network, sampler=StreamSampler(2), iterations=[])
    run.optimizer = torch.optim.AdamW(network.parameters(), lr=1.0e-2)
    run.lr_scheduler = warmup_decay(run.optimizer, 3, EPOCHS * EPOCH_LENGTH, "cosine")
    run.ema = AveragedWeights(network)
    names = ("network", "optimizer", "lr_scheduler", "ema")
    objects = {name: getattr(run, name) for name in names}
    run.states = lambda: {name: item.state_dict() for name, item in objects.items()}
    keywords = {"settings": SETTINGS} | keywords
    run.trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        epoch_length=EPOCH_LENGTH,
        train_data_loader=DataLoader(dataset, batch_sampler=run.sampler),
        network=network,
        optimizer=run.optimizer,
        loss_function=nn.MSELoss(),
        prepare_batch=denoising_batch,
        decollate=False,
        train_handlers=[
            StopOnNonFiniteLoss(network, max_norm=1.0),
            run.ema,
            LrScheduleHandler(run.lr_scheduler, print_lr=False, epoch_level=False),
            TrainingCheckpoint(path, objects, run.sampler, **keywords),
        ],
    )

    @run.trainer.on(Events.ITERATION_COMPLETED)
    def follow(engine):
        run.iterations.append(engine.state.iteration)
        if engine.state.iteration == stop_at:
            raise PowerCutError

    return run


def run_until_stopped(path, stop_at, **keywords):
    with pytest.raises(PowerCutError):
        make_run(path, stop_at, **keywords).trainer.run()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The states of a run that is never stopped."""
    run = make_run(tmp_path_factory.mktemp("whole") / "training.pt")
    before = run.network[0].weight.detach().clone()
    run.trainer.run()
    assert run.iterations == list(range(1, 13))
    assert not torch.equal(run.network[0].weight, before)
    return run.states()


@pytest.mark.parametrize(("stop_at", "first"), [(2, 1), (4, 1), (6, 5), (8, 5), (11, 9)])
def test_stopped_run_ends_as_if_never_stopped(tmp_path, whole, stop_at, first):
    path = tmp_path / "training.pt"
    run_until_stopped(path, stop_at)
    # A new process starts with other weights even if there is a checkpoint to resume from, which must not matter.
    again = make_run(path, start_weights=0 if first == 1 else 77)
    again.trainer.run()
    assert again.iterations == list(range(first, 13))
    assert again.trainer.state.epoch == EPOCHS
    assert_same(again.states(), whole)


def test_run_that_is_stopped_twice_ends_as_if_never_stopped(tmp_path, whole):
    run_until_stopped(tmp_path / "training.pt", 7)
    run_until_stopped(tmp_path / "training.pt", 10)
    again = make_run(tmp_path / "training.pt")
    again.trainer.run()
    assert again.iterations == [9, 10, 11, 12]
    assert_same(again.states(), whole)


def test_finished_run_has_nothing_left_to_do(tmp_path, whole):
    make_run(tmp_path / "training.pt").trainer.run()
    again = make_run(tmp_path / "training.pt", start_weights=77)
    again.trainer.run()
    assert again.iterations == []
    assert_same(again.states(), whole)


def test_finished_run_continues_for_more_epochs(tmp_path, whole):
    make_run(tmp_path / "training.pt", epochs=2).trainer.run()
    again = make_run(tmp_path / "training.pt")
    again.trainer.run()
    assert again.iterations == [9, 10, 11, 12]
    assert_same(again.states(), whole)


@pytest.mark.parametrize(("stop_at", "first"), [(7, 1), (12, 9)])
def test_run_resumes_from_the_last_saved_epoch(tmp_path, whole, stop_at, first):
    run_until_stopped(tmp_path / "training.pt", stop_at, interval=2)
    again = make_run(tmp_path / "training.pt", interval=2)
    again.trainer.run()
    assert again.iterations == list(range(first, 13))
    assert_same(again.states(), whole)


def test_run_without_resume_starts_from_scratch_and_overwrites(tmp_path, whole):
    path = tmp_path / "training.pt"
    run_until_stopped(path, 6)
    again = make_run(path, resume=False)
    again.trainer.run()
    assert again.iterations == list(range(1, 13))
    assert_same(again.states(), whole)
    assert torch.load(path, weights_only=True)["iteration"] == 12


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1, "image_size": [8, 8]}, "seed was 0, now it is 1"),
        ({"seed": 0, "image_size": [8, 16]}, r"image_size was \[8, 8\], now it is \[8, 16\]"),
        ({"seed": 0, "image_size": [8, 8], "data": "abc"}, 'data was not set, now it is "abc"'),
        ({"seed": 0}, r"image_size was \[8, 8\], now it is not set"),
    ],
)
def test_checkpoint_of_other_settings_is_refused_by_name(tmp_path, changed, message):
    run_until_stopped(tmp_path / "training.pt", 6)
    again = make_run(tmp_path / "training.pt", settings=changed)
    before = again.network[0].weight.detach().clone()
    with pytest.raises(CheckpointError, match=rf"training\.pt belongs to another run: {message}.*--resume false"):
        again.trainer.run()
    assert again.iterations == []
    assert torch.equal(again.network[0].weight, before)


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage",
    [
        cut_in_half,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("not a checkpoint"),
        lambda path: torch.save(nn.Linear(1, 1).state_dict(), path),
        lambda path: torch.save([1, 2, 3], path),
    ],
    ids=["cut off", "empty", "text", "weights only", "list"],
)
def test_damaged_checkpoint_is_refused_by_path(tmp_path, damage):
    path = tmp_path / "training.pt"
    run_until_stopped(path, 6)
    damage(path)
    again = make_run(path)
    with pytest.raises(CheckpointError, match=r"(?s)training\.pt cannot be read.*delete .*training\.pt"):
        again.trainer.run()
    assert again.iterations == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(flipped(path.read_bytes())),
    ],
    ids=["gone", "cut off", "one bit"],
)
def test_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(tmp_path, damage, whole, caplog):
    path = tmp_path / "training.pt"
    run_until_stopped(path, 10)  # checkpoints of steps 4 and 8
    damage(path)
    again = make_run(path, start_weights=1)
    with caplog.at_level("WARNING"):
        again.trainer.run()
    assert again.iterations[0] == 5
    assert_same(again.states(), whole)
    assert "training.pt cannot be read" in caplog.text
    assert "resuming from training.previous.pt" in caplog.text


def test_checkpoint_of_an_earlier_run_is_not_resumed_from(tmp_path):
    path = tmp_path / "training.pt"
    make_run(path).trainer.run()
    with pytest.raises(PowerCutError):
        make_run(path, stop_at=6, resume=False).trainer.run()
    path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"training\.pt cannot be read"):
        make_run(path).trainer.run()


def flipped(content):
    """Flip a bit of the weights, which reading alone does not detect."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_flipped_bit_of_the_only_checkpoint_is_refused(tmp_path):
    path = tmp_path / "training.pt"
    run_until_stopped(path, 6)
    path.write_bytes(flipped(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"training\.pt cannot be read"):
        make_run(path).trainer.run()


def shift(engine, run, number):
    """Change the saved values, as nondeterministic kernels do."""
    with torch.no_grad():
        run.network[0].bias += number


@pytest.mark.parametrize("target", ["training.sha256", "training.previous.pt", "training.pt"])
def test_kill_between_the_steps_of_saving_leaves_a_checkpoint(tmp_path, target, whole, monkeypatch):
    path = tmp_path / "training.pt"
    run_until_stopped(path, 6)  # one checkpoint, of step 4
    replace = os.replace

    def killed_before(source, destination):
        if Path(destination).name == target:
            raise PowerCutError
        return replace(source, destination)

    monkeypatch.setattr("os.replace", killed_before)
    for number in (1.0, 2.0, 3.0, 4.0):  # each is killed at the same place, with another checksum to record
        killed = make_run(path)
        killed.trainer.add_event_handler(Events.ITERATION_COMPLETED, shift, killed, number)
        with pytest.raises(PowerCutError):
            killed.trainer.run()
    monkeypatch.undo()
    again = make_run(path, start_weights=1)
    again.trainer.run()
    assert again.iterations[0] == 5
    assert_same(again.states(), whole)


def test_checkpoint_of_another_network_is_refused_by_path(tmp_path):
    run_until_stopped(tmp_path / "training.pt", 6)
    with pytest.raises(CheckpointError, match=r"training\.pt does not fit"):
        make_run(tmp_path / "training.pt", width=3).trainer.run()


def test_kill_while_saving_leaves_the_checkpoint_before(tmp_path, whole, monkeypatch):
    path, save, written = tmp_path / "training.pt", torch.save, []

    def save_until_the_disk_is_full(state, target):
        written.append(state["iteration"])
        if state["iteration"] == 8:
            target.write(b"half of it")
            raise OSError(28, "No space left on device")
        save(state, target)

    monkeypatch.setattr(torch, "save", save_until_the_disk_is_full)
    with pytest.raises(OSError, match="No space left"):
        make_run(path).trainer.run()
    monkeypatch.undo()
    assert written == [4, 8]
    assert {file.name for file in tmp_path.iterdir()} == {"training.pt", "training.sha256"}
    again = make_run(path)
    again.trainer.run()
    assert again.iterations[0] == 5
    assert_same(again.states(), whole)


def make_evaluator(best):
    """Return an engine whose metric is the value that it is run on."""
    evaluator = Engine(lambda engine, value: engine.state.metrics.update(val_loss=value))
    best.attach(evaluator)
    return evaluator


def weights_after(best, network, path, value):
    """Set the weight to the value, validate with this value as metric, and read the file."""
    nn.init.constant_(network.weight, value)
    make_evaluator(best).run([value], max_epochs=1)
    return load_weights(nn.Linear(1, 1, bias=False), path).weight.item()


def test_best_weights_are_those_of_the_smallest_metric(tmp_path):
    path, network = tmp_path / "best.pt", nn.Linear(1, 1, bias=False)
    best = BestWeights(path, network)
    assert [weights_after(best, network, path, value) for value in (5.0, 7.0, 3.0, 3.5, 2.0)] == [5, 5, 3, 3, 2]


def test_best_weights_survive_restarts(tmp_path):
    path, network = tmp_path / "best.pt", nn.Linear(1, 1, bias=False)
    first = BestWeights(path, network)
    assert weights_after(first, network, path, 3.0) == 3.0
    second = BestWeights(path, network)
    second.load_state_dict(first.state_dict())
    assert [weights_after(second, network, path, value) for value in (4.0, 2.5)] == [3.0, 2.5]


def test_metric_that_is_not_a_number_is_not_the_best(tmp_path):
    path, network = tmp_path / "best.pt", nn.Linear(1, 1, bias=False)
    best = BestWeights(path, network)
    assert weights_after(best, network, path, 3.0) == 3.0
    assert weights_after(best, network, path, float("nan")) == 3.0
    assert weights_after(best, network, path, 1.0) == 1.0


def test_best_value_goes_through_a_training_checkpoint(tmp_path):
    path, network = tmp_path / "training.pt", nn.Linear(1, 1)
    best = BestWeights(tmp_path / "best.pt", network)
    make_evaluator(best).run([0.25], max_epochs=1)
    trainer = Engine(lambda engine, batch: None)
    TrainingCheckpoint(path, {"best": best}, StreamSampler(1)).attach(trainer)
    trainer.run([0], max_epochs=1)
    other = BestWeights(tmp_path / "best.pt", network)
    TrainingCheckpoint(path, {"best": other}, StreamSampler(1)).load(Engine(lambda engine, batch: None))
    assert other.best == 0.25


def validate(best, epoch, loss):
    engine = Engine(lambda *_: None)
    engine.state.metrics, engine.state.epoch = {"val_loss": loss}, epoch
    best(engine)


def test_latest_weights_count_in_the_adversarial_phase_though_their_loss_is_higher(tmp_path):
    network = torch.nn.Linear(1, 1)
    best = BestWeights(tmp_path / "best.pt", network, latest_from=3)
    saved = []
    for epoch, loss in enumerate((0.2, 0.1, 0.4, 0.5, float("nan")), start=1):
        torch.nn.init.constant_(network.weight, float(epoch))
        validate(best, epoch, loss)
        saved.append(torch.load(tmp_path / "best.pt", weights_only=True)["weight"].item())
    assert saved == [1.0, 2.0, 3.0, 4.0, 4.0]


def test_best_value_without_its_weights_is_forgotten(tmp_path):
    best = BestWeights(tmp_path / "best.pt", torch.nn.Linear(1, 1))
    validate(best, 1, 0.1)
    (tmp_path / "best.pt").unlink()
    again = BestWeights(tmp_path / "best.pt", torch.nn.Linear(1, 1))
    again.load_state_dict(best.state_dict())
    validate(again, 2, 0.9)
    assert (tmp_path / "best.pt").is_file()


def restored(path, batch_size, world_size=1):
    sampler, engine = StreamSampler(batch_size, 0, world_size), Engine(lambda *_: None)
    TrainingCheckpoint(path, {}, sampler).load(engine)
    return engine.state.iteration


def saved(path, batch_size, world_size=1):
    trainer = Engine(lambda engine, batch: None)
    TrainingCheckpoint(path, {}, StreamSampler(batch_size, 0, world_size)).attach(trainer)
    trainer.run([0] * 3, max_epochs=1)
    return path


def test_run_resumes_with_other_processes_if_a_step_has_as_many_images(tmp_path):
    path = saved(tmp_path / "training.pt", 4, world_size=2)
    assert restored(path, 8) == restored(path, 2, world_size=4) == 3


@pytest.mark.parametrize(("batch_size", "world_size"), [(4, 1), (8, 2)])
def test_checkpoint_of_steps_of_other_sizes_is_refused(batch_size, world_size, tmp_path):
    path = saved(tmp_path / "training.pt", 4, world_size=2)
    with pytest.raises(CheckpointError, match=r"steps of 8 images, now they have \d+: choose .* whose product is 8"):
        restored(path, batch_size, world_size)


def test_setting_that_may_change_is_logged_and_resumed_with(tmp_path, caplog):
    path = tmp_path / "training.pt"
    make_run(path, epochs=1, changeable={"lr": 1.0e-3, "precision": "float32"}).trainer.run()
    again = make_run(path, changeable={"lr": 5.0e-4, "precision": "float32"})
    with caplog.at_level("INFO"):
        again.trainer.run()
    assert "training: lr was 0.001, now it is 0.0005" in caplog.text
    assert "precision" not in caplog.text
    other = make_run(path, settings={**SETTINGS, "seed": 5}, changeable={"lr": 5.0e-4, "precision": "float32"})
    with pytest.raises(CheckpointError, match=r"seed was 0, now it is 5\. Only lr, precision may change; to start"):
        other.trainer.run()


def test_nested_setting_is_named_by_its_path(tmp_path):
    path = tmp_path / "training.pt"
    make_run(path, epochs=1, settings={"loss": {"type": "L", "kl_weight": 1.0e-6}}).trainer.run()
    again = make_run(path, settings={"loss": {"type": "L", "kl_weight": 1.0e-3}})
    with pytest.raises(CheckpointError, match=r"another run: loss\.kl_weight was 1e-06, now it is 0\.001; to start"):
        again.trainer.run()


def test_first_process_saves_and_all_load(tmp_path, two_processes):
    path = tmp_path / "training.pt"

    def train(rank):
        run = make_run(path if rank == 0 else tmp_path / "none.pt", epochs=1, resume=False)
        run.trainer.run()
        gather(rank)  # the file exists before either looks for it
        again = make_run(path, start_weights=77)
        again.trainer.run()
        return again.iterations

    assert two_processes(train) == [list(range(5, 13))] * 2
    files = {"training.pt", "training.previous.pt", "training.sha256"}
    assert {file.name for file in tmp_path.iterdir()} == files


def test_processes_that_see_different_checkpoints_are_stopped(tmp_path, two_processes):
    saved(tmp_path / "0.pt", 4)

    def load(rank):
        TrainingCheckpoint(tmp_path / f"{rank}.pt", {}, StreamSampler(4)).load(Engine(lambda *_: None))

    for error in two_processes(load):
        assert isinstance(error, CheckpointError)
        assert "steps [3, 0]): set ckpt_dir to a folder that all hosts share" in str(error)


def test_best_weights_are_written_by_the_first_process(tmp_path, two_processes):
    two_processes(lambda rank: validate(BestWeights(tmp_path / f"{rank}.pt", torch.nn.Linear(1, 1)), 1, 0.1))
    assert [file.name for file in tmp_path.iterdir()] == ["0.pt"]
