"""Requests to a gateway with nothing special about them."""

from durably.temporal.gateway import GatewayRequest


def get(path: str, *, mount: str = "") -> GatewayRequest:
    return GatewayRequest(method="GET", path=path, mount=mount, headers={}, query_params={}, body=b"", raw_request=None)
