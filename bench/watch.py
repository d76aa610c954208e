#!/usr/bin/python3
"""Runs one thing and appends what it has used to a CSV file, as one line.

    watch.py OUT CONDITIONS client COMMAND...     a program that talks to HubSpot and to PostgreSQL
    watch.py OUT CONDITIONS worker TYPE MODE      a run of hubspot_sync, whose worker does both

CONDITIONS is `name=value,name=value`, taken over into the line. A client says "backend PID" and "done RECORDS" on
its standard output and leaves when its standard input ends; its figures are those of its process and its backend
together. A worker is requested by psql, which looks again and again whether everybody can see its end; the time is that
from psql's start until it says so, as for a client. A worker whose log claims less, or that goes on writing after its
end, is no measurement. SIMULATOR_URL, SIMULATOR_PID and PSQL are in the environment, and libpq's variables.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

COLUMNS = [
    "work", "contacts", "properties", "changes", "latency_ms", "limits", "row", "repetition",
    "seconds", "records", "sent", "cpu_seconds", "rss_kb", "wal_bytes", "requests", "refused", "simulator_share",
    "limit_share",
]  # fmt: skip
LOOK_SECONDS = 0.02
LIMIT_SECONDS = 3 * 3600.0  # what takes longer hangs; 100,000 PATCHes under HubSpot's limits take 90 minutes
TICKS = os.sysconf("SC_CLK_TCK")

PSQL = ["-XAtq", "-v", "ON_ERROR_STOP=1"]
# A run of hubspot_sync as somebody outside sees it; bench/tables.sql has bench_await().
FOLLOW = """\
SELECT trigger_hubspot_sync('{0}', '{1}') AS run \\gset
SELECT 'run ' || :'run';
CALL bench_await(:'run', '{{pending}}');
SELECT 'worker ' || coalesce(worker_pid, 0) FROM sync_runs WHERE id = :'run';
CALL bench_await(:'run', '{{pending,running}}');
SELECT 'done ' || pg_current_wal_insert_lsn();
"""
# How much shorter than the stopwatch a worker's log may be, for psql has to start and to look.
CLAIM_SHARE, CLAIM_SECONDS = 0.05, 0.3
WAL_AFTER_END = 64 << 10


def sql(query: str) -> str:
    """What psql prints."""
    command = [os.environ["PSQL"], *PSQL, "-c", query]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        sys.exit(f"watch.py: {query}: no end after {LIMIT_SECONDS:.0f} s")
    if done.returncode:
        sys.exit(f"watch.py: {query}: {done.stderr}")
    return done.stdout.strip()


def control(method: str, path: str) -> Any:
    """The simulator's control API."""
    request = urllib.request.Request(f"{os.environ['SIMULATOR_URL']}/_control/{path}", method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=LIMIT_SECONDS) as answer:
        return json.load(answer)


def cpu_seconds(pid: int) -> float | None:
    """User and system time of a process, None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS
    except OSError:
        return None


def rss_kb(pid: int) -> int | None:
    """Memory that is a process's own, None if it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("RssAnon:")), None)
    except OSError:
        return None


class Watch(threading.Thread):
    """Looks at processes until all are gone, or told to stop: the peak of their memory, the last of their times."""

    def __init__(self, *pids: int) -> None:
        super().__init__(daemon=True)
        self._pids = pids
        self._done = threading.Event()
        self._cpu: dict[int, float] = {}
        self.rss_kb = 0
        self.start()

    def run(self) -> None:
        """Look, wait, look again."""
        while self.look() and not self._done.wait(LOOK_SECONDS):
            pass

    def look(self) -> bool:
        """Whether any of them is there."""
        memory = [kb for kb in map(rss_kb, self._pids) if kb is not None]
        for pid in self._pids:
            used = cpu_seconds(pid)
            if used is not None:
                self._cpu[pid] = used
        self.rss_kb = max([self.rss_kb, sum(memory)])
        return bool(memory)

    def stop(self) -> None:
        """A last look."""
        self._done.set()
        self.join()
        self.look()

    @property
    def cpu_seconds(self) -> float:
        """Of all of them together."""
        return sum(self._cpu.values())


Figures = dict[str, Any]


def kill(program: subprocess.Popen[str]) -> None:
    """End a program and what it has started."""
    with suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGKILL)


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A program between two pipes. It leaves when its input ends; all of it is killed if that takes too long."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as program:
        assert program.stdin is not None
        limit = threading.Timer(LIMIT_SECONDS, kill, (program,))
        limit.daemon = True
        limit.start()
        try:
            yield program
            program.stdin.close()
            program.wait()
        except BaseException:
            kill(program)
            raise
        finally:
            limit.cancel()


def said(program: subprocess.Popen[str], word: str) -> str:
    """What follows a word, which is what the program has to say next."""
    assert program.stdout is not None
    line = program.stdout.readline()
    if not line.startswith(f"{word} "):
        sys.exit(f"watch.py: {program.args}: no {word!r} but {line!r}, at the latest after {LIMIT_SECONDS:.0f} s")
    return line.split()[1]


def run_client(command: list[str]) -> Figures:
    """A client from its start to its "done"."""
    start = time.monotonic()
    with started(command) as client:
        backend = said(client, "backend")
        watch = Watch(client.pid, int(backend))
        records = said(client, "done")
        seconds = time.monotonic() - start
        watch.stop()
    return {"seconds": seconds, "records": records, "cpu_seconds": watch.cpu_seconds, "rss_kb": watch.rss_kb}


def run_worker(sync_type: str, mode: str) -> Figures:
    """A run of hubspot_sync from the start of the psql that requests it until that sees its end."""
    start = time.monotonic()
    with started([os.environ["PSQL"], *PSQL]) as psql:
        assert psql.stdin is not None
        psql.stdin.write(FOLLOW.format(sync_type, mode))
        psql.stdin.flush()
        run_id = said(psql, "run")
        watch = Watch(int(said(psql, "worker")))
        lsn = said(psql, "done")
        seconds = time.monotonic() - start
    check_end(watch, lsn)
    return {
        "seconds": seconds, "records": checked_records(run_id, seconds), "cpu_seconds": watch.cpu_seconds,
        "rss_kb": watch.rss_kb,
    }  # fmt: skip


def check_end(watch: Watch, lsn: str) -> None:
    """A worker has to be gone soon after its end, and to have written nothing more."""
    watch.join(LIMIT_SECONDS)
    if watch.is_alive():
        sys.exit("watch.py: the worker has not gone after its end")
    written = int(sql(f"SELECT pg_current_wal_insert_lsn() - '{lsn}'"))
    if written > WAL_AFTER_END:
        sys.exit(f"watch.py: the worker has gone on writing after its end, {written} bytes: its time means nothing")


def checked_records(run_id: str, seconds: float) -> int:
    """What a log entry counts, if the run has succeeded and its log does not claim less time than it took."""
    status, records, logged, details = sql(
        "SELECT status, records_processed, extract(epoch FROM completed_at - created_at), error_details"
        f" FROM sync_logs WHERE id = '{run_id}'"
    ).split("|", 3)
    if status != "success":
        sys.exit(f"watch.py: the run ended {status}: {details}")
    if float(logged) < seconds * (1 - CLAIM_SHARE) - CLAIM_SECONDS:
        sys.exit(f"watch.py: the run's log claims {logged} s of {seconds:.3f} s: its time means nothing")
    return int(records)


def measured(run: Callable[[], Figures]) -> Figures:
    """The figures of a run with what it cost the server and the simulator."""
    simulator = int(os.environ["SIMULATOR_PID"])
    sql("CHECKPOINT")
    os.sync()  # what an earlier row has left to be written is not this one's to wait for
    control("DELETE", "journal")
    lsn = sql("SELECT pg_current_wal_insert_lsn()")
    busy = cpu_seconds(simulator) or 0
    figures = run()
    busy = (cpu_seconds(simulator) or 0) - busy
    figures["wal_bytes"] = sql(f"SELECT pg_current_wal_insert_lsn() - '{lsn}'")
    figures["simulator_share"] = busy / max(figures["seconds"], 0.001)
    summary = control("GET", "journal/summary")
    figures["requests"] = sum(line["count"] for line in summary)
    figures["refused"] = sum(line["count"] for line in summary if line["status"] == 429)
    figures["sent"] = sum(map(contacts_written, summary))
    return figures


def contacts_written(line: dict[str, Any]) -> int:
    """How many contacts a line of the journal's summary has written: one a PATCH, or the inputs of batches."""
    if line["status"] not in (200, 207) or "/objects/" not in line["path"]:
        return 0
    if line["path"].endswith(("/contacts/batch/update", "/contacts/batch/upsert")):
        return int(line["inputs"])
    return int(line["count"]) if line["method"] == "PATCH" else 0


def append(path: str, line: Figures) -> None:
    """Add a line to the file, and the names of the columns if it is the first."""
    shown = {name: f"{value:.3f}" if isinstance(value, float) else value for name, value in line.items()}
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(shown)


def main() -> None:
    """One line."""
    out, conditions, kind, *rest = sys.argv[1:]
    run = {"client": lambda: run_client(rest), "worker": lambda: run_worker(*rest)}[kind]
    line = dict(item.split("=", 1) for item in conditions.split(","))
    line.update(measured(run))
    append(out, line)
    print(f"{line['seconds']:.1f}")


if __name__ == "__main__":
    main()
