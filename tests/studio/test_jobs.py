"""The queue of the studio: order, cancelling, failures."""

import gc
import threading
import weakref

import pytest

from medfusion_monai.studio.jobs import JobQueue, QueueFullError

SOON = 20.0
"""Seconds that nothing here needs."""


@pytest.fixture
def queue():
    queue = JobQueue(most_waiting=2)
    yield queue
    queue.close()


@pytest.fixture
def held(queue):
    """A job that runs until its event is set."""
    started, release = threading.Event(), threading.Event()

    def work(job):
        started.set()
        release.wait(SOON)

    job = queue.submit("held", work)
    assert started.wait(SOON)
    yield release
    release.set()
    assert job.wait(SOON)


def test_jobs_run_one_after_the_other_in_the_order_in_which_they_came(queue, held):
    order, jobs = [], []
    for name in ("first", "second"):
        jobs.append(queue.submit(name, lambda job: order.append((job.title, jobs[0].is_over))))
    assert [queue.place(job) for job in jobs] == [1, 2]
    held.set()
    assert all(job.wait(SOON) for job in jobs)
    assert order == [("first", False), ("second", True)]


def test_a_job_that_waits_is_cancelled_at_once_and_never_runs(queue, held):
    ran = []
    job, other = queue.submit("waiting", ran.append), queue.submit("other", lambda job: None)
    job.cancel()
    assert (job.state, job.is_over, queue.place(other)) == ("cancelled", True, 1)
    held.set()
    assert other.wait(SOON)
    assert not ran


def test_a_job_that_runs_is_cancelled_at_its_next_step_and_keeps_its_pictures(queue):
    reached, go = threading.Event(), threading.Event()

    def work(job):
        job.step()
        job.add("picture")
        reached.set()
        assert go.wait(SOON)
        job.step()
        job.add("never")

    job = queue.submit("sampling", work)
    assert reached.wait(SOON)
    job.cancel()
    go.set()
    assert job.wait(SOON)
    assert (job.state, job.pictures, job.error) == ("cancelled", ["picture"], None)


@pytest.mark.parametrize("error", [ValueError("strength must be above 0"), RuntimeError("broken"), KeyError("gone")])
def test_a_job_that_fails_says_why_and_the_next_one_runs(queue, error):
    def work(job):
        raise error

    failing, next_one = queue.submit("failing", work), queue.submit("next", lambda job: 42)
    assert failing.wait(SOON)
    assert next_one.wait(SOON)
    assert (failing.state, failing.error) == ("failed", str(error))
    assert (next_one.state, next_one.value) == ("done", 42)


def test_more_jobs_than_may_wait_are_refused_until_one_is_cancelled(queue, held):
    jobs = [queue.submit(str(number), lambda job: None) for number in range(2)]
    with pytest.raises(QueueFullError, match="2 jobs are waiting: try again"):
        queue.submit("too many", lambda job: None)
    jobs[0].cancel()
    assert queue.submit("fits", lambda job: None).title == "fits"


def test_progress_counts_steps_and_reaches_one_only_when_the_job_is_done(queue):
    seen = []

    def work(job):
        job.expect(4)
        for _ in range(6):  # more than expected
            seen.append((job.progress, job.seconds_left is None))
            job.step()

    job = queue.submit("steps", work)
    assert job.wait(SOON)
    assert [progress for progress, _ in seen] == [0.0, 0.25, 0.5, 0.75, 0.99, 0.99]
    assert [unknown for _, unknown in seen] == [True, True, False, False, False, False]
    assert (job.progress, job.seconds_left) == (1.0, None)


def test_a_queue_that_closes_cancels_what_waits_and_what_runs():
    queue, started = JobQueue(most_waiting=1), threading.Event()

    def work(job):
        started.set()
        while True:
            job.step()

    running, waiting = queue.submit("running", work), None
    assert started.wait(SOON)
    waiting = queue.submit("waiting", work)
    queue.close()
    assert (running.state, waiting.state) == ("cancelled", "cancelled")
    with pytest.raises(QueueFullError, match="the studio ends"):
        queue.submit("late", work)


def test_a_job_that_is_over_no_longer_holds_the_images_of_its_request(queue):
    class Upload:
        pass

    upload = Upload()
    gone = weakref.ref(upload)
    job = queue.submit("edit", lambda job, upload=upload: None)
    assert job.wait(SOON)
    queue.submit("next", lambda job: None).wait(SOON)  # the thread has let go of the first
    del upload
    gc.collect()
    assert gone() is None
