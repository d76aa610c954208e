#!/usr/bin/python3
"""Lets several runs of hubspot_sync share one account's limits and appends how they did to a CSV file.

    together.py OUT CONDITIONS saturation     four full loads and owners at once: how much of the limit they use
    together.py OUT CONDITIONS fairness       three full loads; beside them owners, and a push of students

The share of the limit is that of requests answered between the third second, when all are under way, and the end of
the first load. A push's share is that of all requests under the limit made while it ran; searches have a limit of
their own. Times are those of a stopwatch outside. See watch.py for CONDITIONS and environment.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from watch import append, control, sql

LIMIT_PER_SECOND = 190 / 10
STARTED_SECONDS = 3

Entry = dict[str, Any]


def trigger(*types: str) -> list[str]:
    """Request full runs, or a push; the ids of the runs."""
    return [sql(f"SELECT trigger_hubspot_sync('{name}', '{'auto' if name == 'progress' else 'full'}')") for name in types]


def wait_for(ids: list[str]) -> None:
    """Until all of the runs have ended well."""
    for run_id in ids:
        sql(f"CALL bench_await('{run_id}', '{{pending,running}}')")
    among = ", ".join(f"'{run_id}'" for run_id in ids)
    bad = sql(f"SELECT sync_type, status, error_details FROM sync_logs WHERE id IN ({among}) AND status <> 'success'")
    if bad:
        sys.exit(f"together.py: {bad}")


def timed(name: str) -> tuple[str, float]:
    """A run of this type, once it has ended, and how long it took."""
    start = time.monotonic()
    ids = trigger(name)
    wait_for(ids)
    return ids[0], time.monotonic() - start


def span_ms(run_id: str) -> tuple[float, float]:
    """When a run began and ended."""
    begin, end = sql(
        "SELECT extract(epoch FROM started_at) * 1000, extract(epoch FROM completed_at) * 1000"
        f" FROM sync_runs WHERE id = '{run_id}'"
    ).split("|")
    return float(begin), float(end)


def journal() -> list[Entry]:
    """All requests."""
    entries: list[Entry] = control("GET", "journal?bodies=false")
    return entries


def between(entries: list[Entry], begin: float, end: float) -> list[Entry]:
    """Those that came in a span of time."""
    return [entry for entry in entries if begin <= entry["at_ms"] < end]


def is_of_push(entry: Entry) -> bool:
    """Whether it is a request of a push: the loads write nothing and read no definitions."""
    return entry["path"].endswith(("/contacts/batch/update", "/contacts/batch/upsert")) or "/crm/properties/" in entry["path"]


def is_limited(entry: Entry) -> bool:
    """Whether it was taken out of the account's 190 in 10 seconds."""
    return entry["status"] != 429 and not entry["path"].endswith("/search")


def line_of(work: str, seconds: float, entries: list[Entry]) -> Entry:
    """What the CSV file gets of a run, or of several together."""
    refused = sum(entry["status"] == 429 for entry in entries)
    return {"work": work, "repetition": 1, "seconds": seconds, "requests": len(entries), "refused": refused}


def saturation() -> list[Entry]:
    """Four loads and owners at once."""
    start = time.monotonic()
    loads = trigger("contacts", "deals", "companies", "calls")
    wait_for(trigger("owners") + loads)
    seconds = time.monotonic() - start
    spans = [span_ms(run_id) for run_id in loads]
    begin = min(begin for begin, _ in spans) + STARTED_SECONDS * 1000
    end = min(end for _, end in spans)
    entries = journal()
    used = sum(map(is_limited, between(entries, begin, end)))
    line = line_of("saturation", seconds, entries)
    return [{**line, "limit_share": used / (LIMIT_PER_SECOND * max(end - begin, 1) / 1000)}]


def fairness() -> list[Entry]:
    """A push of all students, who have changed, and a person's run beside three loads."""
    sql("UPDATE user_xp SET total_xp = total_xp + 1")
    loads = trigger("contacts", "deals", "companies")
    time.sleep(STARTED_SECONDS)
    owners, owners_seconds = timed("owners")
    push, push_seconds = timed("progress")
    still_loading = sql("SELECT count(*) FROM sync_logs WHERE status = 'running'")
    wait_for(loads)
    if still_loading != "3":
        sys.exit("together.py: the loads were over too early to disturb anybody; take more records")
    entries = journal()
    meanwhile = [entry for entry in between(entries, *span_ms(push)) if is_limited(entry)]
    of_push = [entry for entry in meanwhile if is_of_push(entry)]
    return [
        line_of("fairness: owners", owners_seconds, between(entries, *span_ms(owners))),
        {**line_of("fairness: push", push_seconds, of_push), "limit_share": len(of_push) / max(len(meanwhile), 1)},
    ]


def main() -> None:
    """One line, or one of each who had to get a share."""
    out, conditions, what = sys.argv[1:]
    control("DELETE", "journal")
    for line in {"saturation": saturation, "fairness": fairness}[what]():
        append(out, {**dict(item.split("=", 1) for item in conditions.split(",")), **line})


if __name__ == "__main__":
    main()
