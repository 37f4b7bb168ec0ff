"""What rank 0 records of a run: metrics, W, health, progress."""
