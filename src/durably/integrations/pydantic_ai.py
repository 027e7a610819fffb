"""Durable agents of pydantic-ai.

``Agent(…, name="support", capabilities=[DurableSteps()])`` makes an agent durable. If an async durable function runs
it, each call of the model and of a tool is a step. Anywhere else, and inside of a step, it is an ordinary agent.

A crash in a step repeats that step: a call of the model that was under way is made, and paid, again. What is stored is
not. The conversation is rebuilt from the stored answers of the model and of the tools.
"""

import dataclasses
import datetime as dt
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from contextlib import nullcontext
from typing import Any, Literal
from weakref import WeakKeyDictionary

from pydantic import TypeAdapter
from pydantic_ai.capabilities.abstract import WrapModelRequestHandler, WrapRunHandler
from pydantic_ai.durable_exec import (
    JSON_CODEC,
    BaseDurabilityCapability,
    CallableOperationBackend,
    CapabilityOperationId,
    DurabilityEngineSpec,
    DurableOperationId,
    EventStreamHandlerId,
    JournalOperationNamer,
    ModelRequestId,
    RoleBasedOperationConfig,
    ToolsetCallToolId,
    ToolsetGetInstructionsId,
    ToolsetGetToolsId,
    conversation_id_from_run_id,
    record_durable_unit,
    replay_scope,
)
from pydantic_ai.exceptions import ModelAPIError, ModelQuotaExceededError, ModelRequestRejectedError, UserError
from pydantic_ai.messages import AgentStreamEvent, ModelResponse, ToolCallPart
from pydantic_ai.models import Model, ModelRequestContext
from pydantic_ai.run import AgentRunResult
from pydantic_ai.tools import (
    AgentDepsT,
    DeferredToolRequests,
    DeferredToolResults,
    RunContext,
    ToolApproved,
    ToolDenied,
)
from pydantic_ai.toolsets import ToolsetTool

from durably.ai import record_usage
from durably.errors import FunctionConfigInvalidError, NonRetriableError, RetryAfterError
from durably.execution import in_step
from durably.experimental import step_context
from durably.functions.publishing import RunPublisher, running_publisher
from durably.protocol.durations import Duration
from durably.steps import Step

from .agent_steps import Approval, ask_for_approvals, current_steps, publish_event

__all__ = ["Approval", "DurableSteps"]

_events: TypeAdapter[AgentStreamEvent] = TypeAdapter(AgentStreamEvent)
_runs: WeakKeyDictionary[RunPublisher, int] = WeakKeyDictionary()
"""The number of runs of agents in each call of a function."""


class DurableSteps(BaseDurabilityCapability[AgentDepsT]):
    """Makes the agent that has this capability durable.

    - ``name``: The beginning of its steps' ids. Default: the agent's name.
    - ``stream_to``: The topic to which the run publishes the agent's events while they happen: the tokens of the model,
      the calls of tools, their results, and the approvals that they need, each as pydantic-ai's JSON. Of an event that
      is too large for a message, only ``event_kind`` is left. Default: it does not.
    - ``approval_timeout``: How long a tool waits for its approval before it counts as denied. Default: without a limit.
    - ``models``: Further models that single runs choose by their keys, as in pydantic-ai's own capabilities.

    A tool that needs approval (``requires_approval=True``, or it raises ``ApprovalRequired``) is a question to the run:
    ``ctx.step.receive`` of an ``Approval``, named ``AGENT/TOOL/TOOL_CALL_ID``.

    A tool with ``metadata={"durably": False}`` is not a step but a part of the function: it may have steps of its own.
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        stream_to: str | None = None,
        approval_timeout: Duration | None = None,
        models: Mapping[str, Model] | None = None,
    ) -> None:
        super().__init__(models=models, name=name, event_stream_handler=None if stream_to is None else self._publish)
        self.stream_to = stream_to
        self.approval_timeout = approval_timeout

    engine_spec = DurabilityEngineSpec(
        engine_name="Durably",
        durable_unit_noun="step",
        durable_container_noun="durable function",
        codec=JSON_CODEC,
        toolset_lifecycles={"function": "enter-always", "mcp": "enter-in-durable-unit", "dynamic": "enter-never"},
        unsupported_runtime_toolset_kinds=frozenset({"function", "mcp", "dynamic"}),
        tool_config_key="durably",
    )

    @property
    def in_durable_context(self) -> bool:
        """Whether a durable function is running, and none of its steps.

        Raises ``FunctionConfigInvalidError`` in a sync function.
        """
        return current_steps(f'agent "{self.name}"') is not None

    def get_durable_operation_backend(self) -> "_Steps":
        return _Steps(_StepNames(self.name, self.default_model_id))

    async def wrap_run(self, ctx: RunContext[AgentDepsT], *, handler: WrapRunHandler) -> AgentRunResult[Any]:
        with replay_scope() if self.in_durable_context else nullcontext():  # no spans of what earlier calls did
            return await super().wrap_run(ctx, handler=handler)

    async def wrap_model_request(
        self, ctx: RunContext[AgentDepsT], *, request_context: ModelRequestContext, handler: WrapModelRequestHandler
    ) -> ModelResponse:
        response = await super().wrap_model_request(ctx, request_context=request_context, handler=handler)
        if in_step.get() is not None:  # an ordinary agent inside of a step, for example of a tool
            _record(response, request_context.model.model_name)
        return response

    def get_default_run_id(self) -> str | None:
        """The same id in each call of the function: the run's, and the number of the agent's run in it."""
        publisher = running_publisher.get()
        if publisher is None or not self.in_durable_context:
            return None
        number = _runs[publisher] = _runs.get(publisher, 0) + 1
        return f"{publisher.run_id}:{number}"

    def get_default_conversation_id(self, run_id: str) -> str | None:
        return conversation_id_from_run_id(run_id) if self.in_durable_context else None

    async def get_run_start_time(self, run_id: str) -> dt.datetime | None:
        """The time from which ``agent.run(timeout=…)`` counts, as a step."""
        if not self.in_durable_context:
            return None
        return await _current_step().run(f"{self.name}/start", _now)

    async def handle_deferred_tool_calls(
        self, ctx: RunContext[AgentDepsT], *, requests: DeferredToolRequests
    ) -> DeferredToolResults | None:
        """Ask for the approvals, all at once."""
        if not self.in_durable_context:
            return None
        calls = requests.approvals
        questions = {f"{self.name}/{each.tool_name}/{each.tool_call_id}": _prompt(each) for each in calls}
        answers = await ask_for_approvals(_current_step(), questions, self.approval_timeout)
        return requests.build_results(
            approvals={call.tool_call_id: _approval(answer) for call, answer in zip(calls, answers, strict=True)}
        )

    async def _publish(self, ctx: RunContext[AgentDepsT], events: AsyncIterable[AgentStreamEvent]) -> None:
        """Publish the events of the model in its step, and those of tools in the function."""
        async for event in events:
            if self.stream_to is not None and step_context.get(None) is not None:
                publish_event(self.stream_to, _events.dump_json(event), {"event_kind": event.event_kind})


def _prompt(call: ToolCallPart) -> str:
    return f"{call.tool_name} {call.args_as_json_str()}"


def _approval(answer: Approval) -> ToolApproved | ToolDenied:
    return ToolApproved() if answer.approved else ToolDenied(answer.reason or ToolDenied().message)


def _record(response: ModelResponse, model: str) -> None:
    record_usage(
        model=response.model_name or model,
        input_tokens=response.usage.input_tokens,
        output_tokens=response.usage.output_tokens,
    )


def _current_step() -> Step:
    steps = step_context.get()
    assert isinstance(steps, Step)
    return steps


async def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _tool_config(_operation: DurableOperationId, tool: object | None, name: str) -> Literal[False] | None:
    """``False`` for a tool that is no step."""
    metadata = (tool.tool_def.metadata or {}) if isinstance(tool, ToolsetTool) else {}
    if "durably" not in metadata:
        return None
    if metadata["durably"] is not False:
        raise FunctionConfigInvalidError(f'tool "{name}": the metadata "durably" can only be False, to make it no step')
    return False


class _StepNames(JournalOperationNamer):
    """The ids of an agent's steps, on which runs in progress depend.

    They are ``support/model`` and ``support/TOOL``. A model other than the agent's own is ``support/model/KEY``.
    """

    def __init__(self, agent: str, model: str | None) -> None:
        super().__init__(agent)
        self._prefix = agent
        self._own_models = {None, "default", model}

    def operation_name(self, operation_id: DurableOperationId) -> str:
        match operation_id:
            case ModelRequestId():
                own = operation_id.model_id in self._own_models
                name = "model" if own else f"model/{operation_id.model_id}"
            case ToolsetGetToolsId():
                name = f"{operation_id.toolset_id}/tools"
            case ToolsetGetInstructionsId():
                name = f"{operation_id.toolset_id}/instructions"
            case CapabilityOperationId():
                name = f"{operation_id.capability_id}/{operation_id.operation}"
            case _:
                return super().operation_name(operation_id)
        return f"{self._prefix}/{name}"

    def invocation_name(self, operation_id: DurableOperationId, *, label: str | None) -> Any:
        invocation = super().invocation_name(operation_id, label=label)
        if isinstance(operation_id, ToolsetCallToolId):
            return dataclasses.replace(invocation, operation_name=f"{self._prefix}/{label}")
        return invocation


class _Steps(CallableOperationBackend[None]):
    """Runs each operation of an agent as a step of the running function."""

    def __init__(self, names: _StepNames) -> None:
        config = RoleBasedOperationConfig[None](
            model=None, event=None, capability=None, tool=None, resolve_tool=_tool_config
        )
        super().__init__(namer=names, config=config)

    async def execute(
        self,
        *,
        operation_id: DurableOperationId,
        name: str,
        body: Callable[[], Awaitable[object]],
        cache_key: tuple[object, ...],
        config: None,
    ) -> object:
        if isinstance(operation_id, EventStreamHandlerId):
            return await body()  # a message, which a replay does not publish again
        is_executed = False

        async def handler() -> Any:
            nonlocal is_executed
            is_executed = True
            try:
                result = await body()
            except (ModelRequestRejectedError, ModelQuotaExceededError, UserError) as error:
                raise NonRetriableError(str(error)) from error
            except ModelAPIError as error:
                if error.retry_after is None:
                    raise
                raise RetryAfterError(str(error), dt.timedelta(seconds=error.retry_after)) from error
            if isinstance(operation_id, ModelRequestId):
                _record(JSON_CODEC.load(ModelResponse, result), operation_id.model_name)
            return result

        try:
            return await _current_step().run(name, handler)
        finally:
            record_durable_unit(executed=is_executed)
