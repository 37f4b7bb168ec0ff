"""This rank's clients: models as rows, batches, gradients, local optimizers, evaluation."""
