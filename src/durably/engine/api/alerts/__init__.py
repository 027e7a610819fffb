"""Alerts: runs that have finally failed, to a webhook or by e-mail."""
