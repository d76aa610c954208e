"""What all batch requests have in common: their inputs, their answers, their errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from answer import Answer, Page
from call import Call
from clock import iso_instant
from errors import ApiError

BATCH_MAX = 100

Item = tuple[int, bytes]  # a record's id and the JSON of its result


def batch_inputs(call: Call, maximum: int = BATCH_MAX) -> list[dict[str, Any]]:
    """The inputs of a batch; 400 for none and for too many."""
    inputs = call.members("inputs", dict)
    if not inputs:
        raise ApiError(400, "inputs must be a list that is not empty")
    if len(inputs) > maximum:
        raise ApiError(400, f"The maximum batch size is {maximum}, got {len(inputs)}")
    return inputs


def batch_answer(items: Sequence[bytes], errors: Sequence[dict[str, Any]], now_ms: int, status: int = 200) -> Answer:
    """What has become of a batch; with errors it is a 207."""
    page = Page(list(items))
    now = iso_instant(now_ms)
    page.head = {"status": "COMPLETE"}
    page.tail = {"startedAt": now, "completedAt": now}
    if errors:
        page.tail.update(numErrors=len(errors), errors=list(errors))
    return Answer(207 if errors else status, page=page)


def shuffled(items: Sequence[Item]) -> list[bytes]:
    """The results in an order that is stable but never the one asked for."""
    mixed = sorted(items, key=lambda item: item[0] * 2_654_435_761 % 4_294_967_291)
    return [text for _, text in (mixed if mixed != list(items) else mixed[::-1])]


def missing_error(label: str, ids: list[str], trace: str | None = None) -> dict[str, Any]:
    """The error that lists ids without a record."""
    error = {
        "status": "error",
        "category": "OBJECT_NOT_FOUND",
        "message": f"Could not get some {label} objects, they may be deleted or not exist. Check that ids are valid.",
        "context": {"ids": ids},
    }
    return error if trace is None else traced(error, trace)


def refusal_error(refusal: ApiError, **context: list[str]) -> dict[str, Any]:
    """One input's refusal as an item of a batch's errors."""
    error = {name: value for name, value in refusal.body.items() if name != "correlationId"}
    error["context"] = {**error.get("context", {}), **context}
    return error


def traced(error: dict[str, Any], trace: str) -> dict[str, Any]:
    """An error with the trace id of the input that it is about."""
    return {**error, "context": {**error["context"], "objectWriteTraceId": [trace]}}
