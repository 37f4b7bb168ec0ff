"""How ranks connect and what they send one another. No other package imports torch.distributed or MPI."""
