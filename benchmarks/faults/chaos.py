"""The driver: keeps service and clients alive, and sends them the faults of the schedule."""

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.faults.__main__ import ACTS
from benchmarks.faults.desk import STOP
from benchmarks.faults.processes import of_service
from benchmarks.faults.schedule import Fault, How, Target
from benchmarks.faults.served import LEASHED, Served, environment

TICK = 0.05
VICTIM_SECONDS = 3.0
"""That a process of the kind is waited for."""
CLOSING_SECONDS = 60.0
"""That clients have to end in when everything is over."""
AT_WORK_SECONDS = 5.0
SAY_SECONDS = 15.0
SECONDS_PER_KILL = 60.0
"""On average, at most: then the bench goes on with the kills that there were."""
CLIENTS: Mapping[Target, Sequence[str]] = {
    target: [name for name in ACTS if name.partition("-")[0] == target]
    for target in (Target.REQUESTER, Target.TRAINER, Target.IMPORTER, Target.FREEZER, Target.READER)
}
"""Names of the processes of each kind."""


class Client:
    """A process that is started again whenever it was killed."""

    def __init__(self, name: str, folder: Path, url: str, seed: int, pace: float) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        self.journal = folder / f"{name}.jsonl"
        told = ("--url", url, "--folder", str(folder), "--seed", str(seed), "--pace", str(pace))
        self._command = [*LEASHED, sys.executable, "-m", "benchmarks.faults", name, *told]
        self.broken: list[str] = []
        self._start()

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=environment(), start_new_session=True
            )

    def tend(self) -> None:
        code = self.process.poll()
        if code is not None:
            self._look_at(code, expected=(-signal.SIGKILL,))
            self._start()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self, give_up: float) -> None:
        """Once it was told to end; it is ended when its time is over."""
        self.process.send_signal(signal.SIGCONT)
        try:
            code = self.process.wait(max(0.0, give_up - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
        else:
            self._look_at(code, expected=(0, -signal.SIGKILL))

    def _look_at(self, code: int, expected: tuple[int, ...]) -> None:
        if code not in expected:
            tail = " | ".join(self._log.read_text(errors="replace").splitlines()[-2:])
            self.broken.append(f"client {self.name} ended with status {code}: {tail}")


class Chaos:
    """Of one service and its clients."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._clients: dict[str, Client] = {}
        self._living: list[Client] = []
        self.kills: Counter[Target] = Counter()
        """Processes that were ended, by what they are."""
        self.stops = 0
        """Processes that were made to stand still for a while."""
        self.missed: Counter[Target] = Counter()
        """Faults that met nobody."""

    @property
    def broken(self) -> list[str]:
        return self._served.broken + [line for client in self._clients.values() for line in client.broken]

    def start(self, name: str, folder: Path, seed: int, pace: float) -> None:
        """A client; `pace` is how many seconds it rests between two operations, on average."""
        self._clients[name] = client = Client(name, folder, self._served.url, seed, pace)
        self._living.append(client)

    def run(self, faults: Iterator[Fault], kills: int, say: Callable[[str], None]) -> None:
        """Until so many processes were killed. Raises NotServed."""
        said = began = time.monotonic()
        while self.kills.total() < kills and time.monotonic() < began + kills * SECONDS_PER_KILL:
            fault = next(faults)
            self._wait(fault.gap)
            if not fault.is_early:
                self.until_ready()
                self._until_at_work()
            self._deliver(fault)
            if time.monotonic() > said + SAY_SECONDS:
                said = time.monotonic()
                say(f"{self.kills.total()} of {kills} kills, {len(self.broken)} lines of what is broken so far")
        self.until_ready()

    def until_ready(self) -> None:
        """Raises NotServed."""
        while not self._served.is_ready:
            self._tick()

    def _until_at_work(self) -> None:
        """Two clients have written something since the last fault: else nothing is met but what starts."""
        before = self._written()
        give_up = time.monotonic() + AT_WORK_SECONDS
        while sum(a != b for a, b in zip(before, self._written(), strict=True)) < 2 and time.monotonic() < give_up:
            self._tick()

    def _written(self) -> list[int]:
        """Bytes of each journal."""
        return [client.journal.stat().st_size if client.journal.exists() else 0 for client in self._living]

    def close_clients(self, folder: Path) -> None:
        """They finish what they are at; none is waited for too long."""
        (folder / STOP).touch()
        give_up = time.monotonic() + CLOSING_SECONDS
        while self._living:
            self._living.pop().close(give_up)

    def close(self) -> None:
        """At once."""
        while self._living:
            self._living.pop().kill()

    def _tick(self) -> None:
        self._served.tend()
        for client in self._living:
            client.tend()
        time.sleep(TICK)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._tick()

    # ---- faults

    def _deliver(self, fault: Fault) -> None:
        send = self._victim(fault)
        if send is None or not send(signal.SIGSTOP if fault.how is How.STOP else signal.SIGKILL):
            self.missed[fault.target] += 1
        elif fault.how is How.STOP:
            self.stops += 1
            try:
                self._wait(fault.seconds)
            finally:
                send(signal.SIGCONT)
        else:
            self.kills[fault.target] += 1

    def _victim(self, fault: Fault) -> Callable[[signal.Signals], bool] | None:
        """What sends it a signal, and tells whether it was there; None if there is no such process."""
        if fault.target is Target.SERVICE:
            return self._served.end if fault.how is How.END else self._served.send
        if names := CLIENTS.get(fault.target):
            return self._to_client(self._clients[names[int(fault.pick * len(names))]])
        give_up = time.monotonic() + VICTIM_SECONDS
        while not (there := of_service(self._served.pid, fault.target)):
            if time.monotonic() > give_up:
                return None
            self._tick()
        return there[int(fault.pick * len(there))].send

    def _to_client(self, client: Client) -> Callable[[signal.Signals], bool]:
        def send(number: signal.Signals) -> bool:
            if client.process.poll() is not None:
                return False
            client.process.send_signal(number)
            return True

        return send
