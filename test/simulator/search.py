"""The search endpoint: its limits, its filters, and an index that may lag behind the records."""

from __future__ import annotations

import json
import operator
import re
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from answer import Answer, Page
from call import list_member
from clock import parse_instant
from errors import ApiError
from store import Record, Table

MAX_GROUPS, MAX_FILTERS, MAX_TOTAL_FILTERS = 5, 6, 18
DEFAULT_LIMIT, MAX_LIMIT = 10, 200
MAX_BODY, MAX_OFFSET = 3_000, 10_000
_RESULTS_KEPT = 32
_FOREVER_MS = 1 << 60
_BY_ID, _BY_ID_DOWNWARDS = ("hs_object_id", False), ("hs_object_id", True)

Test = Callable[[Record], bool]
Filter = dict[str, Any]


@dataclass(frozen=True)
class Query:
    """A validated search request."""

    groups: list[list[Filter]]
    sort: tuple[str, bool] | None  # property, descending
    text: str
    limit: int
    offset: int
    names: tuple[str, ...] | None

    @staticmethod
    def parse(body: dict[str, Any], size: int) -> Query:
        """Check a request body against the documented limits; 400 beyond them (wordings unverified)."""
        if size > MAX_BODY:
            raise ApiError(400, f"The request body is longer than {MAX_BODY} characters")
        limit = _integer(body.get("limit", DEFAULT_LIMIT), "limit")
        offset = _integer(body.get("after") or 0, "after")
        if limit > MAX_LIMIT:
            raise ApiError(400, f"The page size limit {limit} exceeds maximum of {MAX_LIMIT}")
        if offset + limit > MAX_OFFSET:
            raise ApiError(400, f"Paging past {MAX_OFFSET} results is not supported")
        names = list_member(body, "properties", str)
        return Query(
            _groups(body), _sort(body), str(body.get("query") or ""), limit, offset, tuple(names) if names else None
        )


@dataclass(frozen=True)
class Found:
    """Matching records in the order of the sort, with their ids beside them."""

    ids: list[int]
    records: list[Record]
    as_stored: bool  # the index shows all of them as they are


class SearchIndex:
    """Search over one table; results are kept until something changes, so that paging costs little."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._kept: OrderedDict[str, Found] = OrderedDict()
        self._stamp = (0, 0)

    def answer(self, query: Query) -> Answer:
        """One page of a search. The total comes last, so that what comes before it can be kept compressed."""
        found, start, end = self._range(query)
        total = max(0, end - start)
        count = max(0, min(query.limit, total - query.offset))
        if query.sort == _BY_ID_DOWNWARDS:
            last = end - query.offset
            records = found.records[last - count : last][::-1]
        else:
            first = start + query.offset
            records = found.records[first : first + count]
        renderer = self._table.renderer(query.names)
        after = str(query.offset + query.limit) if query.offset + count < total and query.limit else None
        page = Page(lambda: [renderer.one(record) for record in records], after, tail={"total": total})
        ids = tuple(record.id for record in records)
        return Answer(page=page, cache_key=(self._table.version, renderer.number, ids) if found.as_stored else None)

    def _range(self, query: Query) -> tuple[Found, int, int]:
        """What is found, and the places in it between which the page is. Sorted by id it is upwards in any case."""
        groups, low, high = self._split_id_range(query)
        sort = _BY_ID if query.sort == _BY_ID_DOWNWARDS else query.sort
        found = self._found(groups, sort, query.text)
        start = 0 if low is None else bisect_right(found.ids, low)
        end = len(found.ids) if high is None else bisect_left(found.ids, high)
        return found, start, end

    def _split_id_range(self, query: Query) -> tuple[list[list[Filter]], int | None, int | None]:
        """Take `hs_object_id GT/LT` out of a single group sorted by id: those are cut out of the kept result."""
        low = high = None
        if len(query.groups) != 1 or query.sort not in (_BY_ID, _BY_ID_DOWNWARDS):
            return query.groups, low, high
        rest = []
        for item in query.groups[0]:
            if item["propertyName"] == "hs_object_id" and item["operator"] == "GT" and low is None:
                low = _number_value(item, "value")
            elif item["propertyName"] == "hs_object_id" and item["operator"] == "LT" and high is None:
                high = _number_value(item, "value")
            else:
                rest.append(item)
        return [rest], low, high

    def _found(self, groups: list[list[Filter]], sort: tuple[str, bool] | None, text: str) -> Found:
        stale = self._table.lag.stale()
        stamp = (self._table.version, self._table.lag.generation)
        if stamp != self._stamp:
            self._kept.clear()
            self._stamp = stamp
        key = json.dumps([groups, sort, text])
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = self._run(groups, sort, text, stale)
            if len(self._kept) > _RESULTS_KEPT:
                self._kept.popitem(last=False)
        return found

    def _run(
        self, groups: list[list[Filter]], sort: tuple[str, bool] | None, text: str, stale: dict[int, Any]
    ) -> Found:
        table = self._table
        tests = [[compile_filter(table, item) for item in group] for group in groups]
        records = table.records
        ids = self._candidates(groups)
        shown = [records[record_id] for record_id in ids if record_id not in stale]
        shown += [state for state in stale.values() if _is_shown(table, state)]
        for_text = _text_test(table, text)
        if tests and not (len(tests) == 1 and not tests[0]):
            shown = [r for r in shown if any(all(test(r) for test in group) for group in tests)]
        if for_text is not None:
            shown = [record for record in shown if for_text(record)]
        shown.sort(key=_sort_key(table, sort), reverse=bool(sort and sort[1]))
        return Found([record.id for record in shown], shown, not stale)

    def _candidates(self, groups: list[list[Filter]]) -> list[int]:
        """Live ids, narrowed by the modified date where the only group asks for it."""
        low, high = 0, _FOREVER_MS
        if len(groups) == 1:
            for item in groups[0]:
                if item["propertyName"] == self._table.kind.modified:
                    item_low, item_high = _instant_range(item)
                    low, high = max(low, item_low), min(high, item_high)
        if (low, high) == (0, _FOREVER_MS):
            return self._table.live.values
        return self._table.modified_between(low, high)


def _is_shown(table: Table, state: Record | None) -> bool:
    """Whether the state that a lagging index has of a record is found at all."""
    return state is not None and not state.archived_ms and state.id not in table.hidden


def _instant_range(item: Filter) -> tuple[int, int]:
    """The range of instants a filter can match at all; the filter itself is applied as well."""
    name = item["operator"]
    low, high = 0, _FOREVER_MS
    if name in ("GT", "GTE", "EQ", "BETWEEN"):
        low = max(0, _instant_value(item, "value"))
    if name in ("LT", "LTE", "EQ"):
        high = _instant_value(item, "value")
    if name == "BETWEEN":
        high = _instant_value(item, "highValue")
    return low, min(high, _FOREVER_MS)


# Request checks


def _integer(value: Any, name: str) -> int:
    text = str(value)
    if isinstance(value, bool) or not text.isdigit():
        raise ApiError(400, f"{name} must be an integer")
    return int(text)


def _groups(body: dict[str, Any]) -> list[list[Filter]]:
    groups = [list_member(group, "filters", dict) for group in list_member(body, "filterGroups", dict)]
    if len(groups) > MAX_GROUPS:
        raise ApiError(400, f"Too many filter groups: at most {MAX_GROUPS}")
    if any(len(group) > MAX_FILTERS for group in groups) or sum(map(len, groups)) > MAX_TOTAL_FILTERS:
        raise ApiError(400, f"Too many filters: at most {MAX_FILTERS} per group and {MAX_TOTAL_FILTERS} in total")
    for group in groups:
        for item in group:
            _check_filter(item)
    return groups


def _check_filter(item: Filter) -> None:
    name = item.get("operator")
    if name not in OPERATORS or not isinstance(item.get("propertyName"), str):
        raise ApiError(400, f"Invalid filter: {json.dumps(item)}")
    needed = {"BETWEEN": ("value", "highValue"), "IN": ("values",), "NOT_IN": ("values",)}.get(name, ("value",))
    if name not in ("HAS_PROPERTY", "NOT_HAS_PROPERTY") and any(item.get(field) is None for field in needed):
        raise ApiError(400, f"{name} needs {' and '.join(needed)}")
    if name in ("IN", "NOT_IN") and not isinstance(item["values"], list):
        raise ApiError(400, f"{name} needs a list of values")


def _sort(body: dict[str, Any]) -> tuple[str, bool] | None:
    """One sort, as an object or as a string with `-` for descending."""
    sorts = list_member(body, "sorts", (dict, str))
    if len(sorts) > 1:
        raise ApiError(400, "Only one sort is supported")
    if not sorts:
        return None
    if isinstance(sorts[0], str):
        return sorts[0].lstrip("-"), sorts[0].startswith("-")
    direction = sorts[0].get("direction", "ASCENDING")
    if direction not in ("ASCENDING", "DESCENDING") or not sorts[0].get("propertyName"):
        raise ApiError(400, f"Invalid sort: {json.dumps(sorts[0])}")
    return sorts[0]["propertyName"], direction == "DESCENDING"


# Reading records


def _number_getter(table: Table, name: str) -> Callable[[Record], float | int | None]:
    """The comparable value of a number, date or datetime property."""
    if name == "hs_object_id":
        return lambda record: record.id
    if name == table.kind.modified:
        return lambda record: record.modified_ms
    if name == table.kind.created:
        return lambda record: record.created_ms
    parse = parse_instant if table.properties[name].type in ("date", "datetime") else _parse_number
    return lambda record: _parsed(parse, table.value(record, name))


def _parsed(parse: Callable[[Any], float | int], value: Any) -> float | int | None:
    if value is None or value == "":
        return None
    try:
        return parse(value)
    except ValueError:
        return None


def _parse_number(value: Any) -> float | int:
    text = str(value)
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _text_getter(table: Table, name: str) -> Callable[[Record], str | None]:
    """Text is indexed in lower case, values of enumerations are kept as they are."""
    exact = _is_exact(table, name)

    def get(record: Record) -> str | None:
        value = table.value(record, name)
        if value is None or value == "":
            return None
        return str(value) if exact else str(value).lower()

    return get


def _sort_key(table: Table, sort: tuple[str, bool] | None) -> Callable[[Record], Any]:
    """Without a sort the oldest record comes first (unverified); records without value come first ascending."""
    if sort is None or sort[0] == table.kind.created or sort[0] not in table.properties:
        return lambda record: (record.created_ms, record.id)
    name = sort[0]
    if name == "hs_object_id":
        return lambda record: record.id
    getter = _getter(table, name)

    def key(record: Record) -> Any:
        value = getter(record)
        return (value is not None, value if value is not None else 0, record.id)

    return key


def _getter(table: Table, name: str) -> Callable[[Record], Any]:
    """The comparable value of any property, None where there is none."""
    return _number_getter(table, name) if _is_number(table, name) else _text_getter(table, name)


def _is_exact(table: Table, name: str) -> bool:
    return table.properties[name].type in ("enumeration", "bool")


def _is_number(table: Table, name: str) -> bool:
    return table.properties[name].type in ("number", "date", "datetime")


# Filters


def _number_value(item: Filter, field: str) -> int:
    text = str(item[field])
    if not text.lstrip("-").isdigit():
        raise ApiError(400, f"{text} is not a valid number for {item['propertyName']}")
    return int(text)


def _instant_value(item: Filter, field: str) -> int:
    """Dates are epoch milliseconds as text; a plain date is answered with 400."""
    text = str(item[field])
    if not text.lstrip("-").isdigit():
        raise ApiError(400, f"Invalid date value {text} for {item['propertyName']}: epoch milliseconds expected")
    return int(text)


def _compare_value(table: Table, item: Filter, field: str) -> float | int:
    if table.properties[item["propertyName"]].type in ("date", "datetime"):
        return _instant_value(item, field)
    try:
        return _parse_number(item[field])
    except ValueError:
        raise ApiError(400, f"{item[field]} is not a valid number for {item['propertyName']}") from None


def compile_filter(table: Table, item: Filter) -> Test:
    """A test for one filter.

    A property the type does not have silently matches nothing: so does `hs_lastmodifieddate` for contacts (known),
    other unknown names do so by assumption. Negative operators match records without a value (unverified).
    """
    name = item["propertyName"]
    prop = table.properties.get(name)
    if prop is None or prop.archived:
        return lambda record: False
    return OPERATORS[item["operator"]](table, name, item)


def _comparison(compare: Callable[[Any, Any], bool], missing: bool = False) -> Callable[[Table, str, Filter], Test]:
    def build(table: Table, name: str, item: Filter) -> Test:
        getter, bound = _operands(table, name, item, "value")

        def test(record: Record) -> bool:
            value = getter(record)
            return missing if value is None else compare(value, bound)

        return test

    return build


def _operands(table: Table, name: str, item: Filter, field: str) -> tuple[Callable[[Record], Any], Any]:
    """The getter for a property and the filter's value in the same form; EQ on text ignores case."""
    if _is_number(table, name):
        return _getter(table, name), _compare_value(table, item, field)
    text = str(item[field])
    return _getter(table, name), text if _is_exact(table, name) else text.lower()


def _between(table: Table, name: str, item: Filter) -> Test:
    getter, low = _operands(table, name, item, "value")
    high = _operands(table, name, item, "highValue")[1]

    def test(record: Record) -> bool:
        value = getter(record)
        return value is not None and low <= value <= high

    return test


def _membership(wanted: bool) -> Callable[[Table, str, Filter], Test]:
    """IN and NOT_IN; text values are compared as sent with the lower-cased index, so capitals match nothing."""

    def build(table: Table, name: str, item: Filter) -> Test:
        getter = _getter(table, name)
        if _is_number(table, name):
            values: set[Any] = {_compare_value(table, {**item, "value": value}, "value") for value in item["values"]}
        else:
            values = {str(value) for value in item["values"]}
        return lambda record: (getter(record) in values) == wanted

    return build


def _presence(wanted: bool) -> Callable[[Table, str, Filter], Test]:
    def build(table: Table, name: str, item: Filter) -> Test:
        return lambda record: (table.value(record, name) not in (None, "")) == wanted

    return build


_WORD = re.compile(r"\w+")


def _token(wanted: bool) -> Callable[[Table, str, Filter], Test]:
    """CONTAINS_TOKEN: whole words, `*` as wildcard; how HubSpot splits words exactly is unverified."""

    def build(table: Table, name: str, item: Filter) -> Test:
        pattern = str(item["value"]).lower()

        def test(record: Record) -> bool:
            return _has_token(str(table.value(record, name) or "").lower(), pattern) == wanted

        return test

    return build


def _has_token(text: str, pattern: str) -> bool:
    if "*" in pattern:
        return any(fnmatchcase(word, pattern) for word in (text, *text.split(), *_WORD.findall(text)))
    return bool(pattern) and set(_WORD.findall(pattern)) <= set(_WORD.findall(text))


def _text_test(table: Table, text: str) -> Test | None:
    """`query`: every word must begin a word of a searchable property (the exact rules are unverified)."""
    words = text.lower().split()
    if not words:
        return None
    names = table.kind.searchable

    def test(record: Record) -> bool:
        known = " ".join(str(table.value(record, name) or "") for name in names).lower()
        tokens = known.split() + _WORD.findall(known)
        return all(any(token.startswith(word) for token in tokens) for word in words)

    return test


OPERATORS: dict[str, Callable[[Table, str, Filter], Test]] = {
    "LT": _comparison(operator.lt),
    "LTE": _comparison(operator.le),
    "GT": _comparison(operator.gt),
    "GTE": _comparison(operator.ge),
    "EQ": _comparison(operator.eq),
    "NEQ": _comparison(operator.ne, missing=True),
    "BETWEEN": _between,
    "IN": _membership(True),
    "NOT_IN": _membership(False),
    "HAS_PROPERTY": _presence(True),
    "NOT_HAS_PROPERTY": _presence(False),
    "CONTAINS_TOKEN": _token(True),
    "NOT_CONTAINS_TOKEN": _token(False),
}
