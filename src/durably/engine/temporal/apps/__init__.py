"""Apps: their syncs, functions and cron schedules."""
