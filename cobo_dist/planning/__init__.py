"""A run planned without running it: a dry run over fake clients, and memory."""
