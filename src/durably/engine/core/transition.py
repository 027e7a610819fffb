"""One transition of a run: its state while an input is applied, and its commands."""

import msgspec

from durably.protocol.engine_errors import StaleCallError
from durably.protocol.errors import ErrorData
from durably.protocol.opcodes import Op, Opcode
from durably.protocol.usage import ModelUsage, read_usage_metadata

from .inputs import KEPT_BY_FAILURES, CloseWait, Command, EndRun, FailedAttempt, MakeCall, WriteMemo
from .run_state import MACHINE_VERSION, Call, Policy, RunState, RunStatus, Wait

_ERROR_EXCERPT_LENGTH = 300


class RunOverflow(Exception):
    """The run is over one of the protocol's limits, and fails."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.error = ErrorData(name=name, message=message)


def encode_error(error: ErrorData) -> bytes:
    """An error as JSON, with at least ``name`` and ``message``."""
    wire = {field: value for field, value in msgspec.structs.asdict(error).items() if value is not None}
    return msgspec.json.encode({"name": "Error", "message": ""} | wire)


def data_memo(data: bytes) -> bytes:
    return b'{"data":' + data + b"}"


def error_memo(error: ErrorData) -> bytes:
    return b'{"error":' + encode_error(error) + b"}"


class Transition:
    """The state of a run while one input is applied.

    Handlers change it; ``settle`` completes it.
    """

    def __init__(self, state: RunState, now: int, policy: Policy) -> None:
        self.now = now
        self.policy = policy
        self.status = state.status
        self.max_attempts = state.max_attempts
        self.generation = state.generation
        self.calls = {call.generation: call for call in state.calls}
        self.waits = {wait.step_id: wait for wait in state.waits}
        self.discover_again = state.discover_again
        self.disable_immediate = state.disable_immediate
        self.memos = state.memos
        self.bytes = state.bytes
        self.defers = {deferred.step_id: deferred for deferred in state.defers}
        self.commands: list[Command] = []
        self.written: set[str] = set()
        self._step_ended = False
        self._race_ended = False

    def next_state(self) -> RunState:
        return RunState(
            version=MACHINE_VERSION,
            status=self.status,
            max_attempts=self.max_attempts,
            generation=self.generation,
            calls=tuple(self.calls.values()),
            waits=tuple(self.waits.values()),
            discover_again=self.discover_again,
            disable_immediate=self.disable_immediate,
            memos=self.memos,
            bytes=self.bytes,
            defers=tuple(self.defers.values()),
        )

    # calls

    def find_call(self, generation: int) -> Call:
        call = self.calls.get(generation)
        if call is None:
            raise StaleCallError(
                f"the call is stale: its generation {generation} is stale: the engine "
                "has given it up and may have made another in its place"
            )
        return call

    def call(self, call: Call, failed: FailedAttempt | None = None) -> None:
        """Make a call, with a new generation."""
        seen = self.memos if call.is_discovery else call.memos_seen
        call = msgspec.structs.replace(call, generation=self.next_generation(), memos_seen=seen)
        self.calls[call.generation] = call
        self.commands.append(MakeCall(call, failed))

    def next_generation(self) -> int:
        self.generation += 1
        return self.generation

    def discover(self) -> None:
        """Request discovery. Reuse an outstanding discovery call that has not been sent.

        A discovery that is under way may not see the latest memos, so another follows it.
        """
        outstanding = self.discovery
        if outstanding is None:
            self.discover_again = False
            self.call(Call(generation=0, due=self.now))
        elif outstanding.is_made(self.now):
            self.discover_again = True

    @property
    def discovery(self) -> Call | None:
        return next((call for call in self.calls.values() if call.is_discovery), None)

    def retry(
        self,
        call: Call,
        error: ErrorData,
        *,
        attempt: int,
        retry_at: int | None,
        name: str = "",
        executed: Op | None = None,
    ) -> None:
        """Repeat a call whose ``attempt`` failed.

        ``executed`` is the op of the failed step, if the app reported one.
        """
        if any(other.step_id == call.step_id for other in self.calls.values()):
            return
        due = retry_at if retry_at is not None else self.now + self.policy.retry_delay(attempt)
        self.call(
            msgspec.structs.replace(
                call, due=due, attempt=attempt + 1, unreached=0, name=name or call.name, error=excerpt(error)
            ),
            FailedAttempt(call.step_id, error)
            if executed is None
            else FailedAttempt(executed.id, error, executed.timing, read_usage_metadata(executed.metadata)),
        )

    def fail_attempt(
        self, call: Call, error: ErrorData, *, no_retry: bool, retry_at: int | None, written: bytes | None = None
    ) -> None:
        """Fail an attempt: retry the call, or end the run after its last attempt.

        ``written`` is the error's JSON from the app, which becomes the run's output if this was its last attempt.
        """
        if no_retry or call.attempt + 1 >= self.max_attempts:
            self.end(RunStatus.FAILED, written or encode_error(error), by_engine=written is None)
        else:
            self.retry(call, error, attempt=call.attempt, retry_at=retry_at)

    # steps

    def is_outstanding(self, step_id: str) -> bool:
        """Whether a call or a wait of the step is outstanding.

        A wait whose op the app must report again does not count.
        """
        wait = self.waits.get(step_id)
        if wait is not None:
            return not wait.needs_op
        return any(call.step_id == step_id for call in self.calls.values())

    def write(
        self,
        step_id: str,
        name: str,
        op: Opcode,
        memo: bytes,
        *,
        attempts: int = 1,
        failed: bool = False,
        executed: Op | None = None,
        usage: tuple[ModelUsage, ...] = (),
    ) -> None:
        """Store the result of a step.

        ``executed`` is the op of a step that the app has executed, and has its usage. Raises ``RunOverflow`` if the
        run has no capacity.
        """
        if self.memos + 1 > self.policy.max_steps:
            raise self._too_many_steps(f"step {name!r} is number {self.memos + 1}")
        if self.bytes + len(memo) > self.policy.max_run_state_bytes:
            raise RunOverflow(
                "StateTooLargeError",
                f"with the output of step {name!r} the run's state is over {self.policy.max_run_state_bytes} bytes: "
                "return less from steps, for instance a reference to where the data is stored",
            )
        self.memos += 1
        self.bytes += len(memo)
        self.written.add(step_id)
        timing = arguments = None
        if executed is not None:
            timing, arguments = executed.timing, executed.opts.get("input") if executed.opts else None
            if executed.metadata is not None:
                usage = read_usage_metadata(executed.metadata)
        self.commands.append(WriteMemo(step_id, name, op, memo, attempts, failed, timing, arguments, usage))

    def step_ended(self, race: bool) -> None:
        self._step_ended = True
        self._race_ended = self._race_ended or race

    def resolve(
        self,
        wait: Wait,
        memo: bytes,
        *,
        attempts: int = 1,
        failed: bool = False,
        usage: tuple[ModelUsage, ...] = (),
    ) -> None:
        """End a wait with its step's memo."""
        self.close_wait(wait.step_id)
        try:
            self.write(wait.step_id, wait.name, wait.op, memo, attempts=attempts, failed=failed, usage=usage)
            self.step_ended(wait.race)
        except RunOverflow as overflow:
            self.fail(overflow.error)

    def wait(self, wait: Wait) -> None:
        self.waits[wait.step_id] = wait

    def check_room_for(self, new_steps: int) -> None:
        """Check that the run has capacity for new steps.

        Raises ``RunOverflow`` if finished, outstanding and new steps together are over the limit.
        """
        steps = self.memos + len(self.waits) + sum(not call.is_discovery for call in self.calls.values())
        if steps + new_steps > self.policy.max_steps:
            raise self._too_many_steps(
                f"it has {steps} and requests {new_steps} more, so none of the new ones was started"
            )

    def _too_many_steps(self, reason: str) -> RunOverflow:
        return RunOverflow(
            "StepLimitError",
            f"a run may have at most {self.policy.max_steps} steps, and {reason}: do more in each step, spread the "
            "work over several runs, or raise the engine's limit (`--max-steps`, or `max_steps` in its settings)",
        )

    def close_wait(self, step_id: str) -> Wait | None:
        """Remove and return a wait; ``None`` if there is none."""
        wait = self.waits.pop(step_id, None)
        if wait is not None:
            self.commands.append(CloseWait(step_id))
        return wait

    def settle(self) -> None:
        """Request discovery at the end if steps ended and no other step is pending.

        Racing steps delay no others: discovery follows the end of each. The losers of a race may be outstanding long
        after the function has continued.
        """
        if self.status.has_ended:
            return
        if self._step_ended and not self.waits and all(call.is_discovery for call in self.calls.values()):
            # The parallel steps are over: the app may execute the next step as soon as it finds it.
            self.disable_immediate = False
        wanted = self._race_ended or (self._step_ended and not self._has_steps_to_wait_for)
        if wanted or (self.discover_again and self.discovery is None):
            self.discover()

    @property
    def _has_steps_to_wait_for(self) -> bool:
        waits = any(not wait.race for wait in self.waits.values())
        return waits or any(not call.race for call in self.calls.values() if not call.is_discovery)

    # ends

    def fail(self, error: ErrorData) -> None:
        """Fail the run because of an invalid op, and start no op of this transition."""
        self.commands = [command for command in self.commands if isinstance(command, KEPT_BY_FAILURES)]
        self.end(RunStatus.FAILED, encode_error(error), by_engine=True)

    def end(self, status: RunStatus, output: bytes, *, by_engine: bool = False) -> None:
        self.status = status
        self.calls.clear()
        self.waits.clear()
        self.discover_again = False
        self.commands.append(EndRun(status, output, by_engine))


def excerpt(error: ErrorData) -> str:
    """``Name: message`` in one short line, for display."""
    text = f"{error.name or 'Error'}: {error.message or ''}"
    return text if len(text) <= _ERROR_EXCERPT_LENGTH else text[: _ERROR_EXCERPT_LENGTH - 1] + "…"
