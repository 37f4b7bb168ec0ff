"""What a run may meet: clients that join and leave. Config sections, and pure functions of the round."""
