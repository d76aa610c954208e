#!/usr/bin/python3
"""Prints the table of a CSV file of bench/run: medians, each work's rows together, and which targets are met.

    report.py FILE

A ratio is a row's time divided by floor's. "CPU ms/k" is CPU time for 1,000 records: as many as there are contacts or
changes, whatever a row says of itself. "sim." is the share of the time in which the simulator computed: near 100 % it
is the simulator that was measured. A target that the file says nothing about is named, too.

Ends with status 3 if no target is missed but those that are known to be, and these by no more than their guard, and
with 4 if any other is. bench/prove_report.py proves that each target can be missed.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

CONDITIONS = ("work", "contacts", "properties", "changes", "latency_ms", "limits")
FLOOR = "floor"
IN_DATABASE = "in_database"
OURS = "hubspot_sync"
DIY = "diy"
WORKERS = (OURS, "list", "list_and_search")  # rows that are hubspot_sync

Case = tuple[str, ...]  # of CONDITIONS
Row = dict[str, float]  # medians by column


def read(path: str) -> dict[Case, dict[str, Row]]:
    """Medians by case and row, in the order of the file."""
    lines: dict[Case, dict[str, list[dict[str, str]]]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            case = tuple(line[name] for name in CONDITIONS)
            lines.setdefault(case, {}).setdefault(line["row"], []).append(line)
    return {
        case: {name: {**medians(runs), "size": size(case)} for name, runs in rows.items()} for case, rows in lines.items()
    }


def size(case: Case) -> float:
    """How many records a case is about."""
    named = dict(zip(CONDITIONS, case))
    return float(named["changes"] or named["contacts"])


def medians(runs: list[dict[str, str]]) -> Row:
    """The median of each column that has numbers, and how many runs there were."""
    row = {"n": float(len(runs))}
    for name in runs[0]:
        if name not in (*CONDITIONS, "row", "repetition"):
            values = [float(run[name]) for run in runs if run[name]]
            if values:
                row[name] = median(values)
                row[f"greatest {name}"] = max(values)
    return row


# The table

Cell = Callable[[Row, "Row | None"], "float | None"]


def ratio(row: Row, floor: Row | None) -> float | None:
    """How many times the floor's time."""
    return row["seconds"] / floor["seconds"] if floor and floor["seconds"] else None


def per_second(row: Row, floor: Row | None = None) -> float | None:
    """Records a second, where all of a case's are the row's."""
    return row["size"] / row["seconds"] if row.get("records") else None


def cpu_per_thousand(row: Row, floor: Row | None = None) -> float | None:
    """Milliseconds of CPU for 1,000 records, if there are enough of them to tell."""
    return 1e6 * row["cpu_seconds"] / row["size"] if row["size"] >= 500 and "cpu_seconds" in row else None


def plain(name: str, factor: float = 1) -> Cell:
    """A column as it is."""
    return lambda row, floor: row[name] * factor if name in row else None


COLUMNS: list[tuple[str, str, Cell]] = [
    ("s", "{:,.2f}", plain("seconds")),
    ("x floor", "{:.2f}", ratio),
    ("records/s", "{:,.0f}", per_second),
    ("CPU s", "{:,.2f}", plain("cpu_seconds")),
    ("CPU ms/k", "{:,.1f}", cpu_per_thousand),
    ("RSS MB", "{:,.1f}", plain("rss_kb", 1 / 1024)),
    ("WAL MB", "{:,.2f}", plain("wal_bytes", 1 / (1 << 20))),
    ("requests", "{:,.0f}", plain("requests")),
    ("429", "{:.0f}", plain("refused")),
    ("sim. %", "{:.0f}", plain("simulator_share", 100)),
    ("limit %", "{:.1f}", plain("limit_share", 100)),
    ("n", "{:.0f}", plain("n")),
]


def title(case: Case) -> str:
    """What is done under which conditions."""
    named = dict(zip(CONDITIONS, case))
    parts = [named["work"]]
    parts += [f"{int(named['contacts']):,} contacts"] if named["contacts"] else []
    parts += [f"{named['properties']} properties"] if named["properties"] else []
    parts += [f"{int(named['changes']):,} changed"] if named["changes"] else []
    parts += [f"{named['latency_ms']} ms", f"limits {named['limits']}"]
    return ", ".join(parts)


def table(cases: dict[Case, dict[str, Row]]) -> Iterable[str]:
    """The lines of the table."""
    head = f"{'':16}" + "".join(f"{name:>11}" for name, _, _ in COLUMNS)
    yield head
    for case, rows in cases.items():
        yield title(case)
        for name, row in rows.items():
            cells = [cell(row, rows.get(FLOOR)) for _, _, cell in COLUMNS]
            texts = ["" if value is None else form.format(value) for value, (_, form, _) in zip(cells, COLUMNS)]
            yield f"  {name:14}" + "".join(f"{text:>11}" for text in texts)


# The targets

Found = tuple[str, "float | None", str, float]  # what, value (None: not measured), comparison, bound

TIMES_LEAST = "times the faster of floor and in_database"
TIMES_DIY = "times as fast as do-it-yourself"
CPU = "CPU ms for 1,000 records"
WAL = "kB of WAL beyond half a kB a page"
REQUESTS = "requests"
THROUGHPUT = "contacts a second"
USED = "% of the account's limit"
REFUSED = "answers 429"
SHARE = "% of the requests"
SECONDS = "seconds"
MEMORY = "MB of RssAnon in any run"
GROWTH = "MB of growth from the fewest to the most"
EVERY_TARGET = (
    TIMES_LEAST, TIMES_DIY, CPU, WAL, REQUESTS, THROUGHPUT, USED, REFUSED, SHARE, SECONDS, MEMORY, GROWTH,
)  # fmt: skip

# Targets that docs/performance.md says are missed whatever the machine: beyond its guard one is worse than that.
KNOWN_MISSES = {CPU: 65.0}

# In a work with fewer contacts its beginning and its end weigh too much.
ENOUGH = 20_000


def targets(case: Case, rows: dict[str, Row]) -> Iterable[Found]:
    """The targets that a case can tell of."""
    named: dict[str, Any] = dict(zip(CONDITIONS, case))
    ours, work, enough = rows.get(OURS), named["work"], int(named["contacts"]) >= ENOUGH
    if work == "strategy" and "list_and_search" in rows and enough:
        yield THROUGHPUT, per_second(rows["list_and_search"]), ">=", 1800
    if ours is None:
        return
    if work == "pull" and named["latency_ms"] == "0" and named["limits"] == "off" and enough:
        yield from targets_of_pull(ours, rows, named["properties"])
    if work == "unchanged":
        # the log entry and its checkpoint, and full-page images of their pages; that no row
        # was written is compared when it is measured
        yield WAL, max(ours["wal_bytes"] / 1024 - ours["requests"] / 2, 0), "<=", 128
    if work == "incremental" and named["changes"] == "0":
        yield REQUESTS, ours["requests"], "<=", 2
    if work == "saturation":
        yield REFUSED, ours["refused"], "<=", 0
        if enough:
            yield USED, 100 * ours["limit_share"], ">=", 95
    if work == "fairness: push":
        yield SHARE, 100 * ours["limit_share"], ">=", 25
    if work == "fairness: owners":
        yield SECONDS, ours["seconds"], "<=", 5


def targets_of_pull(ours: Row, rows: dict[str, Row], properties: str) -> Iterable[Found]:
    """Those of a pull that waits for nothing."""
    if FLOOR in rows and IN_DATABASE in rows:
        least = min(rows[FLOOR]["seconds"], rows[IN_DATABASE]["seconds"])
        yield TIMES_LEAST, ours["seconds"] / least, "<=", 2
    if DIY in rows:
        yield TIMES_DIY, rows[DIY]["seconds"] / ours["seconds"], ">=", 3
    if properties == "30":
        yield CPU, cpu_per_thousand(ours), "<=", 25


def targets_of_memory(cases: dict[Case, dict[str, Row]]) -> Iterable[tuple[str, Found]]:
    """The most that any run needs, and how much that grows with the number of records."""
    peaks = [
        (row["greatest rss_kb"] / 1024, case)
        for case, rows in cases.items() for name, row in rows.items() if name in WORKERS and "rss_kb" in row
    ]  # fmt: skip
    if peaks:
        most, where = max(peaks)
        yield title(where), (MEMORY, most, "<=", 64)
    ours = [peak for peak, case in peaks if case[0] == "memory"]
    if len(ours) > 1:
        yield "memory", (GROWTH, max(ours) - min(ours), "<=", 4)


def is_met(found: Found) -> bool | None:
    """Whether a target is met, None if that was not measured."""
    _, value, comparison, bound = found
    if value is None:
        return None
    return value <= bound if comparison == "<=" else value >= bound


def is_known(found: Found) -> bool:
    """Whether a target that is missed is known to be, and no worse."""
    what, value, _, _ = found
    return value is not None and value <= KNOWN_MISSES.get(what, float("-inf"))


def verdict(where: str, found: Found) -> str:
    """A line about one target."""
    what, value, comparison, bound = found
    if value is None:
        return f"target not measured  {where}: {what}"
    word = "met   " if is_met(found) else "missed (known)" if is_known(found) else "MISSED"
    return f"target {word}  {where}: {value:,.1f} {what} (target {comparison} {bound:,.0f})"


def status(judged: list[Found]) -> int:
    """What the program's end says of the targets."""
    missed = [found for found in judged if is_met(found) is False]
    return 0 if not missed else 3 if all(map(is_known, missed)) else 4


def main() -> None:
    """The table, then the targets."""
    cases = read(sys.argv[1])
    print("\n".join(table(cases)), end="\n\n")
    judged = [(title(case), found) for case, rows in cases.items() for found in targets(case, rows)]
    judged += targets_of_memory(cases)
    assert all(found[0] in EVERY_TARGET for _, found in judged)
    for where, found in judged:
        print(verdict(where, found))
    for what in EVERY_TARGET:
        if what not in [found[0] for _, found in judged]:
            print(f"target not measured  {what}")
    sys.exit(status([found for _, found in judged]))


if __name__ == "__main__":
    main()
