"""Checking what an app syncs, before it is accepted (spec §4.3)."""

from urllib.parse import urlsplit

from durably.engine.errors import ConfigInvalidError
from durably.engine.expressions import ExpressionInvalidError, compile_expression
from durably.protocol.limits import MAX_CANCELS, MAX_CONCURRENCY, MAX_EVENT_NAME_LENGTH, MAX_RETRIES, MAX_TRIGGERS
from durably.protocol.sync import FunctionConfig, SyncRequest


def check_sync(request: SyncRequest) -> None:
    """Raises ``ConfigInvalidError``, which names the function and the option."""
    if not request.app_id:
        raise ConfigInvalidError("the app has no id: set app_id where the client is made")
    seen: set[str] = set()
    for config in request.functions:
        if not config.id:
            raise ConfigInvalidError(f"app {request.app_id!r}: a function has no id")
        if config.id in seen:
            raise ConfigInvalidError(f"app {request.app_id!r}: two functions have the id {config.id!r}")
        seen.add(config.id)
        _FunctionCheck(config).run()


class _FunctionCheck:
    def __init__(self, config: FunctionConfig) -> None:
        self.config = config

    def run(self) -> None:
        self._check_steps()
        self._check_triggers()
        self._check_cancels()
        self._check_expressions()

    def _refuse(self, option: str, reason: str) -> ConfigInvalidError:
        return ConfigInvalidError(f"function {self.config.id!r}: {option} {reason}")

    def _check_steps(self) -> None:
        if not self.config.steps:
            raise self._refuse("steps", "are empty; there must be one, with the URL at which to call the function")
        step = next(iter(self.config.steps.values()))
        if step.runtime.type != "http":
            raise self._refuse(
                "runtime.type", f"is {step.runtime.type!r}; this engine calls functions over 'http' only"
            )
        parts = urlsplit(step.runtime.url)
        if parts.scheme not in ("http", "https", "embedded") or not parts.hostname:
            raise self._refuse("runtime.url", f"is {step.runtime.url!r}; it must be an http or https URL")
        attempts = step.retries.attempts if step.retries else None
        if attempts is not None and not 0 <= attempts <= MAX_RETRIES:
            raise self._refuse("retries", f"is {attempts}; it must be between 0 and {MAX_RETRIES}")

    def _check_triggers(self) -> None:
        triggers = self.config.triggers
        if len(triggers) > MAX_TRIGGERS:
            raise self._refuse("triggers", f"are {len(triggers)}; at most {MAX_TRIGGERS} are possible")
        for trigger in triggers:
            if bool(trigger.event) == bool(trigger.cron):
                raise self._refuse("triggers", "must each have either an event or a cron schedule")
            if trigger.event and len(trigger.event) > MAX_EVENT_NAME_LENGTH:
                raise self._refuse("triggers", f"name an event of more than {MAX_EVENT_NAME_LENGTH} characters")

    def _check_cancels(self) -> None:
        cancels = self.config.cancel or []
        if len(cancels) > MAX_CANCELS:
            raise self._refuse("cancel", f"has {len(cancels)} entries; at most {MAX_CANCELS} are possible")
        concurrency = self.config.concurrency
        if isinstance(concurrency, list) and len(concurrency) > MAX_CONCURRENCY:
            raise self._refuse("concurrency", f"has {len(concurrency)} entries; at most {MAX_CONCURRENCY} are possible")

    def _check_expressions(self) -> None:
        config = self.config
        concurrency = config.concurrency if isinstance(config.concurrency, list) else [config.concurrency]
        expressions = [("triggers.expression", trigger.expression) for trigger in config.triggers]
        expressions += [("cancel.if", cancel.if_exp) for cancel in config.cancel or []]
        expressions += [("concurrency.key", one.key) for one in concurrency if one and not isinstance(one, int)]
        expressions.append(("idempotency", config.idempotency))
        expressions.append(("priority.run", config.priority.run if config.priority else None))
        for option in ("batch_events", "debounce", "rate_limit", "singleton", "throttle"):
            value = getattr(config, option)
            expressions.append((f"{option}.key", value.key if value else None))
        for option, expression in expressions:
            if expression:
                self._check_expression(option, expression)

    def _check_expression(self, option: str, expression: str) -> None:
        try:
            compile_expression(expression)
        except ExpressionInvalidError as error:
            raise self._refuse(option, f"is not valid: {error}") from error
