"""The loop and what it leaves behind: schedule, metrics, logs, run folder."""
