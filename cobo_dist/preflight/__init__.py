"""The doctor's probes and their diagnosis."""
