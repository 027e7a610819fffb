"""The functions of the gateway's endpoints. ``endpoints.py`` lists them."""
