"""What a run may meet: clients that join, leave and lag. Config sections, and pure functions of the round."""
