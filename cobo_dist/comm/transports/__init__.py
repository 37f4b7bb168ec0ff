"""What carries tensors between ranks: torch.distributed, MPI, and a checked one."""
