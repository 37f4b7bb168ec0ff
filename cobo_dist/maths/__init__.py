"""Pure tensors: no I/O, no communication. Knows torch and nothing of ours."""
