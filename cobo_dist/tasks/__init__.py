"""Tasks: data sets, their split over clients, models, losses and metrics."""
