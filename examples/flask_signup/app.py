"""Sign-up: a welcome now, a reminder later unless the user has come back. Sync functions, under WSGI.

    durably dev examples.flask_signup.app:app

then sign somebody up:

    curl -X POST localhost:8000/signups/ada@example.com
    curl -X POST localhost:8000/logins/ada@example.com
"""

import datetime as dt

import flask

import durably
import durably.flask

client = durably.Client(app_id="signup")
app = flask.Flask(__name__)
outbox: list[tuple[str, str]] = []


@client.create_function(fn_id="onboard", trigger=durably.TriggerEvent(event="user/signed.up"), retries=2)
def onboard(ctx: durably.ContextSync) -> str:
    email = ctx.event.data["email"]
    ctx.step.run("welcome", send_mail, email, "Welcome!")

    login = ctx.step.wait_for_event(
        "first-login",
        event="user/logged.in",
        if_exp="async.data.email == event.data.email",
        timeout=dt.timedelta(days=3),
    )
    if login is not None:
        return "came back"
    ctx.step.run("remind", send_mail, email, "We miss you")
    return "reminded"


def send_mail(to: str, subject: str) -> str:
    outbox.append((to, subject))
    return f"{subject} → {to}"


@app.post("/signups/<email>")
def sign_up(email: str) -> tuple[dict[str, str], int]:
    [event_id] = client.send_sync(durably.Event(name="user/signed.up", data={"email": email}))
    return {"event": event_id}, 202


@app.post("/logins/<email>")
def log_in(email: str) -> tuple[dict[str, str], int]:
    [event_id] = client.send_sync(durably.Event(name="user/logged.in", data={"email": email}))
    return {"event": event_id}, 202


durably.flask.serve(app, client, [onboard])
