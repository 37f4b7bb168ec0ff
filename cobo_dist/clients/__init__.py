"""This rank's clients: models as rows, batches, gradients, local optimisers, evaluation."""
