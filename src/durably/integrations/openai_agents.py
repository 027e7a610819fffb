"""Durable agents of the OpenAI Agents SDK: ``DurableRunner.run`` in place of ``Runner.run``.

Within a durable function each call of a model and each call of a tool is a step: it is retried by itself, and after a
crash a finished one is not repeated. The SDK's own loop runs in the function, and is replayed. It runs on copies of the
agents, whose models, tools and MCP servers are replaced by steps. Agents that are tools run through the SDK's default
runner, which is wrapped for that.

Private parts of the SDK (checked with 0.24): ``turn_preparation.get_model`` and ``get_model_settings``, the default
runner, ``RunState._current_agent``; in ``openai_steps`` the invoker of decorated tools, and what marks agent tools.
"""

import copy
import dataclasses
import functools
from contextvars import ContextVar
from typing import Any, Unpack, cast

try:
    import agents  # noqa: F401
except ImportError as error:
    raise ImportError(
        'durably.integrations.openai_agents needs the OpenAI Agents SDK: pip install "durably[openai-agents]"'
    ) from error

from agents import Agent, Handoff, ModelRetrySettings, RunConfig, Runner, RunResult, RunState, Tool, TResponseInputItem
from agents.models.multi_provider import MultiProvider
from agents.run import RunOptions, get_default_agent_runner, set_default_agent_runner
from agents.run_context import TContext
from agents.run_internal.turn_preparation import get_model, get_model_settings

from durably.execution import in_step
from durably.functions.publishing import publish, running_publisher
from durably.protocol.durations import Duration
from durably.steps import Step

from .agent_steps import Approval, ask_for_approvals, current_steps
from .openai_steps import Scope, StepModel, step_server, step_session, step_tool

__all__ = ["Approval", "DurableRunner"]

_provider = MultiProvider()
_scope: ContextVar[Scope | None] = ContextVar("durably_agents_scope", default=None)


class DurableRunner:
    """The SDK's ``Runner``, with steps."""

    @staticmethod
    async def run(
        starting_agent: Agent[TContext],
        input: str | list[TResponseInputItem] | RunState[TContext],
        *,
        stream_to: str | None = None,
        approval_timeout: Duration | None = None,
        **options: Unpack[RunOptions[TContext]],
    ) -> RunResult:
        """Run an agent as ``Runner.run`` does, with the same arguments, in steps of the running function.

        - ``stream_to``: The topic to which the run publishes the events of models while they happen, as the SDK's JSON
          (``type``, …), and ``approval_required`` with the name of the ``question``, ``tool_name`` and ``arguments``.
        - ``approval_timeout``: How long a tool waits for its approval before it counts as denied. Default: no limit.

        A tool that needs approval is a question to the run: ``ctx.step.receive`` of an ``Approval``, named
        ``AGENT/TOOL/CALL_ID``. Outside of a durable function, and in a step's handler, this is ``Runner.run``.
        """
        steps = current_steps(f'agent "{starting_agent.name}"')
        if steps is None:
            return await Runner.run(starting_agent, input, **options)
        inner = get_default_agent_runner()
        if not isinstance(inner, _StepRunner):
            set_default_agent_runner(cast(Any, _StepRunner(inner)))
        token = _scope.set(Scope(steps, stream_to))
        try:
            result = await Runner.run(starting_agent, input, **options)
            while result.interruptions:
                state = await _ask(steps, result, stream_to, approval_timeout)
                options = {name: value for name, value in options.items() if name in _RESUMED}  # type: ignore[assignment]
                result = await Runner.run(starting_agent, state, **options)
            return result
        finally:
            _scope.reset(token)


_RESUMED = ("context", "hooks", "run_config", "session", "error_handlers")
"""The arguments of ``Runner.run`` that a state does not have."""


async def _ask(steps: Step, result: RunResult, stream_to: str | None, timeout: Duration | None) -> RunState[Any]:
    """Ask for the approvals of tools, all at once. Returns the state that continues with the answers."""
    questions = {}
    for item in result.interruptions:
        questions[name := f"{item.agent.name}/{item.name}/{item.call_id}"] = f"{item.name} {item.arguments}"
        if stream_to is not None:
            event = {"type": "approval_required", "question": name, "tool_name": item.name, "arguments": item.arguments}
            publish(stream_to, event)
    state = result.to_state()
    for item, answer in zip(result.interruptions, await ask_for_approvals(steps, questions, timeout), strict=True):
        if answer.approved:
            state.approve(item)
        else:
            state.reject(item, rejection_message=answer.reason or None)
    return state


class _StepRunner:
    """The SDK's default runner, which makes steps within ``DurableRunner.run``."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def run(self, starting_agent: Agent[Any], input: Any, **options: Any) -> RunResult:
        agent = _prepare(starting_agent, input, options)
        return cast(RunResult, await self._inner.run(agent, input, **options))

    def run_streamed(self, starting_agent: Agent[Any], input: Any, **options: Any) -> Any:
        return self._inner.run_streamed(_prepare(starting_agent, input, options), input, **options)


def _prepare(agent: Agent[Any], input: Any, options: dict[str, Any]) -> Agent[Any]:
    """The agent to run, and ``options`` changed for it."""
    scope = _scope.get()
    if scope is None or in_step.get() is not None:
        return agent
    config = options.get("run_config") or RunConfig(model_provider=_provider)
    if isinstance(config, dict):
        config = RunConfig(**config)
    config = getattr(config, "durable_original", config)
    current = input._current_agent if isinstance(input, RunState) else None
    # A state continues with the agents that it came from: the SDK ties approvals to them.
    agents = getattr(current, "durable_agents", None) or _StepAgents(scope, config)
    if current is not None:
        input._current_agent = agents.copy_of(current)
    # Models and settings are those of the copies now. An agent tool passes the configuration on, to agents of its own.
    # The group joins the traces of the run's calls, and gives them the same cache of prompts.
    publisher = running_publisher.get()
    group = config.group_id or (publisher and publisher.run_id)
    options["run_config"] = changed = cast(
        Any, dataclasses.replace(config, model=None, model_settings=None, group_id=group)
    )
    changed.durable_original = config
    if options.get("session") is not None:
        options["session"] = step_session(scope, options["session"])
    return agents.copy_of(agent)


class _StepAgents:
    """Copies of agents, made of steps; ``copy_of`` gives the same copy for the same agent."""

    def __init__(self, scope: Scope, config: RunConfig) -> None:
        self._scope, self._config = scope, config
        self._copies: dict[int, tuple[Agent[Any], Agent[Any]]] = {}

    def copy_of(self, agent: Agent[Any]) -> Agent[Any]:
        if (owner := getattr(agent, "durable_agents", None)) is not None:
            if owner is self:
                return agent
            agent = agent.durable_original  # type: ignore[attr-defined]
        if id(agent) in self._copies:
            return self._copies[id(agent)][1]
        settings = get_model_settings(agent, self._config)
        copied: Any = agent.clone(
            model=StepModel(self._scope, agent.name, get_model(agent, self._config), settings),
            # Only steps retry, not the provider's client; and a clock around a step is not durable.
            model_settings=dataclasses.replace(settings, timeout=None, retry=ModelRetrySettings(max_retries=0)),
            mcp_servers=[step_server(self._scope, server) for server in agent.mcp_servers],
        )
        self._copies[id(agent)] = (agent, copied)
        copied.durable_agents, copied.durable_original = self, agent
        copied.handoffs = [self._handoff(each) for each in agent.handoffs]
        copied.get_all_tools = functools.partial(self._tools, copied)
        return cast(Agent[Any], copied)

    def _handoff(self, handoff: Any) -> Any:
        if not isinstance(handoff, Handoff):
            return self.copy_of(handoff)
        copied, invoke = copy.copy(handoff), handoff.on_invoke_handoff

        async def invoke_with_steps(context: Any, arguments: str) -> Agent[Any]:
            return self.copy_of(await invoke(context, arguments))

        copied.on_invoke_handoff = invoke_with_steps
        return copied

    async def _tools(self, agent: Agent[Any], context: Any) -> list[Tool]:
        tools = await type(agent).get_all_tools(agent, context)
        return [step_tool(self._scope, agent.name, tool) for tool in tools]
