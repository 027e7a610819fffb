"""Sources of apps to serve: the same functions in each framework, written with one SDK or the other.

``{sdk}`` is ``durably`` or ``inngest``: their public names are the same.
"""

FUNCTIONS = """
    import {sdk}

    client = {sdk}.Inngest(app_id="shop", is_production=False)


    @client.create_function(fn_id="place", trigger={sdk}.TriggerEvent(event="order/placed"))
    def place(ctx: {sdk}.ContextSync) -> object:
        ctx.logger.info("order of %s", ctx.event.data["total"])
        return ctx.step.run("charge", lambda: {{"charged": ctx.event.data["total"]}})
"""

FASTAPI = (
    FUNCTIONS
    + """
    import fastapi
    import {sdk}.fast_api

    app = fastapi.FastAPI()
    {sdk}.fast_api.serve(app, client, [place])
"""
)

FLASK = (
    FUNCTIONS
    + """
    import flask
    import {sdk}.flask

    app = flask.Flask(__name__)
    {sdk}.flask.serve(app, client, [place])
"""
)

DJANGO = (
    FUNCTIONS
    + """
    import django
    from django.conf import settings
    from django.core.{gateway} import get_{gateway}_application
    import {sdk}.django

    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="none")
    urlpatterns = [{sdk}.django.serve(client, [place])]
    app = get_{gateway}_application()
"""
)
DJANGO_ASGI = DJANGO.replace("{gateway}", "asgi")
DJANGO_WSGI = DJANGO.replace("{gateway}", "wsgi")

DJANGO_EMBEDDED = """
    import sys
    from types import ModuleType

    import durably
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application

    class Urls(ModuleType):
        def __getattr__(self, name):
            if name != "urlpatterns":
                raise AttributeError(name)
            self.client = durably.Client(app_id="shop", engine=durably.Embedded("durably.db"))
            return []

    sys.modules["urls"] = Urls("urls")
    settings.configure(ROOT_URLCONF="urls", ALLOWED_HOSTS=["*"], SECRET_KEY="none")
    app = get_wsgi_application()
"""

TORNADO = (
    FUNCTIONS
    + """
    import tornado.web
    import {sdk}.tornado

    app = tornado.web.Application()
    {sdk}.tornado.serve(app, client, [place])
"""
)

DIGITAL_OCEAN = (
    FUNCTIONS
    + """
    import {sdk}.digital_ocean

    app = {sdk}.digital_ocean.serve(client, [place])
"""
)

GOOGLE_CLOUD = (
    FUNCTIONS
    + """
    import {sdk}.google_cloud

    app = {sdk}.google_cloud.serve(client, [place])
"""
)

AWS_LAMBDA = (
    FUNCTIONS
    + """
    import {sdk}.aws_lambda

    app = {sdk}.aws_lambda.serve(client, [place])
"""
)
