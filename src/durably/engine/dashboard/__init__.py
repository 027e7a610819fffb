"""The dashboard: pages for people, over any ``Engine``. It knows no web framework."""
