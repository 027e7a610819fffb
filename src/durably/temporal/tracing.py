"""OpenTelemetry: the web request, the workflow that it starts and its activities as one trace."""

from temporalio.client import Interceptor


def tracing_interceptor() -> Interceptor:
    """For client and workers alike, with the global tracer provider. Needs the extra ``temporal-otel``."""
    try:
        from temporalio.contrib.opentelemetry import TracingInterceptor
    except ImportError as error:
        raise ImportError('Temporal(tracing=True) needs OpenTelemetry: pip install "durably[temporal-otel]"') from error
    return TracingInterceptor()
