"""Endpoints about the account itself: owners, pipelines, schemas, account information."""

from __future__ import annotations

import base64
from typing import Any

from answer import Answer, Page, dump, json_answer
from call import Call
from clock import Clock, iso_instant
from config import Config, PORTAL_ID, TIME_ZONE
from errors import ApiError, not_found
from limits import RateLimiter
from objects_api import next_link, page_size
from store import Table
from world import World

OWNERS_LIMIT, OWNERS_MAX = 100, 500


class AccountApi:
    """Handlers for everything that is not a record."""

    def __init__(self, world: World, config: Config, clock: Clock, limiter: RateLimiter) -> None:
        self._world = world
        self._config = config
        self._clock = clock
        self._limiter = limiter

    # Owners

    def owners(self, call: Call) -> Answer:
        """Owners by id. The cursor is opaque and needs percent-encoding, as in the documentation's example."""
        query = call.query
        limit = page_size(query.get("limit"), OWNERS_LIMIT, OWNERS_MAX)
        start = _decode_cursor(query["after"]) if query.get("after") else 0
        archived = query.get("archived") == "true"
        owners = self._world.owners.page(archived, query.get("email"), start, limit + 1)
        page = Page([dump(owner) for owner in owners[:limit]])
        if len(owners) > limit:
            page.after, page.link = _encode_cursor(owners[limit]["id"]), next_link(call)
        return Answer(page=page)

    def owner(self, call: Call, id: str) -> Answer:
        """One owner; an archived one only with archived=true (unverified)."""
        owner = self._world.owners.get(id)
        if owner is None or owner["archived"] != (call.query.get("archived") == "true"):
            raise not_found()
        return json_answer(owner)

    # Pipelines

    def pipelines(self, call: Call, table: Table) -> Answer:
        """All pipelines of a type with their stages, no paging."""
        return json_answer({"results": self._world.pipelines.get(table.kind.name, [])})

    def pipeline(self, call: Call, table: Table, id: str) -> Answer:
        """One pipeline."""
        return json_answer(self._pipeline(table, id))

    def stages(self, call: Call, table: Table, id: str) -> Answer:
        """The stages of a pipeline."""
        return json_answer({"results": self._pipeline(table, id)["stages"]})

    def _pipeline(self, table: Table, pipeline_id: str) -> dict[str, Any]:
        for pipeline in self._world.pipelines.get(table.kind.name, []):
            if pipeline["id"] == pipeline_id:
                return pipeline
        raise not_found()

    # Account

    def schemas(self, call: Call) -> Answer:
        """The custom object types."""
        custom = [table for table in self._world.tables.values() if table.kind.type_id.startswith("2-")]
        return json_answer({"results": [_schema(table) for table in custom]})

    def details(self, call: Call) -> Answer:
        """Account information; needs no scope."""
        return json_answer(
            {
                "portalId": PORTAL_ID,
                "timeZone": TIME_ZONE,
                "accountType": "STANDARD",
                "companyCurrency": "EUR",
                "additionalCurrencies": ["USD"],
                "utcOffset": "+01:00",
                "utcOffsetMilliseconds": 3_600_000,
                "uiDomain": "app.hubspot.com",
                "dataHostingLocation": "eu1",
            }
        )

    def daily_usage(self, call: Call) -> Answer:
        """How much of the daily limit has been used."""
        now_ms = self._clock.now_ms()
        usage = {
            "name": "private-apps-api-calls-daily",
            "usageLimit": self._config.daily_max,
            "currentUsage": self._limiter.used_today,
            "collectedAt": iso_instant(now_ms),
            "fetchStatus": "SUCCESS",
            "resetsAt": iso_instant(self._limiter.resets_at_ms),
        }
        return json_answer({"results": [usage]})


def _encode_cursor(owner_id: str) -> str:
    return base64.b64encode(f"{owner_id}\n".encode()).decode().replace("=", "%3D")


def _decode_cursor(cursor: str) -> int:
    try:
        return int(base64.b64decode(cursor.replace("%3D", "=")))
    except ValueError:
        raise ApiError(400, f"Invalid paging cursor: {cursor}") from None


def _schema(table: Table) -> dict[str, Any]:
    kind = table.kind
    return {
        "id": kind.type_id.removeprefix("2-"),
        "objectTypeId": kind.type_id,
        "name": kind.name,
        "fullyQualifiedName": f"p{PORTAL_ID}_{kind.name}",
        "labels": {"singular": kind.name, "plural": kind.name},
        "archived": False,
        "properties": [prop.to_json() for prop in table.properties.values()],
    }
