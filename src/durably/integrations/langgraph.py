"""Durable graphs of LangGraph: ``durable(graph)`` gives a copy whose nodes are steps.

``result = await durable(graph).ainvoke(…)`` in an async durable function makes each execution of a node a step, as
LangGraph saves it: it is retried by itself, and after a crash a finished one is not repeated. In agents such as
``create_react_agent`` these are the calls of the model and of each tool. Nodes that are graphs become durable
themselves. Of a function with ``@entrypoint`` the tasks are steps. LangGraph's own loop and the reducers of the state
run in the function, and are replayed; a checkpointer in memory keeps interrupts and the state of a conversation.

Private parts of LangGraph (checked with 1.2): the keys of a node's configuration in ``_internal._constants``.
"""

import asyncio
import dataclasses
import functools
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar, cast
from uuid import uuid4

try:
    import langgraph  # noqa: F401
except ImportError as error:
    raise ImportError('durably.integrations.langgraph needs LangGraph: pip install "durably[langgraph]"') from error

import msgspec
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import convert_to_messages, message_to_dict
from langchain_core.outputs import LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config, merge_configs, var_child_runnable_config
from langgraph._internal._constants import CONF, CONFIG_KEY_CALL, CONFIG_KEY_SCRATCHPAD, CONFIG_KEY_SEND
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.constants import START, TAG_NOSTREAM
from langgraph.errors import GraphInterrupt
from langgraph.graph.message import add_messages
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel import Pregel
from langgraph.types import Command, Interrupt

from durably.ai import record_usage
from durably.errors import FunctionConfigInvalidError, NonRetriableError
from durably.steps import Step

from .agent_steps import current_steps, provider_errors, publish_event, time_limit
from .langgraph_json import from_json, to_json

__all__ = ["durable"]

GraphT = TypeVar("GraphT", bound=Pregel[Any, Any, Any, Any])
_path: ContextVar[str] = ContextVar("durably_graph_path", default="")
"""The nodes with graphs within which the code runs."""


def durable(graph: GraphT, *, stream_to: str | None = None) -> GraphT:
    """A copy of a graph for one call of a durable function, whose nodes are steps.

    It has a checkpointer in memory, and the thread ``durably`` unless the configuration of a call names one. Steps
    replace the retry policies of nodes. ``stream_to`` names the topic to which the run publishes the text of models
    while it is generated, as LangChain's messages. Outside of a durable function the nodes are no steps.
    """
    copied = _with_steps(graph, stream_to).copy({"checkpointer": InMemorySaver()})
    return copied.with_config(configurable={"thread_id": "durably"})


def _with_steps(graph: GraphT, stream_to: str | None) -> GraphT:
    kind = _StepNode if isinstance(graph, CompiledStateGraph) else _StepEntrypoint
    lists = [name for name, channel in graph.channels.items() if getattr(channel, "operator", None) is add_messages]
    nodes = {}
    for name, node in graph.nodes.items():
        timeout = node.timeout
        if timeout is not None and (timeout.idle_timeout is not None or isinstance(node.bound, Pregel)):
            raise FunctionConfigInvalidError(
                f'node "{name}" has a timeout that steps cannot have: a node that is no graph can have a run_timeout'
            )
        bound = _with_steps(node.bound, stream_to) if isinstance(node.bound, Pregel) else node.bound
        # Steps retry, and a clock around a step is not durable.
        wrapped = kind(name, bound, lists, None if timeout is None else timeout.run_timeout, stream_to)
        nodes[name] = node.copy({"bound": wrapped, "retry_policy": None, "timeout": None})
    return graph.copy({"nodes": nodes, "retry_policy": ()})


class _StepNode(Runnable[Any, Any]):
    """A node whose executions are steps. A node that is a graph has the steps of its own nodes."""

    def __init__(
        self,
        name: str,
        bound: Runnable[Any, Any],
        lists: Sequence[str],
        timeout: float | timedelta | None,
        stream_to: str | None,
    ) -> None:
        self.name, self._bound, self._lists, self._stream_to = name, bound, lists, stream_to
        self._timeout = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        if current_steps("a durable graph") is not None:
            raise FunctionConfigInvalidError(
                f'node "{self.name}" is invoked by `invoke`, which has no steps: write `await graph.ainvoke(…)`'
            )
        return self._bound.invoke(input, config, **kwargs)

    async def ainvoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        steps, config = current_steps("a durable graph"), cast(Any, ensure_config(config))
        if steps is None or (self.name == START and not self._lacks_ids(input)):
            return await self._bound.ainvoke(input, config, **kwargs)
        step_id = self._step_id(config)
        if isinstance(self._bound, Pregel):
            token = _path.set(f"{step_id}/")
            try:
                return await self._bound.ainvoke(input, config, **kwargs)
            finally:
                _path.reset(token)

        async def execute(config: Any) -> Any:
            async with time_limit(self._timeout, f'node "{self.name}"'):
                return self._with_ids(await self._bound.ainvoke(input, config, **kwargs))

        return await _run(steps, step_id, config, self._stream_to, execute)

    def _step_id(self, config: Any) -> str:
        """The node's name, and the number of the task if the node has several by ``Send``."""
        task = config["metadata"].get("langgraph_path", ())
        number = f"/{task[1]}" if len(task) > 1 and isinstance(task[1], int) else ""
        return f"{_path.get()}{str(self.name).strip('_')}{number}"

    # The reducer of messages gives random ids to those without one. They would be others in each replay, so that a
    # node could not remove a message by its id. So each message gets its id in a step.

    def _lacks_ids(self, input: Any) -> bool:
        return any(getattr(each, "id", None) is None for name in self._lists for each in _messages(input, name))

    def _with_ids(self, output: Any) -> Any:
        if type(output) is list:
            return [self._with_ids(each) for each in output]
        if isinstance(output, Command):
            return dataclasses.replace(output, update=self._with_ids(output.update))
        if not isinstance(output, dict):
            return output
        changed = {}
        for name in self._lists:
            if messages := convert_to_messages(_messages(output, name)):
                changed[name] = messages
                for message in messages:
                    message.id = message.id or str(uuid4())
        return output | changed


def _messages(update: Any, name: str) -> list[Any]:
    found = update.get(name) if isinstance(update, dict) else getattr(update, name, None)
    return found if isinstance(found, list) else [] if found is None else [found]


class _StepEntrypoint(_StepNode):
    """The function of ``@entrypoint``, whose tasks are steps."""

    async def ainvoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        steps, config = current_steps("a durable graph"), cast(Any, ensure_config(config))
        if steps is None:
            return await self._bound.ainvoke(input, config, **kwargs)
        call, calls = config[CONF][CONFIG_KEY_CALL], Counter[str]()

        def call_as_step(function: Callable[..., Any], input: Any, **options: Any) -> Any:
            name = getattr(function, "__name__", type(function).__name__)
            step_id = f"{_path.get()}{name}" + (f"/{calls[name]}" if calls[name] else "")
            calls[name] += 1
            timeout = options["timeout"] and options["timeout"].run_timeout

            @functools.wraps(function)
            async def run(*args: Any, **kwargs: Any) -> Any:
                async def execute(config: Any) -> Any:
                    async with time_limit(timeout, f'task "{name}"'):
                        if inspect.iscoroutinefunction(function):
                            return await function(*args, **kwargs)
                        return await asyncio.to_thread(function, *args, **kwargs)

                return await _run(steps, step_id, ensure_config(), self._stream_to, execute)

            return call(run, input, **options | {"retry_policy": None, "timeout": None})

        config = {**config, CONF: {**config[CONF], CONFIG_KEY_CALL: call_as_step}}
        token = var_child_runnable_config.set(config)
        try:
            return await self._bound.ainvoke(input, config, **kwargs)
        finally:
            var_child_runnable_config.reset(token)


async def _run(
    steps: Step,
    step_id: str,
    config: Any,
    stream_to: str | None,
    execute: Callable[[Any], Awaitable[Any]],
) -> Any:
    """Run a node or a task as a step. Its memo is its output, or the interrupt that ended it.

    What the node has sent to the graph meanwhile, such as answers to its interrupts, is sent at each replay too.
    """
    pad, namespace = config[CONF][CONFIG_KEY_SCRATCHPAD], config[CONF].get("checkpoint_ns", "")

    async def handler() -> Any:
        sent: list[Any] = []
        inner = merge_configs(
            config, {"callbacks": [_ModelCalls() if stream_to is None else _StreamedCalls(stream_to)]}
        )
        inner[CONF] = {**config[CONF], CONFIG_KEY_SEND: sent.extend}
        token = var_child_runnable_config.set(inner)
        try:
            with provider_errors():
                output = await execute(inner)
            memo = {"output": to_json(output)}
        except GraphInterrupt as error:
            answered = len(pad.resume)
            interrupts = error.args[0]
            if any(each.id != _interrupt(each.value, namespace, answered).id for each in interrupts):
                raise NonRetriableError(
                    f'step "{step_id}" was interrupted in a graph that it calls: make that graph a node of its graph'
                ) from None
            values = [[each.value, each.response_schema] for each in interrupts]
            memo = {"interrupts": to_json(values), "answered": answered}
        finally:
            var_child_runnable_config.reset(token)
        return memo | ({"sent": [[channel, to_json(value)] for channel, value in sent]} if sent else {})

    memo = await steps.run(step_id, handler)
    if sent := memo.get("sent"):
        pad.get_null_resume(True)  # it was one of the answers
        config[CONF][CONFIG_KEY_SEND]([(channel, from_json(value)) for channel, value in sent])
    if "interrupts" in memo:
        interrupts = from_json(memo["interrupts"])
        raise GraphInterrupt(tuple(_interrupt(value, namespace, memo["answered"], to) for value, to in interrupts))
    return from_json(memo["output"])


def _interrupt(value: Any, namespace: str, answered: int, schema: Any = None) -> Interrupt:
    """The interrupt after ``answered`` earlier ones of the task, whose id is another one at each replay."""
    return Interrupt.from_ns(value, f"{namespace}|{answered}" if answered else namespace, response_schema=schema)


class _ModelCalls(BaseCallbackHandler):
    """Records the tokens of models."""

    raise_error = run_inline = True

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        for generation in (each for generations in response.generations for each in generations):
            message: Any = getattr(generation, "message", None)
            if (usage := getattr(message, "usage_metadata", None)) is not None:
                record_usage(
                    model=message.response_metadata.get("model_name", "unknown"),
                    input_tokens=usage["input_tokens"],
                    output_tokens=usage["output_tokens"],
                )


class _StreamedCalls(_ModelCalls):
    """Publishes what models generate."""

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, tags: list[str] | None = None, **_: Any) -> None:
        if TAG_NOSTREAM not in (tags or ()):
            message = getattr(chunk, "message", None)
            event = {"type": "text", "data": token} if message is None else message_to_dict(message)
            publish_event(self._topic, msgspec.json.encode(event), {"type": str(event["type"])})

    def tap_output_iter(self, run_id: Any, output: Any) -> Any:
        """Not called. Models stream if a handler has this method and the next."""
        return output

    tap_output_aiter = tap_output_iter
