"""What happens to clients during a run: config sections, and pure functions of the round."""
