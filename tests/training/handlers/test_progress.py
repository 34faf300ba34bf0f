from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events

from medfusion_monai.training.handlers import progress
from medfusion_monai.training.handlers.progress import ProgressBar


def make_trainer(losses, batch_size=8):
    """Return an engine whose loss is the batch, its bar, and the text of the bar after each iteration."""
    trainer = Engine(lambda engine, loss: [{"loss": torch.tensor(loss)}])
    bar, shown = ProgressBar("phase", batch_size), []
    bar.attach(trainer)

    @trainer.on(Events.ITERATION_COMPLETED)
    def look(engine):
        shown.append((bar.bar.n, bar.bar.total, bar.bar.postfix))

    return trainer, bar, shown


def test_bar_counts_images_of_the_whole_training():
    trainer, bar, shown = make_trainer([1.0])
    trainer.run([1.0, 1.0, 1.0], max_epochs=2)
    assert [(count, total) for count, total, _ in shown] == [(8 * k, 48) for k in range(1, 7)]
    assert bar.bar is None


def test_bar_of_a_resumed_run_starts_where_it_was_stopped():
    trainer, _, shown = make_trainer([1.0])

    @trainer.on(Events.STARTED)
    def go_on(engine):
        engine.state.iteration, engine.state.epoch = 3, 1

    trainer.run([1.0, 1.0, 1.0], max_epochs=3)
    assert [(count, total) for count, total, _ in shown] == [(8 * k, 72) for k in range(4, 10)]


def test_bar_shows_the_mean_loss_since_the_last_update(monkeypatch):
    trainer, bar, shown = make_trainer([1.0])
    bar.interval = 30.0
    clock = iter([100.0, 100.0, 110.0, 129.0, 131.0, 131.0])  # read once per iteration, once more on an update
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    trainer.run([5.0, 1.0, 2.0, 6.0], max_epochs=1)
    texts = [text for _, _, text in shown]
    assert texts == ["loss 5.0000, step 1"] * 3 + ["loss 3.0000, step 4"]


def test_bar_is_written_to_standard_error(capsys):
    trainer, _, _ = make_trainer([1.0])
    trainer.run([1.0], max_epochs=1)
    captured = capsys.readouterr()
    assert "phase: 100%" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_bar_is_closed_and_the_exception_is_raised(error):
    trainer, bar, shown = make_trainer([1.0])

    @trainer.on(Events.ITERATION_COMPLETED(once=2))
    def fail(engine):
        raise error("stop")

    with pytest.raises(error, match="stop"):
        trainer.run([1.0, 1.0, 1.0], max_epochs=1)
    assert len(shown) == 2
    assert bar.bar is None


def test_bar_is_closed_when_training_is_ended_early():
    trainer, bar, shown = make_trainer([1.0])
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda engine: engine.terminate())
    trainer.run([1.0, 1.0, 1.0], max_epochs=1)
    assert len(shown) == 2
    assert bar.bar is None
