"""Scripted faults: which request they meet and what becomes of its answer."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import answer_edits
from answer import Answer, dump, json_answer
from call import Call
from errors import ControlError, error_body
from limits import POLICIES, limit_answer

Produce = Callable[[], Answer]
Action = dict[str, Any]
_CHUNK = 1 << 20


class Matcher:
    """Counts the requests that fit a description and picks the nth of them and those that follow."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._method = spec.get("method")
        self._path = spec.get("path", "")
        self._body = str(spec.get("body", "")).encode()
        self._regex = _compiled(spec, "path_regex")
        self._body_regex = _compiled(spec, "body_regex")
        self._nth = int(spec.get("nth", 1))
        self._times = int(spec.get("times", 1))
        self.seen = self.hits = 0

    def hit(self, call: Call) -> bool:
        """Count a request if it matches; whether it is one of those meant."""
        if not self._fits(call):
            return False
        self.seen += 1
        past = self.seen - self._nth
        hit = past >= 0 and (self._times == 0 or past < self._times)
        self.hits += hit
        return hit

    def _fits(self, call: Call) -> bool:
        """Path and path_regex see the path with its query string, body and body_regex the body as it was sent."""
        if self._method and self._method.upper() != call.method:
            return False
        if self._path not in call.target or not _finds(self._regex, call.target):
            return False
        return self._body in call.body and _finds(self._body_regex, call.body.decode(errors="replace"))


def _compiled(spec: dict[str, Any], name: str) -> re.Pattern[str] | None:
    try:
        return re.compile(spec[name]) if spec.get(name) else None
    except re.error as error:
        raise ControlError(f"bad {name}: {error}") from None


def _finds(pattern: re.Pattern[str] | None, text: str) -> bool:
    return pattern is None or bool(pattern.search(text))


@dataclass
class Fault:
    """A fault as it was installed."""

    spec: dict[str, Any]
    matcher: Matcher
    memory: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What the fault does."""
        return str(self.spec["action"]["kind"])

    def describe(self) -> dict[str, Any]:
        """The fault as it was installed, the requests it has counted, and those of them that were meant."""
        return {**self.spec, "seen": self.matcher.seen, "hits": self.matcher.hits}


class FaultBook:
    """All installed faults; the first one that hits acts, every one counts."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._bodies: dict[str, bytes] = {}  # the last one of each kind of request, if a fault wants it

    def install(self, spec: dict[str, Any]) -> None:
        """Add a fault."""
        action = spec.get("action")
        if not isinstance(action, dict) or action.get("kind") not in KINDS:
            raise ControlError(f"action.kind must be one of {', '.join(sorted(KINDS))}")
        for name in _NEEDED.get(action["kind"], ()):
            if name not in action:
                raise ControlError(f"{action['kind']} needs {name}")
        if action["kind"] == "rate_limit" and action.get("policy", POLICIES[0]) not in POLICIES:
            raise ControlError(f"policy must be one of {', '.join(POLICIES)}")
        self._faults.append(Fault(spec, Matcher(spec)))

    def clear(self) -> None:
        """Remove all faults."""
        self._faults.clear()
        self._bodies.clear()

    def describe(self) -> list[dict[str, Any]]:
        """The installed faults and how many requests each has counted."""
        return [fault.describe() for fault in self._faults]

    def pick(self, call: Call) -> Fault | None:
        """The fault a request meets."""
        hits = [fault for fault in self._faults if fault.matcher.hit(call)]
        return hits[0] if hits else None

    def previous(self, call: Call) -> bytes | None:
        """The body last sent for the same request, whatever its cursor."""
        return self._bodies.get(_without_cursor(call))

    def remember(self, call: Call, answer: Answer) -> None:
        """Keep the body of a success for the fault that delivers it again."""
        if answer.status < 300 and any(fault.kind == "repeat_previous" for fault in self._faults):
            self._bodies[_without_cursor(call)] = answer.payload()


def _without_cursor(call: Call) -> str:
    return f"{call.method} {re.sub('[?&]after=[^&]*', '', call.target)}"


async def apply_fault(fault: Fault, call: Call, produce: Produce) -> Answer:
    """The answer under a fault. With `apply` in the action the request takes effect before it is lost."""
    action = fault.spec["action"]
    if fault.kind == "delay":
        await asyncio.sleep(action["ms"] / 1000)
        return produce()
    if action.get("apply") and fault.kind in _REPLACING:
        produce()
    return KINDS[fault.kind](fault, action, call, produce)


# Faults in place of the normal answer


def _status(fault: Fault, action: Action, call: Call, produce: Produce) -> Answer:
    body = dump(action["json"]) if "json" in action else str(action.get("body", "")).encode()
    answer = Answer(int(action.get("status", 500)), body, headers=dict(action.get("headers") or {}))
    answer.content_type = action.get("content_type", answer.content_type if "json" in action else "text/plain")
    return answer


_CATEGORIES = {
    400: "VALIDATION_ERROR", 401: "INVALID_AUTHENTICATION", 403: "MISSING_SCOPES", 404: "OBJECT_NOT_FOUND",
    409: "CONFLICT",
}  # fmt: skip


def _error(fault: Fault, action: Action, call: Call, produce: Produce) -> Answer:
    """HubSpot's own error shape; what stands in `more` is added to it, or with null taken away."""
    status = int(action["status"])
    category = action.get("category", _CATEGORIES.get(status))
    body = error_body(str(action.get("message", "scripted error")), category)
    body.update(action.get("more") or {})
    return json_answer({name: value for name, value in body.items() if value is not None}, status)


def _html(fault: Fault, action: Action, call: Call, produce: Produce) -> Answer:
    """HTML bodies occur on 5xx."""
    status = int(action.get("status", 502))
    head = f"<head><title>{status}: Web server is down</title></head>"
    text = f"<!DOCTYPE html>\n<html>{head}<body>&#x1f6a7;</body></html>\n"
    return Answer(status, text.encode(), content_type="text/html; charset=UTF-8")


def _reset(fault: Fault, action: Action, call: Call, produce: Produce) -> Answer:
    answer = Answer()
    answer.delivery.reset_after = -1
    return answer


def _refuse(fault: Fault, action: Action, call: Call, produce: Produce) -> Answer:
    """A reset after which nobody listens for a while."""
    answer = _reset(fault, action, call, produce)
    answer.delivery.refuse_ms = int(action["ms"])
    return answer


def _other_certificate(fault: Fault, action: Action, call: Call, produce: Produce) -> Answer:
    """A reset after which connections see another certificate."""
    answer = _reset(fault, action, call, produce)
    answer.delivery.other_certificates = int(action.get("connections", 1))
    return answer


def _hang(fault: Fault, action: Action, call: Call, produce: Produce) -> Answer:
    answer = Answer()
    answer.delivery.silent = True
    return answer


def _empty_body(fault: Fault, action: Action, call: Call, produce: Produce) -> Answer:
    return Answer(int(action.get("status", 200)))


def _redirect(fault: Fault, action: Action, call: Call, produce: Produce) -> Answer:
    return Answer(int(action.get("status", 302)), content_type=None, headers={"Location": str(action["location"])})


def _body(fault: Fault, action: Action, call: Call, produce: Produce) -> Answer:
    raw = base64.b64decode(action["raw_base64"]) if "raw_base64" in action else str(action.get("raw", "")).encode()
    answer = Answer(int(action.get("status", 200)), raw, compress=False)
    answer.content_type = action.get("content_type", answer.content_type)
    return answer


def _rate_limit(fault: Fault, action: Action, call: Call, produce: Produce) -> Answer:
    answer = limit_answer(action.get("policy", POLICIES[0]))
    if action.get("retry_after") is not None:
        answer.headers["Retry-After"] = str(action["retry_after"])
    return answer


_HEAD, _TAIL = b'{"results":[],"padding":"', b'"}'


def _huge_body(fault: Fault, action: Action, call: Call, produce: Produce) -> Answer:
    """Valid JSON of the given size, sent in pieces."""
    padding = max(0, int(action["bytes"]) - len(_HEAD) - len(_TAIL))
    answer = Answer(body=_HEAD, compress=False)
    answer.delivery.stream = _padding(padding)
    answer.delivery.stream_length = padding + len(_TAIL)
    return answer


def _padding(count: int) -> Iterator[bytes]:
    while count > 0:
        yield b"a" * min(count, _CHUNK)
        count -= _CHUNK
    yield _TAIL


def _gzip_bomb(fault: Fault, action: Action, call: Call, produce: Produce) -> Answer:
    """A small gzip body that unpacks to valid JSON of the given size, rounded up to whole megabytes."""
    packed = _bomb(max(1, -(-int(action["bytes"]) // _CHUNK)))
    return Answer(body=packed, compress=False, headers={"Content-Encoding": "gzip"})


def _bomb(blocks: int) -> bytes:
    """One compressed block repeated: a full flush makes deflate blocks independent of each other."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = packer.compress(_HEAD) + packer.flush(zlib.Z_FULL_FLUSH)
    block = b"a" * _CHUNK
    body = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    tail = packer.compress(_TAIL) + packer.flush()
    checksum = zlib.crc32(_HEAD)
    for _ in range(blocks):
        checksum = zlib.crc32(block, checksum)
    checksum = zlib.crc32(_TAIL, checksum)
    length = (len(_HEAD) + blocks * _CHUNK + len(_TAIL)) & 0xFFFFFFFF
    trailer = checksum.to_bytes(4, "little") + length.to_bytes(4, "little")
    return b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff" + head + body * blocks + tail + trailer


# Faults that spoil the normal answer


def _reset_mid_body(fault: Fault, action: Action, call: Call, produce: Produce) -> Answer:
    answer = produce()
    answer.delivery.reset_after = int(action.get("after_bytes", len(answer.payload()) // 8))
    return answer


def _slow(fault: Fault, action: Action, call: Call, produce: Produce) -> Answer:
    answer = produce()
    answer.delivery.bytes_per_second = float(action["bytes_per_second"])
    return answer


def _truncated_json(fault: Fault, action: Action, call: Call, produce: Produce) -> Answer:
    """HTTP is in order, the JSON ends in the middle."""
    answer = produce()
    body = answer.payload()
    answer.page, answer.body, answer.cache_key = None, body[: len(body) * 2 // 3], None
    return answer


def _wrong_content_type(fault: Fault, action: Action, call: Call, produce: Produce) -> Answer:
    answer = produce()
    answer.content_type = action.get("content_type", "text/plain")
    return answer


def _repeat_cursor(fault: Fault, action: Action, call: Call, produce: Produce) -> Answer:
    """The next page's cursor is the request's own, or a fixed one; a request without gets its first record's id."""
    answer = _changed_page(produce)
    if answer.page is not None:
        own = action.get("after") or call.cursor()
        answer.page.after = str(own) if own else _first_id(answer.page.items)
    return answer


def _stale_cursor_loop(fault: Fault, action: Action, call: Call, produce: Produce) -> Answer:
    """Cursors run A -> B -> A: whoever asks with another cursor than the first one is sent back to it."""
    answer = _changed_page(produce)
    own = call.cursor()
    if answer.page is not None and own is not None:
        first = fault.memory.setdefault("first", own)
        if own != first:
            answer.page.after = first
    return answer


def _repeat_previous(fault: Fault, action: Action, call: Call, produce: Produce) -> Answer:
    """What was sent last for such a request, in place of this one's answer; the first one gets its own."""
    answer = produce()
    if call.previous is not None:
        answer.page, answer.body, answer.cache_key, answer.status = None, call.previous, None, 200
    return answer


def _duplicate_record(fault: Fault, action: Action, call: Call, produce: Produce) -> Answer:
    answer = _changed_page(produce)
    if answer.page is not None:
        answer.page.items = [*answer.page.items, *answer.page.items[:1]]
    return answer


def _replace_page(fault: Fault, action: Action, call: Call, produce: Produce) -> Answer:
    answer = _changed_page(produce)
    if answer.page is not None:
        answer.page.results_text = str(action["results"]).encode(errors="surrogatepass")
    return answer


def _edit(fault: Fault, action: Action, call: Call, produce: Produce) -> Answer:
    """A genuine answer with other JSON in it: paths to remove, then paths to replace; a status of its own, too.

    `drop_inputs` keeps inputs of a batch from HubSpot's eyes.
    """
    if "drop_inputs" in action:
        call.drop_inputs(action["drop_inputs"])
    answer = produce()
    if not answer.payload():
        return answer
    body = json.loads(answer.payload())
    for path in action.get("remove") or []:
        answer_edits.remove(body, path)
    for path, value in (action.get("replace") or {}).items():
        answer_edits.replace(body, path, value)
    answer.page, answer.body, answer.cache_key = None, dump(body), None
    answer.status = int(action.get("status", answer.status))
    return answer


def _changed_page(produce: Produce) -> Answer:
    answer = produce()
    answer.cache_key = None
    return answer


def _first_id(items: list[bytes]) -> str | None:
    return str(json.loads(items[0])["id"]) if items else None


KINDS: dict[str, Callable[[Fault, Action, Call, Produce], Answer]] = {
    "status": _status,
    "error": _error,
    "html": _html,
    "reset": _reset,
    "refuse": _refuse,
    "other_certificate": _other_certificate,
    "hang": _hang,
    "empty_body": _empty_body,
    "redirect": _redirect,
    "body": _body,
    "rate_limit": _rate_limit,
    "huge_body": _huge_body,
    "gzip_bomb": _gzip_bomb,
    "reset_mid_body": _reset_mid_body,
    "slow": _slow,
    "truncated_json": _truncated_json,
    "wrong_content_type": _wrong_content_type,
    "repeat_cursor": _repeat_cursor,
    "stale_cursor_loop": _stale_cursor_loop,
    "duplicate_record": _duplicate_record,
    "repeat_previous": _repeat_previous,
    "replace_page": _replace_page,
    "edit": _edit,
    "delay": lambda fault, action, call, produce: produce(),
}
_REPLACING = {
    "status", "error", "html", "reset", "refuse", "other_certificate", "hang", "empty_body", "redirect", "body",
    "rate_limit", "huge_body", "gzip_bomb",
}  # fmt: skip
_NEEDED = {
    "error": ("status",),
    "redirect": ("location",),
    "refuse": ("ms",),
    "slow": ("bytes_per_second",),
    "huge_body": ("bytes",),
    "gzip_bomb": ("bytes",),
    "replace_page": ("results",),
    "delay": ("ms",),
}
