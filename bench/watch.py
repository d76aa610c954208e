#!/usr/bin/python3
"""Runs one thing and appends what it has used to a CSV file, as one line.

    watch.py OUT CONDITIONS client COMMAND...     a program that talks to HubSpot and to PostgreSQL
    watch.py OUT CONDITIONS worker TYPE MODE      a run of hubspot_sync, whose worker does both

CONDITIONS is `name=value,name=value`, taken over into the line. A client says "backend PID" and "done RECORDS" on
its standard output and leaves when its standard input ends; its figures are those of its process and its backend
together. A worker's end is noted from its log entry; it lingers for half a second after that, in which its last
figures are read. SIMULATOR_URL, SIMULATOR_PID and PSQL are in the environment, and libpq's variables.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

COLUMNS = [
    "work", "contacts", "properties", "changes", "latency_ms", "limits", "row", "repetition",
    "seconds", "records", "cpu_seconds", "rss_kb", "wal_bytes", "requests", "refused", "simulator_share", "limit_share",
]  # fmt: skip
LOOK_SECONDS = 0.02
TICKS = os.sysconf("SC_CLK_TCK")


def sql(query: str) -> str:
    """What psql prints."""
    done = subprocess.run([os.environ["PSQL"], "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", query], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"watch.py: {query}: {done.stderr}")
    return done.stdout.strip()


def control(method: str, path: str) -> Any:
    """The simulator's control API."""
    request = urllib.request.Request(f"{os.environ['SIMULATOR_URL']}/_control/{path}", method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
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


def run_client(command: list[str]) -> Figures:
    """A client from its start to its "done"."""
    start = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        backend = said(client, "backend")
        watch = Watch(client.pid, backend)
        records = said(client, "done")
        seconds = time.monotonic() - start
        watch.stop()
    return {"seconds": seconds, "records": records, "cpu_seconds": watch.cpu_seconds, "rss_kb": watch.rss_kb}


def said(client: subprocess.Popen[str], word: str) -> int:
    """The number after a word, which is what the client has to say next."""
    assert client.stdin is not None and client.stdout is not None
    line = client.stdout.readline()
    if not line.startswith(f"{word} "):
        client.stdin.close()
        client.wait()
        sys.exit(f"watch.py: {client.args}: no {word!r} but {line!r}")
    return int(line.split()[1])


def run_worker(sync_type: str, mode: str) -> Figures:
    """A run of hubspot_sync from its request to the end that its log entry states."""
    run_id = sql(f"SELECT trigger_hubspot_sync('{sync_type}', '{mode}')")
    pid = wait_for(lambda: sql(f"SELECT worker_pid FROM sync_runs WHERE id = '{run_id}'"))
    watch = Watch(int(pid))
    watch.join()
    status, records, seconds = sql(
        "SELECT status, records_processed, extract(epoch FROM completed_at - created_at)"
        f" FROM sync_logs WHERE id = '{run_id}'"
    ).split("|")
    if status != "success":
        sys.exit(f"watch.py: the run of {sync_type} ended {status}: " + sql(f"SELECT error_details FROM sync_logs WHERE id = '{run_id}'"))
    return {"seconds": float(seconds), "records": int(records), "cpu_seconds": watch.cpu_seconds, "rss_kb": watch.rss_kb}


def wait_for(look: Callable[[], str]) -> str:
    """What a look brings once it brings anything."""
    deadline = time.monotonic() + 30
    while not (found := look()):
        if time.monotonic() > deadline:
            sys.exit("watch.py: the run does not start")
        time.sleep(LOOK_SECONDS)
    return found


def measured(run: Callable[[], Figures]) -> Figures:
    """The figures of a run with what it cost the server and the simulator."""
    simulator = int(os.environ["SIMULATOR_PID"])
    sql("CHECKPOINT")
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
    return figures


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
