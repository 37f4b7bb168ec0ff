"""The commands `python -m cobo_dist.NAME`: arguments in, printed pages and exit codes out."""
