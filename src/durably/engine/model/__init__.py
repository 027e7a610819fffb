"""The model that every engine shares: rows, events, the registry, calls to apps, subscriptions, reports."""
