"""The objects endpoints that read: list, single, search and batch read."""

from __future__ import annotations

from answer import Answer, Page
from batches import BATCH_MAX, batch_answer, batch_inputs, missing_error, shuffled
from call import Call
from clock import Clock
from config import Config
from errors import ApiError, not_found
from lookup import by_key, check_unique, is_merged_away
from search import Query, SearchIndex
from store import Record, Table

LIST_LIMIT, LIST_MAX, LIST_MAX_HISTORY = 10, 100, 50
BATCH_MAX_HISTORY = 50  # that batches with history are limited as lists are is unverified


class ObjectsApi:
    """Handlers for reads below `/crm/objects/{version}/{type}`; each gets the call and the table of the type."""

    def __init__(self, config: Config, clock: Clock) -> None:
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
        renderer = table.renderer_for_text(query.get("properties"), past)
        page = Page(lambda: renderer.page(ids[:limit]))
        if len(ids) > limit:
            page.after, page.link = str(ids[limit]), next_link(call)
        return Answer(page=page, cache_key=(table.version, renderer.number, tuple(ids)))

    def read(self, call: Call, table: Table, id: str) -> Answer:
        """A single record; a merged-away id leads to the survivor, whose id the answer carries.

        That an archived record needs archived=true is unverified.
        """
        query = call.query
        id_property = query.get("idProperty")
        check_unique(table, id_property, "read")
        record = by_key(table, id, id_property, query.get("archived") == "true")
        if record is None:
            raise not_found()
        return Answer(body=table.renderer_for_text(query.get("properties"), self._past(call)).one(record))

    def search(self, call: Call, table: Table) -> Answer:
        """Search; archived records never appear, changes appear when the index lag has passed."""
        query = Query.parse(call.json(), len(call.body.decode(errors="replace")))
        index = self._indexes.get(table.kind.name)
        if index is None:
            index = self._indexes[table.kind.name] = SearchIndex(table)
        return index.answer(query)

    def batch_read(self, call: Call, table: Table) -> Answer:
        """Up to 100 records, not in the order asked for; missing ids are listed in one error of a 207."""
        body = call.json()
        past = call.members("propertiesWithHistory", str)
        keys = [str(item.get("id")) for item in batch_inputs(call, BATCH_MAX_HISTORY if past else BATCH_MAX)]
        archived = call.query.get("archived") == "true"
        id_property = body.get("idProperty")
        check_unique(table, id_property, "read")
        found, missing = self._lookup(table, keys, id_property, archived)
        names = call.members("properties", str) or None
        renderer = table.renderer(names, past if self._config.property_history else ())
        results = shuffled([(record.id, renderer.one(record)) for record in found.values()])
        errors = [missing_error(table.kind.label, missing)] if missing else []
        return batch_answer(results, errors, self._clock.now_ms())

    def _past(self, call: Call) -> str | None:
        """The properties to be shown with their history, unless the account gives none."""
        return call.query.get("propertiesWithHistory") if self._config.property_history else None

    def _lookup(
        self, table: Table, keys: list[str], id_property: str | None, archived: bool
    ) -> tuple[dict[int, Record], list[str]]:
        """Records by id, and the keys without one. Whether batch read follows merged-away ids is unverified."""
        found: dict[int, Record] = {}
        missing = []
        follow = self._config.batch_read_resolves_merged
        for key in dict.fromkeys(keys):
            away = not follow and is_merged_away(table, key, id_property)
            record = None if away else by_key(table, key, id_property, archived)
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
