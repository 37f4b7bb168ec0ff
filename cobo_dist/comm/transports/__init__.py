"""Transports of tensors and records: torch.distributed, MPI, and a checked one around either."""
