"""Models, tools, MCP servers and sessions of the OpenAI Agents SDK whose calls are steps."""

import copy
import dataclasses
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Generic, TypeVar, cast

from agents import (
    FunctionTool,
    Model,
    ModelBehaviorError,
    ModelResponse,
    ModelSettings,
    Session,
    Tool,
    Usage,
    UserError,
)
from agents.mcp import MCPServer
from agents.tool import (
    _FailureHandlingFunctionToolInvoker,
    invoke_function_tool,
    set_function_tool_failure_error_function,
)
from agents.tool_context import ToolContext
from mcp.types import Tool as MCPTool
from openai.types.responses import ResponseCompletedEvent, ResponseOutputItemDoneEvent
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from pydantic_core import PydanticSerializationError

from durably.ai import record_usage
from durably.errors import NonRetriableError
from durably.steps import Step
from durably.values.codecs import Unset
from durably.values.outputs import declared_type

from .agent_steps import provider_errors, publish_event, time_limit

T = TypeVar("T")
_RESPONSE = TypeAdapter(ModelResponse)
_USAGE = TypeAdapter(Usage)
_MCP_TOOLS = TypeAdapter(list[MCPTool])
_LOCAL_TOOLS = ("computer", "executor", "editor", "on_invoke_tool")
"""Attributes of tools that run in the app's process, without being functions."""
_path: ContextVar[str] = ContextVar("durably_agents_path", default="")
"""The calls of agent tools within which the code runs."""


@dataclasses.dataclass(frozen=True)
class Scope:
    """One call of ``DurableRunner.run``."""

    steps: Step
    stream_to: str | None


class StepModel(Model):
    """A model whose calls are steps."""

    def __init__(self, scope: Scope, agent: str, model: Model, settings: ModelSettings) -> None:
        self._scope, self._agent, self._model, self._timeout = scope, agent, model, settings.timeout
        self._name = str(getattr(model, "model", type(model).__name__))

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        ask = self._model.get_response if self._scope.stream_to is None else self._stream

        async def call() -> Any:
            with provider_errors():
                async with time_limit(self._timeout, f"the call of model {self._name}"):
                    response = await ask(*args, **kwargs)
            usage = response.usage
            record_usage(model=self._name, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)
            # Unset fields stay unset: providers refuse some of them as null.
            return _RESPONSE.dump_python(response, mode="json", by_alias=True, exclude_unset=True)

        return _RESPONSE.validate_python(await self._scope.steps.run(f"{_path.get()}{self._agent}/model", call))

    async def _stream(self, *args: Any, **kwargs: Any) -> ModelResponse:
        assert self._scope.stream_to is not None
        done: list[Any] = []
        async for event in self._model.stream_response(*args, **kwargs):
            if isinstance(event, ResponseCompletedEvent):
                response = event.response
                usage = Usage() if response.usage is None else _USAGE.validate_python(response.usage.model_dump())
                usage.requests = 1
                return ModelResponse(response.output or done, usage, response.id)
            if isinstance(event, ResponseOutputItemDoneEvent):
                done.append(event.item)
            if event.type in ("response.failed", "response.incomplete", "error"):
                raise ModelBehaviorError(f"the stream of model {self._name} has ended with {event.type}")
            if not hasattr(event, "response"):  # those with a response have the instructions too
                data = event.model_dump_json(exclude_unset=True).encode()
                publish_event(self._scope.stream_to, data, {"type": event.type})
        raise ModelBehaviorError(f"the stream of model {self._name} has ended without a response")

    def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        raise UserError(
            f'agent "{self._agent}": run_streamed and on_stream have no steps: give DurableRunner.run stream_to'
        )


def _replace_invoker(tool: FunctionTool, invoke: Callable[[ToolContext[Any], str], Awaitable[Any]]) -> FunctionTool:
    """A copy of a tool that calls ``invoke``, with the tool's own handling of failures around it."""
    copied = copy.copy(tool)
    invoker = copied.on_invoke_tool
    if isinstance(invoker, _FailureHandlingFunctionToolInvoker):
        invoker._invoke_tool_impl = functools.update_wrapper(invoke, invoker._invoke_tool_impl)
    else:
        copied.on_invoke_tool = invoke
    return copied


def _agent_tool(tool: FunctionTool) -> FunctionTool:
    """An agent as a tool. Its steps are named after the call."""
    invoker = copy.copy(tool).on_invoke_tool
    inner: Any = invoker._invoke_tool_impl if isinstance(invoker, _FailureHandlingFunctionToolInvoker) else invoker

    async def invoke(context: ToolContext[Any], arguments: str) -> Any:
        token = _path.set(f"{_path.get()}{context.tool_name}/{context.tool_call_id}/")
        try:
            return await inner(context, arguments)
        finally:
            _path.reset(token)

    return _replace_invoker(tool, invoke)


def step_tool(scope: Scope, agent: str, tool: Tool) -> Tool:
    """A tool whose calls are steps. Raises ``UserError`` for one that cannot be.

    A failure is the step's: it is retried. What is left of it the tool's own handler tells the model.
    """
    if not isinstance(tool, FunctionTool):
        if any(getattr(tool, name, None) is not None for name in _LOCAL_TOOLS):
            raise UserError(
                f'agent "{agent}" has the tool "{tool.name}" ({type(tool).__name__}), which runs in this process but '
                "is no function tool, so it cannot be a step: make it a function tool"
            )
        return tool  # a hosted tool, which is a part of the model's call
    if tool._is_agent_tool:
        return _agent_tool(tool)
    raising = set_function_tool_failure_error_function(copy.copy(tool), None)
    function = getattr(tool, "__wrapped__", None)
    output_type = Unset if function is None else declared_type(function)

    async def invoke(context: ToolContext[Any], arguments: str) -> Any:
        async def call() -> Any:
            try:
                return await invoke_function_tool(function_tool=raising, context=context, arguments=arguments)
            except (ModelBehaviorError, UserError) as error:  # wrong arguments stay wrong
                raise NonRetriableError(str(error)) from error

        step_id = f"{_path.get()}{agent}/{tool.name}/{context.tool_call_id}"
        if (adapter := _context_adapter(cast(Any, type(context.context)))) is None:
            options = {} if output_type is Unset else {"output_type": output_type}
            return await scope.steps.run(step_id, call, **options)

        async def call_and_keep() -> Any:
            before = _fields(adapter, context.context)
            output = await call()
            after = _fields(adapter, context.context)
            return _Kept(output, {name: value for name, value in after.items() if before.get(name, Unset) != value})

        kept_type = cast(Any, _Kept)[Any if output_type is Unset else output_type]
        kept = await scope.steps.run(step_id, call_and_keep, output_type=kept_type)
        if kept.context:
            restored = adapter.validate_python(_fields(adapter, context.context) | kept.context)
            for name in kept.context:
                if isinstance(context.context, dict):
                    context.context[name] = restored[name]
                else:
                    setattr(context.context, name, getattr(restored, name))
        return kept.output

    copied = _replace_invoker(tool, invoke)
    copied.timeout_seconds = None  # ``raising`` has it
    return copied


@dataclasses.dataclass
class _Kept(Generic[T]):
    """The memo of a tool whose run has a context object: its output, and the fields of the object that it changed."""

    output: T
    context: dict[str, Any]


@functools.lru_cache(128)
def _context_adapter(kind: Any) -> TypeAdapter[Any] | None:
    """For a context object whose fields can be stored: a dictionary, a dataclass, a model of pydantic."""
    if kind is not dict and not dataclasses.is_dataclass(kind) and not issubclass(kind, BaseModel):
        return None
    try:
        return TypeAdapter(cast(Any, kind))
    except PydanticSchemaGenerationError:
        return None


def _fields(adapter: TypeAdapter[Any], context: Any) -> dict[str, Any]:
    """The fields of a context object as JSON values; none if it cannot be made of them again."""
    try:
        fields: dict[str, Any] = adapter.dump_python(context, mode="json")
        adapter.validate_python(fields)
    except (PydanticSerializationError, ValidationError):
        return {}
    return fields


def step_server(scope: Scope, server: MCPServer) -> MCPServer:
    """A copy of an MCP server whose list of tools is a step, once in each run of an agent."""
    copied, list_tools = copy.copy(server), server.list_tools
    known: list[MCPTool] | None = None

    async def list_with_step(*args: Any) -> list[MCPTool]:
        nonlocal known
        if known is None:

            async def call() -> Any:
                return _MCP_TOOLS.dump_python(await list_tools(*args), mode="json", by_alias=True)

            known = _MCP_TOOLS.validate_python(await scope.steps.run(f"{server.name}/tools", call))
        return known

    cast(Any, copied).list_tools = list_with_step
    return copied


def step_session(scope: Scope, session: Session) -> Session:
    """A copy of a session whose reads and changes are steps."""
    copied: Any = copy.copy(session)
    for name in ("get_items", "add_items", "pop_item", "clear_session"):

        def as_step(name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            def call(*args: Any, **kwargs: Any) -> Awaitable[Any]:
                return scope.steps.run(f"{_path.get()}session/{name}", functools.partial(method, *args, **kwargs))

            return call

        setattr(copied, name, as_step(name, getattr(session, name)))
    return cast(Session, copied)
