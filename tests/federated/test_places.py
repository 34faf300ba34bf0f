"""What the example does with a job on a FLARE server, told by a session that plays the server's part."""

import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("nvflare", reason="make test-federated installs it")
pytestmark = pytest.mark.slow

SITES = ["north", "south", "west"]
JOB = "job"


@pytest.fixture
def places(monkeypatch):
    """The module of the example."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples" / "federated"))
    yield import_module("places")
    sys.modules.pop("places")


class Play:
    """A server and its clock: at each of the seconds of a plan, something of it changes.

    Args:
        plan: changes of ``connected``, ``working``, ``status``, ``rounds`` or ``answers`` by second.
    """

    def __init__(self, plan):
        self.plan, self.now = plan, 0.0
        self.state = {"connected": SITES, "working": SITES, "status": "RUNNING", "rounds": 0, "answers": True}
        self.told, self.aborted = [], []

    def time(self):
        return self.now

    def sleep(self, seconds):
        for second in range(int(self.now) + 1, int(self.now + seconds) + 1):
            self.state |= self.plan.get(second, {})
        self.now += seconds
        assert self.now < 1000, "it waits for ever"

    def rounds(self):
        return self.state["rounds"]

    def _answer(self, value):
        if not self.state["answers"]:
            raise import_module("places").NoConnection("late")
        return value

    def get_job_status(self, number):
        return self._answer("FINISHED:ABORTED" if self.aborted else self.state["status"])

    def get_connected_client_list(self):
        return [
            SimpleNamespace(name=name, last_connect_time=self.now) for name in self._answer(self.state["connected"])
        ]

    def get_client_job_status(self, sites):
        working = self._answer(self.state["working"])
        return [{"client_name": name, **({"job_id": JOB} if name in working else {})} for name in sites]

    def do_command(self, words):
        self.told.append((self.now, words))

    def abort_job(self, number):
        self.aborted.append(self.now)


@pytest.fixture
def follow(places, monkeypatch):
    """Return what is left of a play after its job has been followed to its end."""

    def run(plan, total=10):
        play = Play(plan)
        monkeypatch.setattr(places, "time", play)
        server = places.Server.__new__(places.Server)
        server.sites = SITES
        places.Watch(server, play, JOB).until_the_end(play.rounds, total)
        return play

    return run


def test_job_that_ends_after_its_last_round_is_left_alone(follow):
    play = follow({30: {"rounds": 5}, 60: {"rounds": 10}, 66: {"status": "FINISHED:COMPLETED"}})
    assert (play.told, play.aborted) == ([], [])


def test_server_is_told_once_of_a_site_that_is_gone(follow):
    plan = {30: {"connected": SITES[:2], "working": SITES[:2]}, 120: {"rounds": 10}}
    play = follow(plan)
    [(when, words)] = play.told
    assert words == f"dead west {JOB}"
    assert 45 <= when <= 60
    assert play.aborted == [120.0], "FLARE would wait for the outcome of the site that is gone"


def test_job_ends_for_a_site_that_is_back_once_a_round_is_kept(follow):
    plan = {30: {"connected": SITES[:2], "working": SITES[:2]}, 60: {"rounds": 3}, 90: {"connected": SITES}}
    play = follow({**plan, 160: {"rounds": 4}, 300: {"rounds": 5}})
    [when] = play.aborted
    assert 160 <= when < 166, "neither before, when work would be lost, nor a round later"


def test_site_that_was_started_again_in_silence_is_told_and_taken_in(follow):
    play = follow({30: {"working": SITES[:2]}, 100: {"rounds": 1}})
    assert [words for _, words in play.told] == [f"dead west {JOB}"]
    assert len(play.aborted) == 1


def test_answers_that_are_late_do_not_end_the_run(follow):
    plan = {30: {"answers": False}, 50: {"answers": True}, 60: {"rounds": 10, "status": "FINISHED:COMPLETED"}}
    assert follow(plan).aborted == []


def test_server_that_is_gone_ends_the_run(follow, places):
    with pytest.raises(places.NoConnection):
        follow({30: {"answers": False}})


def test_job_that_ends_early_is_reported_with_the_sites_that_were_gone(follow):
    plan = {30: {"working": SITES[:2]}, 70: {"status": "FINISHED:EXECUTION_EXCEPTION"}}
    with pytest.raises(RuntimeError, match="ended with EXECUTION_EXCEPTION, and west had dropped out"):
        follow(plan)


def test_time_before_a_job_runs_does_not_count_as_absence(follow):
    plan = {1: {"status": "SUBMITTED", "working": []}, 90: {"status": "RUNNING"}, 95: {"working": SITES}}
    assert follow({**plan, 120: {"rounds": 10, "status": "FINISHED:COMPLETED"}}).told == []
