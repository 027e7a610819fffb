"""The dashboard: pages for people, over any ``Engine``. It knows no web framework.

``dashboard.py`` has ``Dashboard``, which takes a ``DashboardRequest`` and returns a ``DashboardResponse``. To add a
page:

1. Write a handler in the module of its subject, ``async def show_things(visit: Visit) -> DashboardResponse``. It reads
   ``visit.query`` and the ``visit.engine``, and ends with ``return await visit.page("things.html", things=…)``.
2. Add a ``Route`` to the module's ``ROUTES``. It names the method, the pattern (``"/things/{thing_id}"``) and the
   handler. A POST route names its ``action``, which is checked before the handler is called; ``await
   visit.may(action)`` is whether to show its button. A POST handler ends with ``return visit.redirect(…)``. A page
   ``needs`` an operation that some engines lack; ``info.offers(name)`` is whether to show a part of a page.
3. Write ``templates/things.html``, which extends ``base.html``. ``macros.html`` has the parts: badges, times,
   durations, JSON trees, tables, filters, empty states, forms and charts. Everything is escaped. Nothing may have a
   ``style`` or ``on…`` attribute: the content security policy refuses them.
4. Give the page an entry in ``NAVIGATION`` of ``templating.py``, if it is one of the first level.

An element with the attribute ``data-live`` and an ``id`` is updated while the page is open if the route has
``live=Live.ALL`` or ``Live.RUN``. Modules in ``static/`` improve pages, and each page can be read without them.
"""

from durably.engine import check_packages

check_packages()
