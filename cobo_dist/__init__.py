"""cobo_dist: CoBo, collaborative learning via bilevel optimization, on torch.distributed."""

__version__ = "0.1.0"
