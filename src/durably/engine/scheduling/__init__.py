"""What happens when: transactions, triggers, timers, calls to apps, requests, bulk operations."""
