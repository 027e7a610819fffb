"""The dashboard in stock projects of each framework, on real servers, for a viewer and an operator."""

import http.client
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from durably.protocol.limits import MAX_FORM_BYTES

from ..variants import variants
from .mounted import COMMANDS, Mounted, mounted

HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@pytest.fixture(scope="module", params=variants(COMMANDS, ["flask", "django-asgi", "tornado"]))
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    # Both servers of Django have one project: its users are expensive to make.
    directory = tmp_path_factory.getbasetemp() / f"mounted-{request.param.partition('-')[0]}"
    directory.mkdir(exist_ok=True)
    with mounted(request.param, directory) as app:
        yield app


def status_of(app: Mounted, run_id: str) -> str:
    [status] = app.server.query(f"SELECT status FROM runs WHERE id = '{run_id}'")
    return status


def test_a_viewer_sees_pages_that_are_protected_and_not_cached(app: Mounted) -> None:
    run_id = app.new_run()
    for path in ("/durably/runs", f"/durably/runs/{run_id}"):
        page = app.ask("viewer", path)
        assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8"), page.text
        assert run_id in page.text
        for name, value in HEADERS.items():
            assert value in page.headers[name]
        links = re.findall(r'(?:href|src|action)="([^"]*)"', page.text)
        assert links
        assert [link for link in links if not link.startswith(("/durably/", "#", "?"))] == []


def test_the_mount_point_leads_to_the_dashboard_with_and_without_a_slash(app: Mounted) -> None:
    for path in ("/durably", "/durably/"):
        for _ in range(3):
            page = app.ask("viewer", path)
            if page.status not in (301, 302, 303):
                break
            path = page.headers["Location"]
            assert path.startswith("/durably")
        assert page.status == 200


def test_styles_are_kept_and_files_outside_are_not_found(app: Mounted) -> None:
    [style, *_] = re.findall(r'href="(/durably/assets/[^"]+\.css)"', app.ask("viewer", "/durably/runs").text)
    answer = app.ask("viewer", style)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/css; charset=utf-8")
    assert "immutable" in answer.headers["Cache-Control"]
    for trick in ("../dashboard.py", "..%2fdashboard.py", "%2e%2e/dashboard.py", "/etc/passwd", "%00", "x%0a", ".."):
        assert app.ask("viewer", f"/durably/assets/x/{trick}").status in (400, 404), trick


def test_users_without_permission_are_refused(app: Mounted) -> None:
    run_id = app.new_run()
    for path in ("/durably/runs", f"/durably/runs/{run_id}", "/durably/runs/unknown"):
        refused = app.ask("stranger", path)
        assert refused.status == 403
        assert run_id not in refused.text
        visitor = app.ask("anonymous", path)
        if app.is_django:
            assert (visitor.status, visitor.headers["Location"]) == (302, f"/admin/login/?next={path}")
        else:
            assert visitor.status == 403


def test_a_viewer_has_no_buttons_and_may_change_nothing(app: Mounted) -> None:
    run_id = app.new_run()
    page = app.ask("viewer", f"/durably/runs/{run_id}")
    assert 'method="post"' not in page.text
    token, cookie = app.form_of("operator", f"/durably/runs/{run_id}")
    assert app.post("viewer", f"/durably/runs/{run_id}/cancel", cookie, csrf=token).status == 403
    assert app.post("stranger", f"/durably/runs/{run_id}/cancel", cookie, csrf=token).status == 403
    assert status_of(app, run_id) != "Cancelled"


def test_an_operator_cancels_a_run(app: Mounted) -> None:
    run_id = app.new_run()
    path = f"/durably/runs/{run_id}"
    token, cookie = app.form_of("operator", path)
    done = app.post("operator", f"{path}/cancel", cookie, csrf=token)
    assert (done.status, urlsplit(done.headers["Location"]).path) == (303, path), done.text
    assert status_of(app, run_id) == "Cancelled"


def test_a_form_after_the_end_of_the_session_leads_to_the_login_and_back_to_its_page(app: Mounted) -> None:
    run_id = app.new_run()
    path = f"/durably/runs/{run_id}"
    token, cookie = app.form_of("operator", path)
    for referer, back in ((f"{app.server.origin}{path}?a=1", f"{path}%3Fa%3D1"), ("http://evil.example/", "/durably/")):
        answer = app.post("anonymous", f"{path}/cancel", cookie, {"referer": referer}, csrf=token)
        if app.is_django:
            assert (answer.status, answer.headers["Location"]) == (302, f"/admin/login/?next={back}")
        else:
            assert answer.status == 403
    assert status_of(app, run_id) != "Cancelled"


def test_forms_of_other_sites_are_refused(app: Mounted) -> None:
    run_id = app.new_run()
    path = f"/durably/runs/{run_id}"
    token, cookie = app.form_of("operator", path)
    other_token, _ = app.form_of("operator", path)
    assert token != other_token
    tries = [
        app.post("operator", f"{path}/cancel", cookie),
        app.post("operator", f"{path}/cancel", cookie, csrf=other_token),
        app.post("operator", f"{path}/cancel", "durably-csrf=", csrf=""),
        app.post("operator", f"{path}/cancel", "x=1", csrf=token),
        app.post("operator", f"{path}/cancel", cookie, {"origin": "https://evil.example.com"}, csrf=token),
        app.post("operator", f"{path}/cancel", cookie, {"origin": "null"}, csrf=token),
        app.post("operator", f"{path}/cancel", cookie, {"sec-fetch-site": "cross-site"}, csrf=token),
        app.post("operator", f"{path}/cancel", cookie, {"sec-fetch-site": "same-site"}, csrf=token),
    ]
    assert [answer.status for answer in tries] == [403] * len(tries)
    assert app.post("operator", f"{path}/cancel", cookie, {"content-type": "text/plain"}, csrf=token).status == 415
    assert app.ask("operator", f"{path}/cancel").status == 405
    assert status_of(app, run_id) != "Cancelled"


def test_a_large_form_is_refused_before_it_is_read(app: Mounted) -> None:
    parts = urlsplit(app.server.origin)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    connection.putrequest("POST", "/durably/runs/x/cancel")
    size = 50_000_000 if app.name != "django-asgi" else MAX_FORM_BYTES + 1
    for name, value in {**app.people["operator"], "content-length": str(size)}.items():
        connection.putheader(name, value)
    connection.endheaders()
    if app.name == "django-asgi":  # Django has the body in a temporary file before it calls a view.
        connection.send(b"x" * size)
    assert connection.getresponse().status == 413
    connection.close()


def test_a_live_page_delays_no_other_requests(app: Mounted) -> None:
    """Even with one worker that does one thing at a time."""
    if app.is_sync:
        ended = app.ask("viewer", "/durably/live")
        assert (ended.status, "retry: 5000" in ended.text) == (200, True)
        return
    with app.stream("viewer", "/durably/live") as lines:
        first = next(line for line in lines if line.startswith("data: "))
        app.new_run()
        assert next(line for line in lines if line.startswith("data: ")) > first


def test_the_apps_own_pages_keep_their_headers(app: Mounted) -> None:
    answer = app.ask("anonymous", "/send")
    assert answer.status == 200
    assert "Content-Security-Policy" not in answer.headers


def test_djangos_admin_links_to_the_dashboard(app: Mounted) -> None:
    if not app.is_django:
        assert app.ask("viewer", "/admin/").status == 404
        return
    link = re.search(r'href="(/admin/durably/dashboard/)"', app.ask("viewer", "/admin/").text)
    assert link is not None
    redirect = app.ask("viewer", link[1])
    assert (redirect.status, redirect.headers["Location"]) == (302, "/durably/")
    assert "/admin/durably/" not in app.ask("stranger", "/admin/").text
    assert "/admin/durably/" not in app.ask("clerk", "/admin/").text
    assert app.ask("clerk", "/durably/runs").status == 403
    assert app.ask("clerk", "/admin/durably/dashboard/add/").status == 404
