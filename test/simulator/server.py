"""HTTP: requests come in through aiohttp, answers go out byte by byte as scripted."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import zlib
from collections import OrderedDict
from collections.abc import Hashable
from http import HTTPStatus
from typing import Any

from aiohttp import web

from answer import Answer, Page
from call import Call
from simulator import Outcome, Simulator

_MAX_LINE = 1 << 20  # request lines may be far longer than HubSpot takes, so that the 414 is ours
_MAX_BODY = 64 << 20
_WORTH_COMPRESSING = 256
_GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\4\xff"
_GZIP_END = struct.Struct("<II").pack
_POLL_SECONDS = 0.02
_SLOW_STEP_SECONDS = 0.05
_REASONS = {status.value: status.phrase for status in HTTPStatus}


class GzipCache:
    """Compressed results of list pages, valid as long as their key, which names the table's version.

    What follows the results differs from client to client, for it has a link; it is compressed each time.
    """

    def __init__(self, room: int) -> None:
        self._fronts: OrderedDict[Hashable, tuple[bytes, int, int]] = OrderedDict()  # deflated, checksum, length
        self._room = room

    def compressed(self, answer: Answer) -> bytes:
        """The gzip form of the body of an answer that has a cache key."""
        assert answer.page is not None
        packed, checksum, length = self._front(answer.cache_key, answer.page)
        rest = answer.page.rest()
        checksum = zlib.crc32(rest, checksum)
        return b"".join((_GZIP_HEADER, packed, _deflate(rest, zlib.Z_FINISH), _GZIP_END(checksum, length + len(rest))))

    def _front(self, key: Hashable, page: Page) -> tuple[bytes, int, int]:
        kept = self._fronts.get(key)
        if kept is None:
            front = page.front()
            # Flushed to a byte's edge, so that another piece can follow.
            kept = _deflate(front, zlib.Z_FULL_FLUSH), zlib.crc32(front), len(front)
            self._fronts[key] = kept
            self._room -= len(kept[0])
            while self._room < 0:
                self._room += len(self._fronts.popitem(last=False)[1][0])
        else:
            self._fronts.move_to_end(key)
        return kept


def _deflate(data: bytes, how: int) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush(how)


def _gzip(body: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return packer.compress(body) + packer.flush()


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """TLS that shows its certificate on every connection: none is resumed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.num_tickets = 0
    return context


class Server:
    """Binds the simulator to a loopback port."""

    def __init__(
        self,
        simulator: Simulator,
        cache_bytes: int,
        context: ssl.SSLContext | None = None,
        other: ssl.SSLContext | None = None,
    ) -> None:
        self._simulator = simulator
        self._cache = GzipCache(cache_bytes)
        self._context = context
        self._other = other
        self._others_left = 0  # how many connections see the other certificate
        self.requests_to_other = 0  # how many requests came over one of them
        self._reopening: asyncio.Task[None] | None = None
        if context is not None and other is not None:
            context.sni_callback = self._choose_certificate

    async def start(self, port: int) -> int:
        """Listen on 127.0.0.1 and return the port."""
        loop = asyncio.get_running_loop()

        def request_factory(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
            return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_MAX_BODY)

        self._protocol = web.Server(
            self._handle, request_factory=request_factory, access_log=None, max_line_size=_MAX_LINE, lingering_time=0
        )
        # Bound without listening, it keeps the port while nobody listens.
        self._holder = socket.socket()
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._holder.bind(("127.0.0.1", port))
        self._port: int = self._holder.getsockname()[1]
        await self._listen()
        return self._port

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            self._protocol, "127.0.0.1", self._port, ssl=self._context, backlog=1024, reuse_address=True
        )

    def connections(self) -> int:
        """How many connections are open."""
        return len(self._protocol.connections)

    def refuse(self, ms: int) -> None:
        """Let nobody connect for a while."""
        self._listener.close()
        if self._reopening is not None:
            self._reopening.cancel()
        self._reopening = asyncio.create_task(self._reopen(ms))

    async def _reopen(self, ms: int) -> None:
        await asyncio.sleep(ms / 1000)
        await self._listen()

    def show_other_certificate(self, connections: int) -> None:
        """Have the next connections see the other certificate."""
        self._others_left = connections

    def show_own_certificate(self) -> None:
        """Have connections see the right certificate again."""
        self._others_left = 0

    def _choose_certificate(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        if self._others_left > 0:
            self._others_left -= 1
            connection.context = self._other

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await request.read() if request.can_read_body else b""
        secured = request.transport.get_extra_info("ssl_object") if request.transport else None
        if secured and secured.context is self._other:
            self.requests_to_other += 1
        scheme = "https" if secured else "http"
        call = Call(request.method, request.raw_path, request.headers, body, scheme)
        outcome = await self._simulator.handle(call)
        return Reply(self._simulator, self, self._cache, call, outcome)


class Reply(web.StreamResponse):
    """Writes an answer to the connection itself, so that a fault can stop it anywhere."""

    def __init__(
        self, simulator: Simulator, server: Server, cache: GzipCache, call: Call, outcome: Outcome
    ) -> None:
        super().__init__()
        self._simulator = simulator
        self._server = server
        self._cache = cache
        self._call = call
        self._outcome = outcome
        self._keep = True

    @property
    def keep_alive(self) -> bool:
        """Whether the connection may serve another request."""
        return self._keep

    async def prepare(self, request: web.BaseRequest) -> None:
        """Send the answer, as far as it is to be sent."""
        self._keep = request.keep_alive
        transport = request.transport
        try:
            if transport is not None:
                await self._send(request, transport)
        finally:
            self._simulator.finish(self._outcome)

    async def write_eof(self, data: bytes = b"") -> None:
        """Everything was written by prepare."""

    async def _send(self, request: web.BaseRequest, transport: asyncio.Transport) -> None:
        delivery = self._outcome.answer.delivery
        if delivery.silent:
            await self._wait_for_client_to_leave(request)
        elif delivery.reset_after == -1:
            if delivery.other_certificates:
                self._server.show_other_certificate(delivery.other_certificates)
            if delivery.refuse_ms:
                self._server.refuse(delivery.refuse_ms)
            self._reset(transport)
        else:
            head, body = self._message()
            if delivery.reset_after is not None:
                await self._cut(transport, head + body[: delivery.reset_after])
            elif delivery.bytes_per_second is not None:
                await self._trickle(request, head, body, delivery.bytes_per_second)
            else:
                transport.write(head + body)
                if delivery.stream is not None:
                    await self._stream(request, transport)

    def _message(self) -> tuple[bytes, bytes]:
        """Status line and headers, and the body in its content encoding."""
        answer = self._outcome.answer
        headers = dict(answer.headers)
        accepted = "gzip" in self._call.headers.get("Accept-Encoding", "")
        wanted = accepted and answer.compress and self._simulator.config.gzip
        if wanted and answer.cache_key is not None:
            body = self._cache.compressed(answer)
            headers["Content-Encoding"] = "gzip"
        else:
            body = answer.payload()
            if wanted and len(body) >= _WORTH_COMPRESSING:
                body = _gzip(body)
                headers["Content-Encoding"] = "gzip"
        return self._head(answer, headers, len(body) + answer.delivery.stream_length), body

    def _head(self, answer: Answer, headers: dict[str, str], length: int) -> bytes:
        lines = [f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, 'Unknown')}"]
        if self._simulator.config.date_header:
            lines.append(f"Date: {self._simulator.clock.http_date()}")
        if answer.content_type is not None:
            lines.append(f"Content-Type: {answer.content_type}")
        if answer.status != 204:
            lines.append(f"Content-Length: {length}")
        if not self._keep:
            lines.append("Connection: close")
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")

    def _reset(self, transport: asyncio.Transport) -> None:
        """Close with RST instead of FIN."""
        self._keep = False
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()

    async def _cut(self, transport: asyncio.Transport, part: bytes) -> None:
        """Send a part, let it reach the client, then reset."""
        transport.write(part)
        while transport.get_write_buffer_size() and not transport.is_closing():
            await asyncio.sleep(_POLL_SECONDS)
        await asyncio.sleep(_POLL_SECONDS)
        self._reset(transport)

    async def _trickle(self, request: web.BaseRequest, head: bytes, body: bytes, rate: float) -> None:
        """Send the body at a number of bytes per second, at least one at a time."""
        size = max(1, int(rate * _SLOW_STEP_SECONDS))
        _write(request, head)
        for start in range(0, len(body), size):
            if not _write(request, body[start : start + size]):
                return
            await asyncio.sleep(size / rate)

    async def _stream(self, request: web.BaseRequest, transport: asyncio.Transport) -> None:
        """Send the stream's pieces no faster than the client takes them."""
        for piece in self._outcome.answer.delivery.stream or ():
            while transport.get_write_buffer_size() > len(piece):
                if not _connected(request):
                    return
                await asyncio.sleep(0.001)
            if not _write(request, piece):
                return

    async def _wait_for_client_to_leave(self, request: web.BaseRequest) -> None:
        self._keep = False
        while _connected(request):
            await asyncio.sleep(_POLL_SECONDS)


def _connected(request: web.BaseRequest) -> bool:
    transport = request.transport
    return transport is not None and not transport.is_closing()


def _write(request: web.BaseRequest, data: bytes) -> bool:
    """Write if the client is still there."""
    if not _connected(request):
        return False
    assert request.transport is not None
    request.transport.write(data)
    return True
