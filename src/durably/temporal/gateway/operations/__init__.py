"""The operations that the gateway's endpoints perform. ``endpoints.py`` lists them."""
