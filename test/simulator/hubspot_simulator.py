#!/usr/bin/python3
"""A stand-in for HubSpot's API on loopback; see README.md."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import os
import signal
from dataclasses import fields

from config import Config, DataOptions
from server import Server, tls_context
from simulator import Simulator

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run until SIGTERM, or until the parent dies."""
    arguments = parse_arguments()
    # Nothing needs saving, so leave at once, whatever requests hang.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    if not arguments.stay:
        die_with_parent(os.getppid())
    simulator = Simulator(config_from(arguments), data_options_from(arguments))
    gc.collect()
    gc.freeze()  # millions of records need no further look
    try:
        asyncio.run(serve(simulator, arguments))
    except KeyboardInterrupt:
        pass


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="HubSpot simulator", allow_abbrev=False)
    parser.add_argument("--port", type=int, default=0, help="0 lets the kernel choose")
    for option in fields(DataOptions):
        parser.add_argument(f"--{option.name}", type=int, default=option.default)
    parser.add_argument("--token", default="test-token")
    parser.add_argument("--latency-ms", type=float, default=0)
    parser.add_argument("--limits", choices=("on", "off"), default="off")
    parser.add_argument("--search-lag-ms", type=int, default=0)
    parser.add_argument("--gzip", choices=("on", "off"), default="on")
    parser.add_argument("--page-cache-mb", type=int, default=128, help="compressed pages kept ready")
    parser.add_argument("--certificate", help="PEM file; serves TLS")
    parser.add_argument("--key", help="PEM file of the certificate's key")
    parser.add_argument("--other-certificate", help="PEM file with certificate and key that a fault shows instead")
    parser.add_argument("--control-port", type=int, help="a second port without TLS that no fault closes; 0 as above")
    parser.add_argument("--stay", action="store_true", help="outlive the parent process")
    arguments = parser.parse_args()
    if bool(arguments.certificate) != bool(arguments.key):
        parser.error("--certificate and --key belong together")
    return arguments


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGTERM when the parent dies, and notice if it is dead already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(0)


def config_from(arguments: argparse.Namespace) -> Config:
    """The settings of the start."""
    return Config(
        latency_ms=arguments.latency_ms,
        limits=arguments.limits == "on",
        search_lag_ms=arguments.search_lag_ms,
        token=arguments.token,
        gzip=arguments.gzip == "on",
    )


def data_options_from(arguments: argparse.Namespace) -> DataOptions:
    """Seed and sizes of the data."""
    return DataOptions(**{option.name: getattr(arguments, option.name) for option in fields(DataOptions)})


async def serve(simulator: Simulator, arguments: argparse.Namespace) -> None:
    """Listen, say where, and serve for ever."""
    context = tls_context(arguments.certificate, arguments.key) if arguments.certificate else None
    other = tls_context(arguments.other_certificate, arguments.other_certificate) if arguments.other_certificate else None
    cache_bytes = arguments.page_cache_mb << 20
    server = Server(simulator, cache_bytes, context, other)
    port = await server.start(arguments.port)
    simulator.count_connections = server.connections
    simulator.count_requests_to_other = lambda: server.requests_to_other
    simulator.show_own_certificate = server.show_own_certificate
    line = f"listening on {'https' if context else 'http'}://127.0.0.1:{port}"
    if arguments.control_port is not None:
        control_port = await Server(simulator, cache_bytes).start(arguments.control_port)
        line += f" control http://127.0.0.1:{control_port}"
    print(line, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    main()
