"""What happens to clients while they train: how fast they are. Pure functions of config, seed and round."""
