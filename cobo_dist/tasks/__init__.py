"""What is learned: data sets, partitions, models."""
