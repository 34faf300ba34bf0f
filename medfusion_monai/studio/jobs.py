"""One job at a time, in the order in which they came.

The model belongs to the thread of the queue: everything that uses it is a job. ``tasks`` makes them::

    JobQueue.submit(title, work) -> Job     # work(job) runs in the thread; raises QueueFullError
    JobQueue.place(job) -> int              # jobs before it; 0 once it runs
    Job.state, is_over, progress, seconds_left, pictures, value, error
    Job.cancel(), Job.wait(timeout)
    Job.expect(steps), Job.step(), Job.add(picture)     # for work

A queue refers only to jobs that are not over: images are kept as long as whoever submitted a job keeps it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from medfusion_monai.runtime.errors import short_message
from medfusion_monai.studio.picture import Picture

logger = logging.getLogger(__name__)

State = Literal["waiting", "running", "done", "cancelled", "failed"]
SOON = 0.99
"""Progress of a job whose steps are done while it still works, for estimates of their number may be too low."""


class QueueFullError(ValueError):
    """As many jobs wait as the limits allow."""


class JobCancelledError(Exception):
    """Ends the work of a job that was cancelled."""


class Job:
    """Work that waits, runs, or is over. All attributes may be read from any thread.

    Args:
        title: for people.
        work: called with the job, in the thread of the queue; what it returns becomes ``value``.
    """

    def __init__(self, title: str, work: Callable[[Job], Any]) -> None:
        self.title = title
        self.state: State = "waiting"
        self.pictures: list[Picture] = []
        self.value: Any = None
        self.error: str | None = None
        self._work: Callable[[Job], Any] | None = work
        self._expected, self._steps, self._started = 1, 0, 0.0
        self._cancelled, self._over, self._lock = threading.Event(), threading.Event(), threading.Lock()

    @property
    def is_over(self) -> bool:
        """Whether it is done, cancelled or failed."""
        return self._over.is_set()

    @property
    def progress(self) -> float:
        """Share of its steps that are taken, in [0, 1]; 1 only once it is done."""
        return 1.0 if self.state == "done" else min(SOON, self._steps / self._expected)

    @property
    def seconds_left(self) -> float | None:
        """Estimate by the time of the steps so far; None before the first two and once it is over."""
        if self.state != "running" or self._steps < 2:
            return None
        return (time.monotonic() - self._started) * (1.0 - self.progress) / self.progress

    def cancel(self) -> None:
        """End it: at once if it waits, or else at its next step. Pictures that are finished stay."""
        self._cancelled.set()
        if self._leaves_waiting("cancelled"):
            self._over.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether it was asked to end."""
        return self._cancelled.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is over, at most ``timeout`` seconds, and return whether it is."""
        return self._over.wait(timeout)

    def expect(self, steps: int) -> None:
        """Set the number of steps that its work takes; more are no error."""
        self._expected = max(1, steps)

    def step(self, *_: Any) -> None:
        """Count a step; called before each, also as a hook of a network.

        Raises:
            JobCancelledError: if the job was cancelled.
        """
        if self.is_cancelled:
            raise JobCancelledError
        self._steps += 1

    def add(self, picture: Picture) -> None:
        """Add a finished picture."""
        self.pictures.append(picture)

    def run(self) -> None:
        """Do its work unless it was cancelled, and note how that ended; called by the queue."""
        work = self._work
        if not self._leaves_waiting("running") or work is None:
            return
        self._started = time.monotonic()
        try:
            self.value = work(self)
            self.state = "done"
        except JobCancelledError:
            self.state = "cancelled"
        except ValueError as error:
            self.error, self.state = short_message(error), "failed"
        except Exception as error:  # whatever it is, the next job must run
            logger.exception("job %s failed", self.title)
            self.error, self.state = short_message(error) or type(error).__name__, "failed"
        finally:
            self._over.set()

    def _leaves_waiting(self, state: State) -> bool:
        """Take another state if it waits, and return whether it did."""
        with self._lock:
            if self.state != "waiting":
                return False
            self.state = state
            self._work = None  # which refers to the images of a request
            return True


class JobQueue:
    """Runs jobs one after the other in a thread of its own.

    Args:
        most_waiting: jobs that may wait while another runs.
    """

    def __init__(self, most_waiting: int) -> None:
        self.most_waiting = most_waiting
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="medfusion-studio", daemon=True)
        self._thread.start()

    def submit(self, title: str, work: Callable[[Job], Any]) -> Job:
        """Append a job.

        Raises:
            QueueFullError: if too many wait, or the queue is closed.
        """
        job = Job(title, work)
        with self._changed:
            if self._closed:
                raise QueueFullError("the studio ends and takes no more jobs")
            if len(self._open()) >= self.most_waiting + (self._running is None):
                raise QueueFullError(f"{len(self._waiting)} jobs are waiting: try again when some of them are done")
            self._waiting.append(job)
            self._changed.notify()
        return job

    def place(self, job: Job) -> int:
        """Return how many jobs, with the one that runs, come before a job; 0 if it runs or is over."""
        with self._changed:
            ahead = self._open()
            return ahead.index(job) + (self._running is not None) if job in ahead else 0

    def close(self) -> None:
        """Cancel all jobs and wait for the one that runs to end."""
        with self._changed:
            self._closed = True
            for job in (*self._waiting, *([self._running] if self._running else [])):
                job.cancel()
            self._changed.notify()
        self._thread.join()

    def _open(self) -> list[Job]:
        return [job for job in self._waiting if not job.is_over]

    def _run(self) -> None:
        while (job := self._next()) is not None:
            job.run()

    def _next(self) -> Job | None:
        """Return the next job, waiting for one; None once the queue is closed and empty."""
        with self._changed:
            self._running = None
            while not self._waiting and not self._closed:
                self._changed.wait()
            self._running = self._waiting.popleft() if self._waiting else None
            return self._running
