"""The run directory: its files, their format, and the disk below."""
