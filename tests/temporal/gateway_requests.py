"""Ordinary requests to a gateway."""

from durably.temporal.gateway import GatewayRequest


def get(path: str, *, mount: str = "") -> GatewayRequest:
    return GatewayRequest(method="GET", path=path, mount=mount, headers={}, query_params={}, body=b"", raw_request=None)
