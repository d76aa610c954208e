#!/usr/bin/python3
"""Proves that report.py notices it if a target is missed, however little, and only then.

    prove_report.py

It is given figures with which every target is just met, and then, one after the other, figures with which one of them
is just missed. Prints "ok" or "not ok" for each; the status is 1 if one is not ok.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import report
from watch import COLUMNS

Line = dict[str, Any]
Change = tuple[str, str, str, float]  # work, row, column and its new value


def line(work: str, row: str = report.OURS, contacts: int = 50_000, **figures: Any) -> Line:
    """A line of the CSV file."""
    return {
        "work": work, "row": row, "contacts": contacts, "latency_ms": 0, "limits": "off", "repetition": 1, "seconds": 1,
        "records": contacts, **figures,
    }  # fmt: skip


JUST_MET = [
    line("pull", report.FLOOR, properties=30, seconds=3),
    line("pull", report.IN_DATABASE, properties=30, seconds=3),
    line("pull", report.DIY, properties=30, seconds=18),
    line("pull", properties=30, seconds=6, cpu_seconds=1.25, rss_kb=64 << 10),
    line("unchanged", requests=500, wal_bytes=(250 + 128) << 10),
    line("incremental", changes=0, requests=2),
    line("strategy", "list_and_search", seconds=27.777, rss_kb=64 << 10),
    line("saturation", refused=0, limit_share=0.95),
    line("fairness: push", limit_share=0.25),
    line("fairness: owners", seconds=5),
    line("memory", contacts=1000, rss_kb=60 << 10),
    line("memory", contacts=500_000, rss_kb=64 << 10),
]

# The target that is missed, by which change, and the status that tells it.
JUST_MISSED: list[tuple[str, Change, int]] = [
    (report.TIMES_LEAST, ("pull", report.FLOOR, "seconds", 2.99), 4),
    (report.TIMES_LEAST, ("pull", report.IN_DATABASE, "seconds", 2.99), 4),
    (report.TIMES_DIY, ("pull", report.DIY, "seconds", 17.99), 4),
    (report.CPU, ("pull", report.OURS, "cpu_seconds", 1.26), 3),
    (report.CPU, ("pull", report.OURS, "cpu_seconds", 3.25), 3),
    (report.CPU, ("pull", report.OURS, "cpu_seconds", 3.26), 4),
    (report.WAL, ("unchanged", report.OURS, "wal_bytes", (250 + 129) << 10), 4),
    (report.REQUESTS, ("incremental", report.OURS, "requests", 3), 4),
    (report.THROUGHPUT, ("strategy", "list_and_search", "seconds", 27.78), 4),
    (report.USED, ("saturation", report.OURS, "limit_share", 0.949), 4),
    (report.REFUSED, ("saturation", report.OURS, "refused", 1), 4),
    (report.SHARE, ("fairness: push", report.OURS, "limit_share", 0.249), 4),
    (report.SECONDS, ("fairness: owners", report.OURS, "seconds", 5.01), 4),
    (report.MEMORY, ("pull", report.OURS, "rss_kb", (64 << 10) + 1), 4),
    (report.MEMORY, ("strategy", "list_and_search", "rss_kb", (64 << 10) + 1), 4),
    (report.GROWTH, ("memory", report.OURS, "rss_kb", (60 << 10) - 1), 4),
]


def changed(change: Change) -> list[Line]:
    """The figures with which every target is met, one of them changed: in the first line that fits."""
    work, row, column, value = change
    place = next(n for n, met in enumerate(JUST_MET) if (met["work"], met["row"]) == (work, row))
    return [{**met, column: value} if n == place else met for n, met in enumerate(JUST_MET)]


def reported(lines: list[Line]) -> tuple[int, list[str]]:
    """The status of report.py, and what it says of targets that are not met."""
    with tempfile.NamedTemporaryFile("w", suffix=".csv", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(lines)
        file.flush()
        program = Path(__file__).with_name("report.py")
        done = subprocess.run([sys.executable, str(program), file.name], capture_output=True, text=True, timeout=60)
    print(done.stderr, end="")
    verdicts = [text for text in done.stdout.splitlines() if text.startswith("target ")]
    return done.returncode, [text for text in verdicts if not text.startswith("target met ")]


def prove(name: str, is_proved: bool) -> bool:
    """Say how it went."""
    print(f"{'ok' if is_proved else 'not ok'} report: {name}")
    return is_proved


def main() -> None:
    """All proofs."""
    proved = [prove("every target just met", reported(JUST_MET) == (0, []))]
    for what, change, expected in JUST_MISSED:
        status, others = reported(changed(change))
        noticed = status == expected and len(others) == 1 and what in others[0] and "missed" in others[0].lower()
        proved.append(prove(f"just missed: {what}, status {expected}", noticed))
    proved.append(prove("no target left out", {what for what, _, _ in JUST_MISSED} == set(report.EVERY_TARGET)))
    sys.exit(0 if all(proved) else 1)


if __name__ == "__main__":
    main()
