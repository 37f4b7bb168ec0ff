"""How ranks find each other and what they send: the only room that knows torch.distributed."""
