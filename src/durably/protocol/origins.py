"""Origins of browsers' requests."""

from collections.abc import Mapping

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def is_of_another_site(headers: Mapping[str, str]) -> bool:
    """Whether the browser reports a request of a page of another site.

    Browsers send ``Sec-Fetch-Site`` over HTTPS and to localhost only. Without it, ``Origin`` is compared with ``Host``,
    or with ``X-Forwarded-Host`` behind a proxy.
    """
    if (site := headers.get("sec-fetch-site")) is not None:
        return site not in ("same-origin", "none")
    if (origin := headers.get("origin")) is None:
        return False
    scheme, _, asking = origin.lower().partition("://")
    asked = (headers.get("host", ""), *headers.get("x-forwarded-host", "").split(","))
    # Origins leave the default port out.
    hosts = {host.strip().lower().removesuffix(_DEFAULT_PORTS.get(scheme, "")) for host in asked}
    return not asking or asking not in hosts
