"""Which sites of a federated run are away, and which of them are back, by what a server reports now and then."""

from __future__ import annotations

from collections.abc import Collection, Iterable

PATIENCE = 20.0
"""Seconds for which a site may not work before it counts as away: a job takes that long to start and to end."""


class Attendance:
    """Keeps how long each site has been silent, or there without working.

    Args:
        sites: names of all sites of the run.
        now: time at which the run's job begins, in seconds.
        patience: seconds.
    """

    def __init__(self, sites: Iterable[str], now: float, patience: float = PATIENCE) -> None:
        self.patience, self.now = patience, now
        self._worked = dict.fromkeys(sites, now)
        self._silent = dict(self._worked)

    def note(self, now: float, heard: Collection[str], working: Collection[str]) -> None:
        """Take down a report of the server.

        Args:
            now: its time, in seconds.
            heard: sites that are connected.
            working: those of them that work for the run's job.
        """
        self.now = now
        for site in self._worked:
            if site in working:
                self._worked[site] = now
            if site not in heard:
                self._silent[site] = now

    @property
    def away(self) -> list[str]:
        """Sites that have not worked for the job for too long: their part of the round will not come."""
        return [site for site, last in self._worked.items() if self.now - last >= self.patience]

    @property
    def back(self) -> list[str]:
        """Those of ``away`` that have been connected for as long, and could take part in a new job."""
        return [site for site in self.away if self.now - self._silent[site] >= self.patience]
