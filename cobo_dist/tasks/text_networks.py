"""Networks that classify text, given as token ids int64 [B, length] whose last id fills up short texts."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Recurrent(nn.Module):
    """Embedding, recurrent layers, the mean of their outputs over a text's tokens, a linear layer."""

    def __init__(
        self,
        layer: type[nn.LSTM] | type[nn.GRU],
        vocabulary: int,
        classes: int,
        *,
        embedding: int,
        width: int,
        layers: int,
    ) -> None:
        super().__init__()
        self.padding = vocabulary - 1
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.recurrent = layer(embedding, width, num_layers=layers, batch_first=True)
        self.classifier = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits [B, classes]."""
        outputs, _ = self.recurrent(self.embedding(tokens))
        used = (tokens != self.padding).to(outputs.dtype)[..., None]
        # A text without tokens has a mean of 0.
        mean = (outputs * used).sum(dim=-2) / used.sum(dim=-2).clamp(min=1.0)
        logits: Tensor = self.classifier(mean)
        return logits


class FromTransformers(nn.Module):
    """A classifier of transformers, which is told what fills up short texts."""

    def __init__(self, model: Any, vocabulary: int) -> None:
        super().__init__()
        self.model, self.filling = model, vocabulary - 1
        known = getattr(model.config, "pad_token_id", None)
        self.padding = self.filling if known is None else int(known)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits [B, classes]."""
        used = tokens != self.filling
        ids = tokens.masked_fill(~used, self.padding)
        logits: Tensor = self.model(input_ids=ids, attention_mask=used.long()).logits
        return logits
