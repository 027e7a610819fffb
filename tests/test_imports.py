"""The layers of the design, read from the imports: who may know whom, and what importing ``durably`` brings along."""

import ast
import functools
import graphlib
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "durably"
ADAPTERS = {
    "flask": {"flask", "werkzeug"},
    "django": {"django", "asgiref", "django_tasks"},
    "fast_api": {"fastapi", "starlette"},
    "starlette": {"starlette"},
    "litestar": {"litestar"},
    "quart": {"quart", "werkzeug"},
    "aiohttp": {"aiohttp"},
    "sanic": {"sanic"},
    "tornado": {"tornado"},
    "asgi": set[str](),
    "wsgi": set[str](),
    "digital_ocean": set[str](),
    "aws_lambda": set[str](),
    "google_cloud": {"flask"},
}
ON_OTHERS = {
    "fast_api": ("durably.starlette",),
    "starlette": ("durably.asgi",),
    "litestar": ("durably.asgi",),
    "quart": ("durably.asgi",),
    "google_cloud": ("durably.flask",),
    "django": (
        "durably.context",
        "durably.engine_client",
        "durably.events",
        "durably.io.http_client",
        "durably.protocol.errors",
        "durably.protocol.options",
    ),
}
"""What adapters import too: endpoints of others, and what the backend of Django's tasks needs."""
FRAMEWORKS = set[str]().union(*ADAPTERS.values()) | {"starlette", "werkzeug", "aiohttp", "uvicorn"}
OUTSIDE = {
    "aiohttp",
    "concurrent.futures",
    "http",
    "http.client",
    "httpx",
    "multiprocessing",
    "os",
    "random",
    "requests",
    "secrets",
    "selectors",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "urllib.request",
    "urllib3",
    "uuid",
}
"""Modules by which code reaches a clock, chance, settings, files, threads or the network."""


def modules(*parts: str) -> list[Path]:
    """The files of a subpackage, or of the whole package."""
    found = sorted((PACKAGE.joinpath(*parts)).rglob("*.py"))
    assert found
    return found


@functools.cache
def imports(path: Path, *, also_for_types: bool = False) -> list[str]:
    """The modules that a file imports, anywhere in it; of ``from a import b`` both ``a`` and ``a.b``."""
    found: list[str] = []
    for node in _runtime_nodes(ast.parse(path.read_text()), also_for_types):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = _base(node, path)
            found += (module, *(f"{module}.{alias.name}" for alias in node.names))
    return found


def _runtime_nodes(tree: ast.AST, also_for_types: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not also_for_types:
            continue
        yield node
        yield from _runtime_nodes(node, also_for_types)


def is_within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def violations(files: list[Path], is_allowed: Callable[[str], bool]) -> list[str]:
    return [
        f"{file.relative_to(PACKAGE)} imports {module}"
        for file in files
        for module in imports(file, also_for_types=True)
        if not is_allowed(module)
    ]


def is_ours(module: str) -> bool:
    return is_within(module, "durably")


def module_of(file: Path) -> str:
    parts = ["durably", *file.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files_imported(file: Path, files: Collection[str]) -> set[str]:
    """The modules of ours that a file names. ``from a import b`` names ``a.b`` if that is a module, otherwise ``a``."""
    names = [name for node in ast.walk(ast.parse(file.read_text())) for name in _names(node, file)]
    found = {f"{module}.{name}" if f"{module}.{name}" in files else module for module, name in names}
    return found & set(files) - {module_of(file)}


def _names(node: ast.AST, file: Path) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Import):
        yield from ((alias.name, "") for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from ((_base(node, file), alias.name) for alias in node.names)


def _base(node: ast.ImportFrom, file: Path) -> str:
    package = ["durably", *file.relative_to(PACKAGE).parent.parts]
    base = package[: len(package) - node.level + 1] if node.level else []
    return ".".join([*base, *([node.module] if node.module else [])])


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """The nodes of one cycle, or an empty list."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_imports_of_files_have_no_cycle() -> None:
    files = {module_of(file): file for file in modules()}
    assert cycle_in({module: files_imported(file, files) for module, file in files.items()}) == []


def test_a_cycle_is_found() -> None:
    assert set(cycle_in({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}})) == {"b", "c"}


def test_protocol_imports_nothing_of_ours() -> None:
    assert violations(modules("protocol"), lambda m: not is_ours(m) or is_within(m, "durably.protocol")) == []


def test_execution_imports_protocol_only() -> None:
    allowed = ("durably.protocol", "durably.execution")
    assert violations(modules("execution"), lambda m: not is_ours(m) or is_within(m, *allowed)) == []


def test_protocol_and_execution_reach_nothing_outside() -> None:
    """One module imports ``sys``, for where a coroutine was created and what a thread executes."""
    files = modules("protocol") + modules("execution")
    found = violations(files, lambda m: m not in OUTSIDE and not is_within(m, *FRAMEWORKS))
    assert found == [
        "protocol/call.py imports uuid",  # for a hash
        "execution/asyncio_compat.py imports sys",
    ]


def test_the_core_of_the_engine_reaches_nothing_outside() -> None:
    pure = modules("engine", "core")
    assert violations(pure, lambda m: m not in OUTSIDE | {"asyncio"} and not is_within(m, *FRAMEWORKS)) == []


def test_the_engine_knows_apps_by_the_protocol_only() -> None:
    allowed = ("durably.engine", "durably.protocol")
    # Its lists use search attributes, which a Temporal server must know; private parts of temporalio are in one module.
    of_temporal = re.compile(
        r"engine/temporal/(index.py imports durably.temporal.namespace|"
        r".* imports durably.temporal.compat)"
    )
    found = violations(modules("engine"), lambda m: not is_ours(m) or is_within(m, *allowed))
    assert [each for each in found if not of_temporal.match(each)] == []


def test_the_core_of_the_engine_imports_the_protocol_only() -> None:
    allowed = ("durably.engine.core", "durably.engine.check_packages", "durably.protocol")
    found = violations(
        modules("engine", "core"), lambda m: not is_ours(m) or m == "durably.engine" or is_within(m, *allowed)
    )
    assert found == []


def test_the_model_imports_no_store() -> None:
    stores = ("durably.engine.sqlite", "durably.engine.temporal", "durably.engine.log", "sqlite3", "temporalio")
    assert violations(modules("engine", "model"), lambda m: not is_within(m, *stores)) == []


def test_the_api_knows_no_engine() -> None:
    engines = ("durably.engine.sqlite", "durably.engine.temporal", "durably.engine.log", "sqlite3", "temporalio")
    assert violations(modules("engine", "api"), lambda m: not is_within(m, *engines)) == []


def test_the_dashboard_imports_no_web_framework() -> None:
    files = [*modules("engine", "api", "dashboard"), PACKAGE / "dashboard.py"]
    assert violations(files, lambda m: not is_within(m, *FRAMEWORKS)) == []


def test_engines_do_not_import_each_other() -> None:
    for engine, other in (("sqlite", "temporal"), ("temporal", "sqlite")):
        assert violations(modules("engine", engine), lambda m, o=other: not is_within(m, f"durably.engine.{o}")) == []


TRACING_OF_ENGINES = [PACKAGE / "otel" / "engine.py"]
"""The modules that report an engine's spans, for engines in the app's process and for the command line."""


def test_the_sdk_knows_no_engine_of_ours() -> None:
    """Users import what they give to a client in place of an engine over HTTP (``durably.engines``).

    The client uses the declarations of operations.
    """
    declarations = ("asks.py", "client.py", "engine_client.py", "runs.py")
    others = ("engine", "embedded", "testing", "cli", "dashboard.py", "__init__.py", *declarations)
    sdk = [file for file in modules() if file.relative_to(PACKAGE).parts[0] not in others]
    sdk = [file for file in sdk if file not in TRACING_OF_ENGINES]
    ours = ("durably.engine", "durably.embedded", "durably.testing", "durably.cli")
    assert violations(sdk, lambda m: not is_within(m, *ours)) == []


def test_in_process_mode_knows_the_engine_and_comm() -> None:
    allowed = (
        "durably.functions",
        "durably.comm",
        "durably.embedded",
        "durably.engine",
        "durably.errors",
        "durably.events",
        "durably.execution",
        "durably.engines",
        "durably.io",
        "durably.protocol",
        "durably.settings",
        "durably.values.outputs",
    )
    on_temporal = [file for file in modules("embedded") if file.stem.startswith("temporal_")]
    others = [file for file in modules("embedded") if file not in on_temporal]
    assert violations(others, lambda m: not is_ours(m) or is_within(m, *allowed)) == []
    assert violations(others, lambda m: not is_within(m, "durably.engine.temporal", "temporalio")) == []
    allowed = (*allowed, "durably.temporal")
    assert violations(on_temporal, lambda m: not is_ours(m) or is_within(m, *allowed)) == []


def test_testing_knows_no_adapter_and_no_command_line() -> None:
    unknown = ("durably.cli", *(f"durably.{adapter}" for adapter in ADAPTERS), *FRAMEWORKS - {"django"})
    assert violations(modules("testing"), lambda m: not is_within(m, *unknown)) == []


def files_of(adapter: str) -> list[Path]:
    return modules("django") if adapter == "django" else [PACKAGE / f"{adapter}.py"]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_knows_its_framework_and_comm(adapter: str) -> None:
    ours = (
        "durably.client",
        "durably.comm",
        f"durably.{adapter}",
        "durably.browser_streams",
        "durably.dashboard",
        "durably.endpoints",
        "durably.web.django",
        "durably.errors",
        "durably.execution.step",
        "durably.functions",
        "durably.engines",
        "durably.io.background_loop",
        "durably.outbox",
        "durably.protocol.events",
        "durably.web",
        "durably.settings",
        "durably.webhooks",
        *ON_OTHERS.get(adapter, ()),
    )

    def is_allowed(module: str) -> bool:
        if is_ours(module):
            return is_within(module, *ours)
        return is_within(module, *ADAPTERS[adapter]) or module.partition(".")[0] in sys.stdlib_module_names

    assert violations(files_of(adapter), is_allowed) == []


def test_nothing_below_an_adapter_knows_one() -> None:
    adapters = [f"durably.{adapter}" for adapter in ADAPTERS]
    below = [
        file
        for file in modules()
        if file.stem not in ADAPTERS
        and "django" not in file.parent.parts
        and file.relative_to(PACKAGE).parts[0] not in ("testing", "cli")
    ]
    assert violations(below, lambda m: not is_within(m, *adapters, *FRAMEWORKS - {"aiohttp", "uvicorn"})) == []


def test_requests_and_responses_of_a_framework_know_no_other_and_no_server_of_ours() -> None:
    for file in modules("web"):
        frameworks = {"__init__": set[str](), "starlette": {"starlette"}}.get(file.stem) or ADAPTERS.get(
            file.stem, set()
        )
        others = FRAMEWORKS - frameworks
        assert violations([file], lambda m, others=others: not is_within(m, *others)) == []
    allowed = ("durably.errors", "durably.io", "durably.protocol.limits", "durably.web")
    assert violations(modules("web"), lambda m: not is_ours(m) or is_within(m, *allowed)) == []


def test_adapters_of_temporal_import_no_other_and_the_gateway_imports_none() -> None:
    adapters = {f"durably.temporal.{adapter}" for adapter in ADAPTERS}
    for adapter in ("flask", "fast_api", "starlette", "tornado"):
        # FastAPI's requests, responses and exception handlers are Starlette's.
        own = {f"durably.temporal.{each}" for each in (adapter, *(["starlette"] if adapter == "fast_api" else []))}
        others = adapters - own
        assert violations([PACKAGE / "temporal" / f"{adapter}.py"], lambda m, o=others: not is_within(m, *o)) == []
    gateway = (
        "durably.execution",
        "durably.io.background_loop",
        "durably.io.http_client",
        "durably.protocol.headers",
        "durably.protocol.options",
        "durably.temporal",
        "durably.web",
    )
    assert violations(modules("temporal", "gateway"), lambda m: not is_ours(m) or is_within(m, *gateway)) == []
    core = [file for file in modules("temporal") if "django" not in file.parts and file.stem not in ADAPTERS]
    assert violations(core, lambda m: not is_within(m, "durably.engine", "durably.comm")) == []


COMPAT = PACKAGE / "temporal" / "compat.py"
PRIVATE_TEXT = ("__temporal", "_Definition", "_defn", "temporalio.bridge")
COMPAT_MODULES = {
    "execution/asyncio_compat.py",
    "functions/inngest_compat.py",
    "temporal/compat.py",
    "web/aiohttp.py",
    "web/django.py",
    "web/flask.py",
    "web/sanic.py",
}
"""The modules that may use private parts of other libraries: one for each library."""
OTHER_PRIVATE_PARTS = {
    "cli/app_server.py": {"os._exit"},  # documented
    "temporal/worker/process.py": {"os._exit"},
    "temporal/tornado.py": {"super()._execute"},  # Tornado has no public hook around a whole request
    # Imports that are not done, and the exit before thread pools end; tested in tests/embedded/test_server_start.py.
    "embedded/server_start.py": {
        "getattr(getattr(module, '__spec__', None), '_initializing', False)",
        "getattr(threading, '_register_atexit', atexit.register)",
    },
    # Celery makes its result backend and its fixups from names; tested in tests/integrations/test_celery.py.
    "integrations/celery.py": {"self.app._backend", "self.app._fixups"},
    # LangGraph has no public names of what it gives to a node; tested in tests/integrations/test_langgraph.py.
    "integrations/langgraph.py": {
        f"langgraph._internal._constants.{name}"
        for name in ("CONF", "CONFIG_KEY_CALL", "CONFIG_KEY_SCRATCHPAD", "CONFIG_KEY_SEND")
    },
    # The SDK has no hooks for tools of agents; tested in tests/integrations/test_openai_agents.py.
    "integrations/openai_agents.py": {"input._current_agent"},
    "integrations/openai_steps.py": {
        "agents.tool._FailureHandlingFunctionToolInvoker",
        "invoker._invoke_tool_impl",
        "tool._is_agent_tool",
    },
}
"""Parts that are public despite their names, or that a base class calls."""


def private_parts_of_temporalio(source: str) -> Iterator[str]:
    """Private imports of ``temporalio``, private attributes that no module of ours defines, and attributes set on
    objects that are not the module's own."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names if is_private_of_temporalio(alias.name))
            case ast.ImportFrom(module=str(module), names=names, level=0):
                found = (f"{module}.{alias.name}" for alias in names)
                yield from (name for name in found if is_private_of_temporalio(name))
            case ast.Attribute(attr=name) if name.startswith("_") and not name.endswith("__"):
                if name not in {"_execute", "_exit"} | own_private_names():
                    yield f".{name}"
            case ast.Call(func=ast.Name("setattr"), args=[target, *_]):
                if not (isinstance(target, ast.Name) and target.id.lstrip("_")[:1].isupper()):
                    yield ast.unparse(node)
            case ast.Constant(value=str(text)) if text.startswith(PRIVATE_TEXT):
                yield repr(text)


def is_private_of_temporalio(module: str) -> bool:
    first, *rest = module.split(".")
    return first == "temporalio" and any(part.startswith("_") or part == "bridge" for part in rest)


@functools.cache
def own_private_names() -> frozenset[str]:
    """Private functions, classes, attributes of ``self`` and module variables that the package defines."""
    names = set[str]()
    for file in modules():
        if str(file.relative_to(PACKAGE)) in COMPAT_MODULES:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    names.add(name)
                case ast.Attribute(value=ast.Name("self"), attr=name, ctx=ast.Store()):
                    names.add(name)
                case ast.Name(id=name, ctx=ast.Store()):  # variables, and the fields of structs
                    names.add(name)
    return frozenset(name for name in names if name.startswith("_"))


def test_one_module_touches_the_private_parts_of_temporalio() -> None:
    files = [
        file
        for file in modules()
        if file != COMPAT and any(is_within(module, "temporalio") for module in imports(file, also_for_types=True))
    ]
    assert len(files) > 30
    found = {str(file): list(private_parts_of_temporalio(file.read_text())) for file in files}
    assert {file: parts for file, parts in found.items() if parts} == {}


@pytest.mark.parametrize(
    "code",
    [
        "from temporalio.workflow import _Definition",
        "import temporalio.bridge.client",
        "from temporalio.client._impl import anything",
        "activity._Definition",
        "WorkflowExecutionStatus._missing_ = None",
        "setattr(client.workflow_service, name, call)",
        'getattr(method, f"__temporal_{kind}_definition")',
    ],
)
def test_a_private_part_of_temporalio_is_found(code: str) -> None:
    assert list(private_parts_of_temporalio(code))


def private_parts_of_others(source: str) -> Iterator[str]:
    """Private modules, names and attributes that no module of ours defines."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names if is_private(alias.name))
            case ast.ImportFrom(module=str(module), names=names, level=0) if not is_ours(module):
                yield from (f"{module}.{alias.name}" for alias in names if is_private(f"{module}.{alias.name}"))
            case ast.Attribute(value=ast.Call(func=ast.Name("super")), attr=name) if is_private(name):
                yield ast.unparse(node)
            case ast.Attribute(attr=name) if is_private(name) and name not in own_private_names():
                yield ast.unparse(node)
            case ast.Call(func=ast.Name("getattr" | "hasattr" | "setattr"), args=[_, ast.Constant(str(name)), *_]):
                if is_private(name) and name not in own_private_names():
                    yield ast.unparse(node)


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


def test_private_parts_of_other_libraries_stay_in_compat_modules() -> None:
    files = {str(file.relative_to(PACKAGE)): file for file in modules()}
    assert set(files) >= COMPAT_MODULES
    found = {
        name: set(private_parts_of_others(file.read_text())) - OTHER_PRIVATE_PARTS.get(name, set())
        for name, file in files.items()
        if name not in COMPAT_MODULES
    }
    assert {name: parts for name, parts in found.items() if parts} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import werkzeug._reloader",
        "from werkzeug._reloader import run_with_reloader",
        "asyncio._get_running_loop()",
        "getattr(task, '_fut_waiter', None)",
        "flask.request._get_current_object()",
    ],
)
def test_a_private_part_of_another_library_is_found(code: str) -> None:
    assert list(private_parts_of_others(code))


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_importing_durably_brings_no_framework_no_engine_and_no_pydantic() -> None:
    done = python("import durably, sys; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    unwanted = (
        *FRAMEWORKS,
        "pydantic",
        "nacl",
        "durably.encryption",
        "durably.engine",
        "durably.cli",
        "durably.testing",
        "lark",
        "ulid",
        "re2",
        "temporalio",
    )
    assert [module for module in loaded if is_within(module, *unwanted)] == []
    assert [f"durably.{adapter}" for adapter in ADAPTERS if f"durably.{adapter}" in loaded] == []


def test_handles_over_http_need_no_package_of_an_engine() -> None:
    packages = ["aiohttp", "click", "jinja2", "lark", "prometheus_client", "re2", "ulid", "yarl"]
    use = """
from durably import Client, Run
from durably.errors import TransportError
client = Client(app_id="shop", is_production=False, engine="http://127.0.0.1:9")
try:
    client.run("01J0000000ABCDEFGHJKMNPQRS").status_sync()
except TransportError:
    print("no engine answers")
"""
    done = python(f"import sys\nfor name in {packages}: sys.modules[name] = None\n{use}")
    assert (done.stdout, done.stderr) == ("no engine answers\n", "")


def test_the_simulator_of_digital_ocean_needs_no_engine() -> None:
    done = python("from durably.testing import DigitalOceanSimulator; import sys; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert [module for module in done.stdout.split() if is_within(module, "durably.engine", "aiohttp", "pytest")] == []


def test_pytest_loads_its_plugin_without_durably() -> None:
    done = python("import pytest_durably, sys; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert [module for module in done.stdout.split() if is_ours(module)] == []


def test_importing_durably_starts_nothing() -> None:
    done = python("import durably, threading; print(threading.active_count())")
    assert done.stdout.strip() == "1", done.stderr


MISSING = [
    ("import durably.flask", "flask", "durably[flask]"),
    ("import durably.django", "django", "durably[django]"),
    ("import durably.fast_api", "fastapi", "durably[fast-api]"),
    ("import durably.litestar", "litestar", "durably[litestar]"),
    ("import durably.quart", "quart", "durably[quart]"),
    ("import durably.aiohttp", "aiohttp", "durably[aiohttp]"),
    ("import durably.sanic", "sanic", "durably[sanic]"),
    ("import durably.tornado", "tornado", "durably[tornado]"),
    ("import durably.google_cloud", "flask", "durably[google-cloud]"),
    ("import durably.encryption", "nacl", "durably[encryption]"),
    ("import durably; durably.PydanticSerializer()", "pydantic", "durably[pydantic]"),
    ("import durably.cli; durably.cli.main()", "click", "durably[engine]"),
    ("import durably.engine.sqlite.engine", "aiohttp", "durably[engine]"),
    ("import durably; durably.Embedded('x.db')", "aiohttp", "durably[engine]"),
    ("import durably; durably.TemporalEngine()", "aiohttp", "durably[engine]"),
    ("import durably; durably.TemporalEngine()", "temporalio", "durably[engine,temporal]"),
    ("import durably.engine.sqlite.engine", "prometheus_client", "durably[engine]"),
    ("import durably.engine.core.machine", "re2", "durably[engine]"),
    ("import durably.dashboard", "jinja2", "durably[engine]"),
    ("import durably.temporal", "temporalio", "durably[temporal]"),
    ("import durably.temporal.gateway", "pydantic", "durably[temporal]"),
    ("import durably.temporal.encryption", "cryptography", "durably[temporal-encryption]"),
    ("import durably.temporal.flask", "flask", "durably[flask,temporal]"),
    ("import durably.temporal.django", "django", "durably[django,temporal]"),
    ("import durably.temporal.fast_api", "fastapi", "durably[fast-api,temporal]"),
    ("import durably.temporal.starlette", "starlette", "durably[starlette,temporal]"),
    ("import durably.temporal.tornado", "tornado", "durably[tornado,temporal]"),
    ("from durably.testing import TestEngine", "aiohttp", "durably[engine]"),
]


IMPORT_WITHOUT = """
import importlib, os, sys, traceback

class Missing:
    def __init__(self, package):
        self.package = package
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def run(package, code):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
    sys.meta_path.insert(0, Missing(package))
    try:
        exec(code, {})
    except SystemExit as error:
        return str(error)
    except BaseException as error:
        return "".join(traceback.format_exception_only(error)).strip()
    return "imported"

cases = CASES
for name in {package for _, package in cases} | {"temporalio.client", "temporalio.worker"}:
    importlib.import_module(name)
for code, package in cases:
    read, write = os.pipe()
    if not os.fork():
        os.dup2(write, 2)
        os.write(write, run(package, code).encode())
        os._exit(0)
    os.close(write)
    with open(read) as answer:
        print(repr(answer.read()))
    os.wait()
"""
"""Executes each of ``CASES`` in a process of its own, forked from one that has imported all packages but Durably."""


@pytest.fixture(scope="module")
def failures() -> dict[tuple[str, str], str]:
    """The errors of ``MISSING``, by code and missing package."""
    cases = [(code, package) for code, package, _ in MISSING]
    done = python(IMPORT_WITHOUT.replace("CASES", repr(cases), 1))
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, map(ast.literal_eval, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize(("code", "package", "extra"), MISSING, ids=lambda value: value)
def test_a_missing_dependency_names_its_extra(
    code: str, package: str, extra: str, failures: dict[tuple[str, str], str]
) -> None:
    assert extra in failures[code, package].splitlines()[-1], failures[code, package]
