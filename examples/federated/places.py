"""Where FLARE's jobs run: in its simulator, or on a server with sites on their own machines."""

import json
import os
import shutil
import time
from contextlib import closing

from nvflare.fuel.flare_api.api_spec import NoConnection, SessionClosed
from nvflare.fuel.flare_api.flare_api import new_secure_session
from nvflare.recipe import ProdEnv, SimEnv

from medfusion_monai.sites.attendance import Attendance
from medfusion_monai.sites.site_file import FOLDER

POLL = 3.0
SILENT = 30.0
"""Seconds without a heartbeat, which sites send every ten, after which a site is not connected."""
NO_ANSWER = 30.0
"""Seconds after which a server that does not answer is given up."""
ENDING = 60.0
"""Seconds for sites to connect where fewer are enough, and for a job to end by itself after its last round."""


class Simulator:
    """FLARE's simulator, with a process per site on this machine.

    Args:
        sites: their names.
        site_files: folder of their files.
        workspace: folder for all that FLARE writes.
    """

    def __init__(self, sites, site_files, workspace):
        self.sites, self.site_files, self.workspace = sites, site_files, workspace

    def run(self, job, finished, total):
        """Run a job to its end; see ``Server.run``."""
        os.environ[FOLDER] = str(self.site_files.resolve())
        shutil.rmtree(self.workspace / job.name, ignore_errors=True)
        place = SimEnv(clients=self.sites, num_threads=len(self.sites), workspace_root=str(self.workspace.resolve()))
        place.deploy(job)
        if finished() < total:
            raise RuntimeError(f"the simulator ended after {finished()} of {total} rounds")


class Server:
    """A FLARE server on this machine, and the sites that are connected to it.

    A site that drops out does not stop a job as long as enough of them are left, but no job takes in a site that comes
    back: the job is ended after the round in which one does, for the next to begin with it.

    Args:
        kit: startup kit of the server's administrator.
        sites: names of the sites.
        least: number of sites without which no round ends.
        run_name: beginning of the names of all jobs of the run.
    """

    def __init__(self, kit, sites, least, run_name):
        self.kit, self.sites, self.least, self.run_name = kit, sites, least, run_name
        place = kit / "startup" / "fed_admin.json"
        try:
            self.username = json.loads(place.read_text(encoding="utf-8"))["admin"]["username"]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"--server {kit} is not the startup kit of an administrator ({error}): `nvflare provision` makes one"
            ) from error

    def run(self, job, finished, total):
        """Run a job, or the rest of the one that an earlier command has submitted, until it has ended.

        Args:
            job: for the rounds that are left.
            finished: returns the number of rounds that the server has kept.
            total: number of rounds of the phase.

        Raises:
            RuntimeError: if the job ended too early, or the server does not answer.
        """
        try:
            with closing(new_secure_session(self.username, str(self.kit))) as session:
                number = self._unfinished(session, job.name)
                if number is None:
                    self._wait_for_sites(session)
                    number = ProdEnv(str(self.kit), username=self.username).deploy(job)
                try:
                    Watch(self, session, number).until_the_end(finished, total)
                except KeyboardInterrupt:
                    session.abort_job(number)
                    raise
        except (NoConnection, SessionClosed) as error:
            raise RuntimeError(f"the FLARE server of {self.kit} does not answer: {error}") from error

    def connected(self, session):
        """Return the names of the sites that are there."""
        now = time.time()
        heard = {
            client.name for client in session.get_connected_client_list() if now - client.last_connect_time < SILENT
        }
        return [site for site in self.sites if site in heard]

    def working(self, session, sites, jobs):
        """Return the names of those sites that work for one of some jobs."""
        replies = (session.get_client_job_status(sites) if sites else None) or []
        return [reply["client_name"] for reply in replies if reply.get("job_id") in jobs]

    def _unfinished(self, session, name):
        running = {job.job_id for job in session.get_system_info().job_info}
        left = [  # a server that was killed still lists its job as running when it is started again
            job
            for job in session.list_jobs(name_prefix=name)
            if job["job_id"] in running or job["status"] in ("SUBMITTED", "APPROVED")
        ]
        return left[-1]["job_id"] if left else None

    def _wait_for_sites(self, session):
        """Return when all sites are there and free of earlier jobs of this run, or enough of them after a while."""
        ours = [job["job_id"] for job in session.list_jobs(name_prefix=self.run_name)]
        begun, before = time.time(), None
        while True:
            there = self.connected(session)
            busy = self.working(session, there, ours)
            ready = [site for site in there if site not in busy]
            missing = [site for site in self.sites if site not in ready]
            enough = len(ready) >= self.least and not busy and time.time() - begun > ENDING
            if not missing or enough:
                return
            if missing != before:
                print(f"waiting for {', '.join(missing)}", flush=True)
            before = missing
            time.sleep(POLL)


class Watch:
    """Follows a job on a server: reports rounds, tells the server of lost sites, and ends it for those that are back.

    Args:
        server: of the job.
        session: with it.
        number: of the job.
    """

    def __init__(self, server, session, number):
        self.server, self.session, self.number = server, session, number
        self.attendance, self.away = Attendance(server.sites, time.time()), []
        self.running = False

    def until_the_end(self, finished, total):
        """Return when the job has ended; see ``Server.run``."""
        done, since, ended = finished(), time.time(), False
        answered = time.time()
        while True:
            time.sleep(POLL)
            before, done = done, finished()
            if done > before:
                print(f"{done} of {total} rounds", flush=True)
                since = time.time()
            try:
                status = self.session.get_job_status(self.number)
                answered = time.time()
                if status.startswith("FINISHED"):
                    break
                if status == "RUNNING":
                    self._note()
            except NoConnection:  # also where a site does not answer the server
                if time.time() - answered > NO_ANSWER:
                    raise
                continue
            takes_in = done > before and self.attendance.back and done < total
            hangs = done >= total and (self.away or time.time() - since > ENDING)
            if (takes_in or hangs) and not ended:
                self.session.abort_job(self.number)
                ended = True
        if done < total and not ended:
            lost = f", and {', '.join(self.away)} had dropped out" if self.away else ""
            raise RuntimeError(f"FLARE's job {self.number} ended with {status.removeprefix('FINISHED:')}{lost}")

    def _note(self):
        """Take down which sites work, and tell the server of those that will not answer."""
        if not self.running:
            self.running, self.attendance = True, Attendance(self.server.sites, time.time())
        there = self.server.connected(self.session)
        self.attendance.note(time.time(), there, self.server.working(self.session, there, [self.number]))
        for site in self.attendance.away:
            if site not in self.away:
                print(f"{site} has dropped out", flush=True)
                # FLARE waits ten minutes for heartbeats, and for ever for a site that was started again meanwhile.
                self.session.do_command(f"dead {site} {self.number}")
        self.away = self.attendance.away
