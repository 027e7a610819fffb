"""The embedded engine's HTTP API: how apps, SDKs and the command line reach an engine.

An aiohttp application over ``EmbeddedEngine``, one file a concept. It decides who may ask, reads and limits
bodies, calls one method of the engine, and writes the answer in the public shape; what is true and what
happens next is the engine's business. It never looks into the database.
"""
