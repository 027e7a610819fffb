"""The wire between an app and an engine, as plain data.

Everything here is pure: types, names, figures and functions of their arguments. The package imports no other part of
Durably, does no I/O, and reads neither clock nor environment. Both sides of the wire use it: the SDK (``execution``,
``comm``) and the engine. The facts are those of the public Inngest protocol (``docs/SDK_SPEC.md`` of inngest/inngest,
cited below as *spec* with its section).
"""
