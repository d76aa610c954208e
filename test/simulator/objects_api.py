"""The objects endpoints: list, read, search, batch read, and single writes."""

from __future__ import annotations

from typing import Any

from answer import Answer, Page, empty_answer
from call import Call
from clock import Clock, iso_instant
from config import Config, PORTAL_ID
from errors import ApiError, invalid_properties, not_found
from history import API_SOURCE
from search import Query, SearchIndex
from store import Record, Table
from values import checked_properties, moves_backward
from world import World

LIST_LIMIT, LIST_MAX, LIST_MAX_HISTORY = 10, 100, 50
BATCH_MAX, BATCH_MAX_HISTORY = 100, 50  # that batches with history are limited as lists are is unverified
MAX_IDENTITIES = 250


class ObjectsApi:
    """Handlers for `/crm/objects/{version}/{type}`; each gets the call and the table of the type.

    Batch create, update, upsert and archive belong here too: they can build on `_write`.
    """

    def __init__(self, world: World, config: Config, clock: Clock) -> None:
        self._world = world
        self._config = config
        self._clock = clock
        self._indexes: dict[str, SearchIndex] = {}

    # Reading

    def list_page(self, call: Call, table: Table) -> Answer:
        """A page ordered by id; the cursor is the id of the next record, the last page has no paging."""
        query = call.query
        history = "propertiesWithHistory" in query
        limit = page_size(query.get("limit"), LIST_LIMIT, LIST_MAX_HISTORY if history else LIST_MAX)
        start = _cursor(query.get("after", "0"))
        ids = (table.archived if query.get("archived") == "true" else table.live).slice_from(start, limit + 1)
        past = self._past(call)
        page = Page(table.renderer_for_text(query.get("properties"), past).page(ids[:limit]))
        if len(ids) > limit:
            page.after, page.link = str(ids[limit]), next_link(call)
        return Answer(page=page, cache_key=(table.version, past, call.target))

    def read(self, call: Call, table: Table, id: str) -> Answer:
        """A single record; a merged-away id leads to the survivor, whose id the answer carries.

        That an archived record needs archived=true is unverified.
        """
        query = call.query
        record = self._by_key(table, id, query.get("idProperty"), query.get("archived") == "true")
        if record is None:
            raise not_found()
        return Answer(body=table.renderer_for_text(query.get("properties"), self._past(call)).one(record))

    def search(self, call: Call, table: Table) -> Answer:
        """Search; archived records never appear, changes appear when the index lag has passed."""
        query = Query.parse(call.json(), len(call.body.decode(errors="replace")))
        index = self._indexes.get(table.kind.name)
        if index is None:
            index = self._indexes[table.kind.name] = SearchIndex(table)
        return Answer(page=index.page(query))

    def batch_read(self, call: Call, table: Table) -> Answer:
        """Up to 100 records, not in the order asked for; missing ids are listed in one error of a 207."""
        body = call.json()
        past = call.members("propertiesWithHistory", str)
        keys = [str(item.get("id")) for item in _batch_inputs(call, BATCH_MAX_HISTORY if past else BATCH_MAX)]
        archived = call.query.get("archived") == "true"
        id_property = body.get("idProperty")
        if id_property is not None and id_property != "hs_object_id":
            _check_unique(table, id_property)
        found, missing = self._lookup(table, keys, id_property, archived)
        names = call.members("properties", str) or None
        renderer = table.renderer(names, past if self._config.property_history else ())
        page = Page([renderer.one(record) for record in _shuffled(found)])
        now = iso_instant(self._clock.now_ms())
        page.head = {"status": "COMPLETE"}
        page.tail = {"startedAt": now, "completedAt": now}
        if missing:
            page.tail.update(numErrors=1, errors=[_missing_error(table, missing)])
        return Answer(207 if missing else 200, page=page)

    # Writing

    def create(self, call: Call, table: Table) -> Answer:
        """Create one record."""
        properties = self._write(table, call.properties())
        for group in table.kind.required:
            if not any(properties.get(name) for name in group):
                raise ApiError(400, f"Error creating {table.kind.label}. Some required properties were not set.")
        existing = table.find("email", properties["email"], False) if properties.get("email") else None
        if table.kind.name == "contacts" and existing is not None:
            raise ApiError(409, f"Contact already exists. Existing ID: {existing}", "CONFLICT")
        record = self._world.create(table, properties, source=API_SOURCE)
        return self._written(table, record, 201)

    def update(self, call: Call, table: Table, id: str) -> Answer:
        """Change one record; a merged-away id is accepted here."""
        record = self._by_key(table, id, call.query.get("idProperty"), False)
        if record is None:
            raise not_found()
        properties = self._write(table, call.properties())
        stage = properties.get("lifecyclestage")
        if stage and moves_backward(record.properties.get("lifecyclestage"), stage):
            del properties["lifecyclestage"]
        self._world.patch(table, record, properties, API_SOURCE)
        return self._written(table, record, 200)

    def archive(self, call: Call, table: Table, id: str) -> Answer:
        """Move one record to the recycle bin; 404 for an unknown id is unverified."""
        record = table.records.get(int(id)) if id.isdigit() else None
        if record is None or record.id in table.hidden:
            raise not_found()
        self._world.archive(table, record)
        return empty_answer()

    def merge(self, call: Call, table: Table) -> Answer:
        """Merge two records and answer with the survivor."""
        body = call.json()
        primary = self._by_key(table, str(body.get("primaryObjectId")), None, False)
        other = self._by_key(table, str(body.get("objectIdToMerge")), None, False)
        if primary is None or other is None or primary is other:
            raise ApiError(400, "Records to merge must be two existing ones")
        if _identities(primary) + _identities(other) > MAX_IDENTITIES:  # how exactly HubSpot counts is unverified
            raise ApiError(414, f"Cannot have more than {MAX_IDENTITIES} identities on a profile")
        return self._written(table, self._world.merge(table, primary, other), 200)

    def gdpr_delete(self, call: Call, table: Table) -> Answer:
        """Remove a contact for good; an unknown one is no error. The blocklist of e-mails is not simulated.

        That it reaches into the recycle bin is unverified.
        """
        body = call.json()
        key, id_property = str(body.get("objectId")), body.get("idProperty")
        record = self._by_key(table, key, id_property, False) or self._by_key(table, key, id_property, True)
        if record is not None:
            table.purge(record)
        return empty_answer()

    def _write(self, table: Table, properties: dict[str, Any]) -> dict[str, Any]:
        accepted, problems = checked_properties(table, properties, self._world.is_option)
        if problems:
            raise invalid_properties(problems, PORTAL_ID)
        return accepted

    def _written(self, table: Table, record: Record, status: int) -> Answer:
        return Answer(status, table.renderer(None).one(record))

    def _past(self, call: Call) -> str | None:
        """The properties to be shown with their history, unless the account gives none."""
        return call.query.get("propertiesWithHistory") if self._config.property_history else None

    # Finding records

    def _by_key(self, table: Table, key: str, id_property: str | None, archived: bool) -> Record | None:
        if id_property is None or id_property == "hs_object_id":
            found: int | None = table.resolve(int(key)) if key.isdigit() else None
        else:
            _check_unique(table, id_property)
            found = table.find(id_property, key, archived)
        record = None if found is None or found in table.hidden else table.records.get(found)
        return record if record is not None and bool(record.archived_ms) == archived else None

    def _lookup(
        self, table: Table, keys: list[str], id_property: str | None, archived: bool
    ) -> tuple[dict[int, Record], list[str]]:
        """Records by id, and the keys without one. Whether batch read follows merged-away ids is unverified."""
        found: dict[int, Record] = {}
        missing = []
        by_id = id_property in (None, "hs_object_id") and not self._config.batch_read_resolves_merged
        for key in dict.fromkeys(keys):
            merged_away = by_id and key.isdigit() and int(key) in table.merged
            record = None if merged_away else self._by_key(table, key, id_property, archived)
            if record is None:
                missing.append(key)
            else:
                found[record.id] = record
        return found, missing


def page_size(text: str | None, usual: int, maximum: int) -> int:
    """The limit parameter; 400 beyond the maximum (wording unverified)."""
    if text is None:
        return usual
    if not text.isdigit() or int(text) == 0:
        raise ApiError(400, f"limit must be a positive integer, not {text}")
    if int(text) > maximum:
        raise ApiError(400, f"The page size limit {text} exceeds maximum of {maximum}")
    return int(text)


def next_link(call: Call) -> str:
    """The next page's address up to its cursor, on the host the client used."""
    kept = "".join(f"{part}&" for part in call.query_string.split("&") if part and not part.startswith("after="))
    return f"{call.scheme}://{call.headers.get('Host', '')}{call.path}?{kept}"


def _cursor(text: str) -> int:
    if not text.isdigit():
        raise ApiError(400, f"Invalid paging cursor: {text}")
    return int(text)


def _check_unique(table: Table, name: str) -> None:
    prop = table.properties.get(name)
    if prop is None or not prop.unique:
        raise ApiError(400, f"Unable to perform read by non-unique property {name}")


def _identities(record: Record) -> int:
    """The ids a record is known by: its own and those merged into it."""
    return 1 + sum(map(bool, str(record.properties.get("hs_merged_object_ids") or "").split(";")))


def _batch_inputs(call: Call, maximum: int) -> list[dict[str, Any]]:
    inputs = call.members("inputs", dict)
    if not inputs:
        raise ApiError(400, "inputs must be a list that is not empty")
    if len(inputs) > maximum:
        raise ApiError(400, f"The maximum batch size is {maximum}, got {len(inputs)}")
    return inputs


def _missing_error(table: Table, missing: list[str]) -> dict[str, Any]:
    label = table.kind.label
    return {
        "status": "error",
        "category": "OBJECT_NOT_FOUND",
        "message": f"Could not get some {label} objects, they may be deleted or not exist. Check that ids are valid.",
        "context": {"ids": missing},
    }


def _shuffled(found: dict[int, Record]) -> list[Record]:
    """The records in an order that is stable but never the one asked for."""
    asked = list(found.values())
    mixed = sorted(asked, key=lambda record: record.id * 2_654_435_761 % 4_294_967_291)
    return mixed if mixed != asked else mixed[::-1]
