"""A classifier is tried on a few examples, so that what it cannot do is refused before training."""

from __future__ import annotations

from cobo_dist.errors import ConfigError, words_of
from cobo_dist.lazy import Tensor, nn, torch
from cobo_dist.tasks.dropout_off import dropping_layers
from cobo_dist.tasks.models import logits_of

_MAX_NAMED = 3  # layers that a message names


def refuse_unfit_model(model: nn.Module, name: str, inputs: Tensor, classes: int | None) -> None:
    """Run a network on some inputs in training mode; it is not to be used after it.

    `classes`: it must return that many logits for each input; None: a loss of its own says what it takes.

    Raises:
        ConfigError: it fails, returns something else, NaN or infinities, or draws from PyTorch's generator.
    """
    shape = list(inputs.shape[1:])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before = torch.get_rng_state()
        try:
            output = model.train()(inputs)
        except Exception as error:  # of any kind: it is a library's or a user's code
            raise ConfigError(
                f"model.name={name} cannot take inputs of shape {shape}: "
                f"{words_of(error) or type(error).__name__}; choose another model, or other keys of it"
            ) from None
        draws = not torch.equal(before, torch.get_rng_state())
    if draws:
        layers = dropping_layers(model)
        named = ", ".join(layers[:_MAX_NAMED]) + (" ..." if len(layers) > _MAX_NAMED else "")
        raise ConfigError(
            f"model.name={name} draws from PyTorch's global generator in training"
            + (f" ({named})" if named else "")
            + ", so its numbers would depend on ranks and restarts; set its dropout to 0"
        )
    try:
        returned = str(list(logits_of(output).shape))
    except AttributeError:
        returned = type(output).__name__
    if classes is not None and returned != str([len(inputs), classes]):
        raise ConfigError(
            f"model.name={name} returned {returned} for {len(inputs)} inputs and {classes} classes; return "
            f"logits of shape {[len(inputs), classes]}, or an object with such a field `logits`"
        )
    logits = getattr(output, "logits", output)
    if isinstance(logits, torch.Tensor) and not logits.isfinite().all():
        raise ConfigError(
            f"model.name={name} returned NaN or infinite logits for {len(inputs)} examples before any "
            "training; check its layers and first weights"
        )
