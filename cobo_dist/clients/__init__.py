"""The clients of one rank: models as rows, batches, gradients, local optimizers, evaluation."""
