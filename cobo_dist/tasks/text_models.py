"""Models that classify text: `lstm`, `gru`, and `hf`, those of the library transformers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field

from cobo_dist.errors import ConfigError
from cobo_dist.lazy import nn, torch
from cobo_dist.registry import register
from cobo_dist.settings import Text, Width
from cobo_dist.tasks.dropout_off import turn_off_dropout
from cobo_dist.tasks.sections import ModelSection

_MAX_REASON = 200  # characters: transformers lists all that it knows


class RecurrentSection(ModelSection):
    """The keys of recurrent networks."""

    takes_text: ClassVar[bool] = True

    embedding: Width = Field(32, description="width of a token's embedding")
    width: Width = Field(64, description="width of a recurrent layer")
    layers: int = Field(1, ge=1, le=1000, description="recurrent layers")

    def build(self, shape: torch.Size, classes: int) -> nn.Module:
        """Return the network."""
        from cobo_dist.tasks.text_networks import Recurrent

        layer = {"lstm": nn.LSTM, "gru": nn.GRU}[self.name]
        return Recurrent(
            layer, shape[-1], classes,
            embedding=self.embedding, width=self.width, layers=self.layers,
        )  # fmt: skip


@register.model("lstm")
class LstmConfig(RecurrentSection):
    """LSTM over the tokens of a text, their mean, a linear layer."""


@register.model("gru")
class GruConfig(RecurrentSection):
    """GRU over the tokens of a text, their mean, a linear layer."""


@register.model("hf")
class HfConfig(ModelSection):
    """A text classifier of transformers, without its dropout; needs the extra lm."""

    takes_text: ClassVar[bool] = True
    initialized: ClassVar[bool] = True

    path: Text = Field(
        "",
        description="a local folder with a model, or a name on the hub that prepare fetches: its weights, or "
        "if it has none, its config; empty: a small one of model.family",
    )
    family: Text = Field(
        "bert", description="model_type in transformers, as bert, distilbert, roberta or gpt2"
    )
    layers: int = Field(2, ge=1, le=1000, description="number of layers")
    width: Width = Field(64, description="width; a multiple of model.heads")
    heads: int = Field(2, ge=1, le=1000, description="attention heads of a layer")

    def build(self, shape: torch.Size, classes: int) -> nn.Module:
        """Return the model in a wrapper that takes token ids.

        Raises:
            ConfigError: not on this machine, no such family, or too short for the texts.
        """
        from cobo_dist.tasks.language.libraries import library, reason_of
        from cobo_dist.tasks.text_networks import FromTransformers

        length, vocabulary = shape
        where = f"model.path={self.path}" if self.path else f"model.family={self.family}"
        if not self.path and self.width % self.heads:
            raise ConfigError(
                f"model.heads={self.heads} does not divide model.width={self.width}; choose a divisor"
            )
        transformers = library("transformers", "model.name=hf")
        try:
            model = self._model(transformers, length, vocabulary, classes)
        except ConfigError:
            raise
        except Exception as error:  # unknown families, damaged files: one line for all
            raise ConfigError(
                f"{where} cannot be made: {reason_of(error)[:_MAX_REASON]}; name one that transformers "
                "knows as a text classifier"
            ) from None
        rows = model.get_input_embeddings().num_embeddings
        if rows < vocabulary - 1:
            raise ConfigError(
                f"{where} knows {rows} tokens, and the texts have ids up to {vocabulary - 2}; set "
                "task.source.tokenizer to the folder of the model's own"
            )
        turn_off_dropout(model)
        return FromTransformers(model, vocabulary)

    def _model(self, transformers: Any, length: int, vocabulary: int, classes: int) -> Any:
        kind = transformers.AutoModelForSequenceClassification
        if not self.path:
            config = self._small_config(transformers, length, vocabulary, classes)
            return kind.from_config(config)
        from cobo_dist.tasks.language.base import find

        folder = find(self.path, "model.path")
        config = transformers.AutoConfig.from_pretrained(
            folder, num_labels=classes, local_files_only=True
        )
        if not [*folder.glob("*.safetensors")]:
            return kind.from_config(config)
        how = {"local_files_only": True, "ignore_mismatched_sizes": True, "dtype": torch.float32}
        return kind.from_pretrained(folder, config=config, **how)

    def _small_config(self, transformers: Any, length: int, vocabulary: int, classes: int) -> Any:
        return transformers.AutoConfig.for_model(
            self.family,
            vocab_size=vocabulary - 1,  # the id that fills up texts becomes that of the padding
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
            num_labels=classes,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.width,
            max_position_embeddings=length + 1,  # RoBERTa numbers positions from pad_token_id + 1
        )

    def fetch(self) -> Iterator[str]:
        """Fetch the model into the hub's cache, if it is from there."""
        if self.path:
            from cobo_dist.tasks.language.base import find

            yield f"found       {self.path} in {find(self.path, 'model.path', fetch=True)}"
