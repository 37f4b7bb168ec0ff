"""From the launcher's environment to connected ranks."""
