"""Signals: the training saves, ends with exit code 75, and resumes as if it had never stopped."""

import logging
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from torch import nn
from torch.utils.data import DataLoader

from medfusion_monai.data.training.stream import SeededDataset, StreamSampler
from medfusion_monai.training.handlers.checkpoint import BestWeights, TrainingCheckpoint
from medfusion_monai.training.handlers.ema import AveragedWeights
from medfusion_monai.training.handlers.stop_on_signal import StopOnSignal, StoppedBySignal, leave_on_signals
from medfusion_monai.training.learning_rate import warmup_decay

EPOCH_LENGTH, EPOCHS = 4, 3
ALL = [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT]


@pytest.fixture(autouse=True)
def _handlers_as_before():
    numbers = (*ALL, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def regression_batch(batch, device, non_blocking=False, **kwargs):
    return batch["image"], batch["image"].flip(-1), (), {}


def make_run(folder, start_weights=0, num_workers=0, **keywords):
    """Build all objects of a small training with validation from scratch, as a new process would."""
    torch.manual_seed(start_weights)
    network = nn.Linear(2, 2)
    images = torch.rand(7, 2, generator=torch.Generator().manual_seed(9))
    data = SeededDataset([{"image": image, "label": 0} for image in images], seed=3)
    run = SimpleNamespace(network=network, sampler=StreamSampler(2), losses=[], validations=[])
    run.optimizer = torch.optim.Adam(network.parameters(), lr=1.0e-2)
    run.lr_scheduler = warmup_decay(run.optimizer, 3, EPOCHS * EPOCH_LENGTH, "cosine")
    run.ema, run.best = AveragedWeights(network), BestWeights(folder / "best.pt", network)
    objects = {name: getattr(run, name) for name in ("network", "optimizer", "lr_scheduler", "ema", "best")}
    run.states = lambda: {name: item.state_dict() for name, item in objects.items()}
    run.evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(data, 2, num_workers=num_workers),
        network=network,
        prepare_batch=regression_batch,
        key_val_metric={"val_loss": MeanWeight(network)},
        decollate=False,
        val_handlers=[run.best, FollowValidation(run)],
    )
    run.checkpoint = TrainingCheckpoint(folder / "training.pt", objects, run.sampler, **keywords)
    run.stop = StopOnSignal(run.checkpoint, run.evaluator)
    run.trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=EPOCHS,
        epoch_length=EPOCH_LENGTH,
        train_data_loader=DataLoader(data, batch_sampler=run.sampler, num_workers=num_workers),
        network=network,
        optimizer=run.optimizer,
        loss_function=nn.MSELoss(),
        prepare_batch=regression_batch,
        decollate=False,
        train_handlers=[
            Follow(run),
            run.ema,
            LrScheduleHandler(run.lr_scheduler, print_lr=False, epoch_level=False),
            ValidationHandler(1, run.evaluator),
            run.checkpoint,
            run.stop,
        ],
    )

    def train():
        with run.stop.listening():
            run.trainer.run()

    run.train = train
    return run


class MeanWeight:
    """A metric that differs between validations."""

    def __init__(self, network):
        self.network = network

    def attach(self, engine, name):
        def compute(engine):
            engine.state.metrics[name] = self.network.weight.mean().item()

        engine.add_event_handler(Events.EPOCH_COMPLETED, compute)


class Follow:
    """Records the loss of each step, before any handler that may stop."""

    def __init__(self, run):
        self.run = run

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine):
        self.run.losses.append((engine.state.iteration, engine.state.output["loss"].item()))


class FollowValidation(Follow):
    """Records the metric of each finished validation."""

    def attach(self, engine):
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine):
        self.run.validations.append((engine.state.epoch, engine.state.metrics["val_loss"]))


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def when(engine, event, iteration, action):
    @engine.on(event)
    def act(engine):
        if engine.state.iteration == iteration:
            action()


def stopped(run):
    with pytest.raises(StoppedBySignal) as caught:
        run.train()
    assert caught.value.code == 75
    return run


def same(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return first == second


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that is never stopped."""
    run = make_run(tmp_path_factory.mktemp("whole"))
    run.train()
    return run


def assert_ends_like(whole, first, again):
    assert first.losses + again.losses == whole.losses
    assert [epoch for epoch, _ in first.validations + again.validations] == [1, 2, 3]
    assert first.validations + again.validations == whole.validations
    assert again.trainer.state.epoch == EPOCHS
    assert same(again.states(), whole.states())


@pytest.mark.parametrize("number", ALL)
@pytest.mark.parametrize("step", [1, 4, 6, 8, 11, 12])
def test_signal_saves_after_the_current_step_and_the_run_ends_as_if_never_stopped(step, number, tmp_path, whole):
    run = make_run(tmp_path)
    when(run.trainer, Events.ITERATION_STARTED, step, lambda: send(number))
    stopped(run)
    assert run.losses[-1][0] == step
    again = make_run(tmp_path, start_weights=77)
    again.train()
    assert_ends_like(whole, run, again)


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_signal_in_a_validation_leaves_it_to_the_restart(batch, tmp_path, whole):
    run = make_run(tmp_path)

    @run.evaluator.on(Events.ITERATION_STARTED)
    def signal_in_the_second(evaluator):
        if (evaluator.state.epoch, evaluator.state.iteration) == (2, batch):
            send()

    stopped(run)
    assert [epoch for epoch, _ in run.validations] == [1]
    assert run.evaluator.state.iteration == batch
    again = make_run(tmp_path, start_weights=77)
    again.train()
    assert_ends_like(whole, run, again)


def test_signal_while_an_epoch_is_saved_leaves_after_it(tmp_path, whole, monkeypatch):
    run, save = make_run(tmp_path), torch.save

    def save_slowly(state, file):
        if state.get("iteration") == 8:
            send()
        save(state, file)

    monkeypatch.setattr(torch, "save", save_slowly)
    stopped(run)
    monkeypatch.undo()
    assert run.validations == whole.validations[:2]
    again = make_run(tmp_path, start_weights=77)
    again.train()
    assert_ends_like(whole, run, again)


def test_further_signals_while_saving_change_nothing(tmp_path, whole, monkeypatch):
    run, save = make_run(tmp_path), torch.save

    def save_under_fire(state, file):
        send(signal.SIGUSR1)
        save(state, file)
        send()

    when(run.trainer, Events.ITERATION_STARTED, 6, send)
    monkeypatch.setattr(torch, "save", save_under_fire)
    stopped(run)
    monkeypatch.undo()
    again = make_run(tmp_path, start_weights=77)
    again.train()
    assert again.losses == whole.losses[4:]  # the signals began before the first checkpoint
    assert same(again.states(), whole.states())


def test_run_that_is_signalled_at_every_step_ends_as_if_never_stopped(tmp_path, whole):
    losses, validations = [], []
    for step in range(1, EPOCHS * EPOCH_LENGTH + 1):
        run = make_run(tmp_path, start_weights=step - 1)
        when(run.trainer, Events.ITERATION_STARTED, step, send)
        stopped(run)
        losses, validations = losses + run.losses, validations + run.validations
    last = make_run(tmp_path, start_weights=77)
    last.train()
    assert losses + last.losses == whole.losses
    assert validations + last.validations == whole.validations
    assert same(last.states(), whole.states())


def test_message_names_signal_step_and_what_to_do(tmp_path, capsys):
    run = make_run(tmp_path)
    when(run.trainer, Events.ITERATION_STARTED, 6, lambda: send(signal.SIGUSR1))
    stopped(run)
    words = "medfusion: stopped by SIGUSR1 after step 6: training.pt holds everything, and the same command resumes"
    assert words in capsys.readouterr().err


def test_message_of_a_run_without_resume_states_how_to_resume(tmp_path, capsys):
    run = make_run(tmp_path, resume=False)
    when(run.trainer, Events.ITERATION_STARTED, 6, send)
    stopped(run)
    assert "and this command without --resume false resumes from there" in capsys.readouterr().err


def test_ignored_signal_stays_ignored(tmp_path, whole):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    run = make_run(tmp_path)
    when(run.trainer, Events.ITERATION_STARTED, 6, lambda: send(signal.SIGHUP))
    run.train()
    assert run.losses == whole.losses
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize("in_validation", [False, True])
def test_stop_is_not_logged_as_an_error(in_validation, tmp_path, caplog):
    run = make_run(tmp_path)
    when(run.evaluator if in_validation else run.trainer, Events.ITERATION_STARTED, 2, send)
    stopped(run)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    failing = make_run(tmp_path / "other")
    when(failing.trainer, Events.ITERATION_STARTED, 2, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.train()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_handlers_of_signals_are_restored_when_training_ends(tmp_path):
    heard = []
    for number in ALL:
        signal.signal(number, lambda number, frame: heard.append(number))
    make_run(tmp_path).train()
    for number in ALL:
        send(number)
    assert heard == ALL


def test_signal_after_a_failed_training_goes_to_the_previous_handler(tmp_path):
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    run = make_run(tmp_path)
    when(run.trainer, Events.ITERATION_STARTED, 2, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.train()
    send()
    assert heard == [signal.SIGTERM]


def test_training_outside_the_main_thread_does_not_listen(tmp_path, whole):
    before = signal.getsignal(signal.SIGTERM)
    run = make_run(tmp_path)
    thread = threading.Thread(target=run.train)
    thread.start()
    thread.join()
    assert same(run.states(), whole.states())
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", ALL)
def test_signal_between_trainings_leaves_at_once(number, capsys):
    leave_on_signals()
    with pytest.raises(StoppedBySignal) as caught:
        send(number)
    assert caught.value.code == 75
    assert f"stopped by {number.name} between trainings" in capsys.readouterr().err


def test_forked_process_ends_by_sigterm_and_ignores_a_warning():
    leave_on_signals()
    child = os.fork()
    if not child:
        time.sleep(20)
        os._exit(0)
    os.kill(child, signal.SIGUSR1)
    time.sleep(0.05)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(number) for number in file.read().split()]


def test_signal_to_the_workers_as_well_does_not_end_them(tmp_path, whole):
    before, run = set(children()), make_run(tmp_path, num_workers=2)

    def signal_all():
        workers = set(children()) - before
        assert len(workers) == 2
        watcher = os.fork()  # a worker obeys this process, its parent, as PyTorch relies on; a scheduler is another
        if not watcher:
            for worker in workers:
                os.kill(worker, signal.SIGTERM)
            os._exit(0)
        os.waitpid(watcher, 0)
        time.sleep(0.1)
        assert workers <= set(children())
        send()

    when(run.trainer, Events.ITERATION_STARTED, 6, signal_all)
    stopped(run)
    again = make_run(tmp_path, num_workers=2)
    again.train()
    assert_ends_like(whole, run, again)


def test_processes_stop_after_the_same_step_whichever_is_signalled(tmp_path, two_processes, whole):
    def train(rank):
        run = make_run(tmp_path)
        when(run.trainer, Events.ITERATION_STARTED, 6, send if rank == 1 else lambda: None)
        try:
            run.train()
        except StoppedBySignal as stop:
            return run.losses[-1][0], stop.code, str(stop).split(":")[0]

    assert two_processes(train) == [(6, 75, "stopped by SIGTERM after step 6")] * 2
    again = make_run(tmp_path, start_weights=77)
    again.train()
    assert same(again.states(), whole.states())


@pytest.mark.parametrize(("rank", "batch", "ends"), [(0, 1, [1, 1]), (1, 3, [2, 4])])
def test_processes_with_other_numbers_of_batches_leave_together(rank, batch, ends, tmp_path, two_processes, whole):
    def train(own):
        run = make_run(tmp_path)
        loader = DataLoader(run.evaluator.data_loader.dataset, 2 if own else 4)
        run.evaluator.data_loader, run.evaluator.state.epoch_length = loader, len(loader)
        when(run.evaluator, Events.ITERATION_STARTED, batch, send if own == rank else lambda: None)
        try:
            run.train()
        except StoppedBySignal:
            return run.evaluator.state.iteration, run.trainer.state.iteration

    assert two_processes(train, timeout=30.0) == [(end, 4) for end in ends]
    again = make_run(tmp_path, start_weights=77)
    again.train()
    assert same(again.states(), whole.states())


def test_run_resumes_from_checkpoints_within_epochs(tmp_path, whole):
    run = make_run(tmp_path, every_steps=3)
    when(run.trainer, Events.ITERATION_STARTED, 8, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.train()
    again = make_run(tmp_path, start_weights=77, every_steps=3)
    again.train()
    assert again.losses == whole.losses[6:]
    assert again.validations == whole.validations[1:]
    assert same(again.states(), whole.states())


@pytest.mark.parametrize("steps", [0, 1.5, True, "null"])
def test_steps_between_checkpoints_that_are_not_a_number_are_refused(steps, tmp_path):
    with pytest.raises(ValueError, match="every_steps must be an integer"):
        TrainingCheckpoint(tmp_path / "training.pt", {}, StreamSampler(1), every_steps=steps)


def test_logged_values_are_on_disk_before_the_checkpoint(tmp_path):
    events = []
    writer = SimpleNamespace(flush=lambda: events.append((tmp_path / "training.pt").is_file()))
    trainer = Engine(lambda engine, batch: None)
    TrainingCheckpoint(tmp_path / "training.pt", {}, StreamSampler(1), writer=writer).attach(trainer)
    trainer.run([0], max_epochs=2)
    assert events == [False, True]
