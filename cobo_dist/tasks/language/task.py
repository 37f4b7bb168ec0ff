"""The language task: windows of tokens, the loss of the next token, and its metrics.

Shapes: m clients, B windows each, L tokens of context. A window is L + 1 tokens: L inputs and, shifted by
one, L targets.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cobo_dist.clients.batches import TRAINING_STREAMS, BatchIndices, number_of
from cobo_dist.clients.engines import Batch
from cobo_dist.clients.learning_task import BatchSource
from cobo_dist.lazy import Tensor, nn, torch
from cobo_dist.maths import seeds
from cobo_dist.maths.flat import to_device
from cobo_dist.tasks.base import DataConfig, Task
from cobo_dist.tasks.held_out import in_turn
from cobo_dist.tasks.language.adapters import Adapted
from cobo_dist.tasks.language.base import load_base
from cobo_dist.tasks.language.config import LanguageConfig, LanguageModelConfig
from cobo_dist.tasks.language.dropout import example_keys
from cobo_dist.tasks.language.texts import read_texts
from cobo_dist.tasks.language.tokens import Span, split, stream_of

CACHE = "tokens"  # in data.root


class Language(Task):
    """Next-token losses of all clients' texts, each with the client's adapters."""

    name = "language"
    metrics: tuple[str, ...] = ("loss", "bits_per_byte", "perplexity")
    # vmap supports neither PEFT's modules nor dropout whose keys are set from outside.
    engines: tuple[str, ...] = ("one_by_one",)
    clusters: tuple[int, ...] | None = None
    random_order = True

    def __init__(
        self, config: LanguageConfig, model: LanguageModelConfig, data: DataConfig, seed: int
    ) -> None:
        """Read texts and model, tokenize the texts (or read cached tokens), and split them.

        Raises:
            ConfigError: missing or unsuitable texts or model; see `texts`, `tokens`, `base`.
        """
        self.config, self.data, self.seed = config, data, seed
        self.batch_size, self.accumulation = data.examples_a_round, data.accumulation
        texts = read_texts(config, data)  # before the model, which may take minutes to load
        self.names, self.clients = tuple(text.name for text in texts), len(texts)
        base = load_base(model, config.context)
        self.tokenizer = base.tokenizer
        cache = Path(data.root).expanduser() / CACHE
        self.streams = [stream_of(text, base.tokenizer, config.tokens, cache) for text in texts]
        self.split_of = [
            split(stream, config, text.source)
            for stream, text in zip(self.streams, texts, strict=True)
        ]
        self.splits: tuple[str, ...] = (
            ("validation", "test") if config.validation_fraction else ("test",)
        )
        self.adapted = Adapted(base, model)
        self.notices = tuple(
            f"{text.source}: {stream.notice}; of task.tokens={config.tokens:,}, "
            f"{len(stream.tokens):,} are in use"
            for text, stream in zip(texts, self.streams, strict=True)
            if stream.skipped
        )

    def model(self) -> nn.Module:
        """Return the only module: the base with the adapters that are loaded now."""
        model: nn.Module = self.adapted.model
        return model

    def start(self, variant: int = 0) -> dict[str, Tensor]:
        """Return the adapters of x^0, or of another start."""
        seed = seeds.key(self.seed, "start variant", variant) if variant else self.seed
        return self.adapted.start(seed)

    def loss(self, model: nn.Module, *batch: Tensor) -> Tensor:
        """Return the mean cross-entropy of the next token, in nats; batch: windows, dropout's keys."""
        windows, keys_b = batch
        self.adapted.keys.now_b = keys_b
        return _cross_entropies(model, windows).mean()

    def score(self, model: nn.Module, *batch: Tensor) -> dict[str, Tensor]:
        """Return sums over windows: cross-entropy, predicted tokens, and their bytes of text."""
        windows, bytes_a_token = batch
        sums = _cross_entropies(model, windows).double()
        tokens = torch.tensor(sums.numel(), dtype=torch.float64)
        return {"loss": sums.sum(), "tokens": tokens, "bytes": tokens * bytes_a_token.cpu()}

    def means(self, sums: Mapping[str, float], examples: int) -> dict[str, float]:
        """Return the loss in nats per token, its exponential (perplexity), and bits per byte of text.

        Perplexity depends on the tokenizer; bits per byte do not.
        """
        loss = sums["loss"] / sums["tokens"]
        return {
            "loss": loss,
            "bits_per_byte": sums["loss"] / math.log(2.0) / sums["bytes"],
            "perplexity": math.exp(min(loss, 700.0)) if loss == loss else math.nan,
        }

    def train_sizes(self) -> list[int]:
        """Return how many whole training windows each client has."""
        return [len(spans["train"]) // self.config.context for spans in self.split_of]

    def training(self, clients: Sequence[int], device: torch.device) -> BatchSource:
        """Return the training windows of these clients."""
        size = self.data.examples_a_round
        return WindowBatches(self, clients, device, "train", TRAINING_STREAMS, size)

    def validation(
        self, clients: Sequence[int], device: torch.device, batch_size: int
    ) -> BatchSource:
        """Return windows of these clients' validation text."""
        return WindowBatches(self, clients, device, "validation", ("validation",), batch_size)

    def evaluation(
        self, client: int, split: str, device: torch.device, whole: bool = True
    ) -> Iterable[tuple[int, Batch]]:
        """Return (windows, (tokens [B, L + 1], bytes per token)) over one client's split.

        Each token is predicted once; the last window may be shorter than the others. With `whole=False`
        only over `data.eval_examples` windows, the same in every round.
        """
        span, context = self.split_of[client][split], self.config.context
        full, rest = divmod(len(span), context)
        count, most = full + (rest > 0), self.data.eval_examples
        numbers = torch.arange(count)
        if not whole and 0 < most < count:
            key = seeds.key(self.data.split_seed(self.seed), f"part of {split}", client)
            numbers = seeds.permutation(key, count)[:most].sort().values
        short = numbers[numbers >= full]
        at_once = min(self.data.eval_batch_size, self.data.batch_size)
        ratio = torch.tensor(span.bytes / len(span), dtype=torch.float64)
        for chunk, length in (
            *((chunk, context) for chunk in torch.split(numbers[numbers < full], at_once)),
            (short, rest),
        ):
            if len(chunk):
                windows = self.windows(client, span, chunk.numpy(), length)
                yield len(chunk), (to_device(windows, device), ratio)

    def shared_inputs(self, count: int, device: torch.device) -> Batch:
        """Return windows of all clients' validation text in turn, or as many whole ones as there are."""
        spans = [own["validation"] for own in self.split_of]
        context = self.config.context
        windows = [
            self.windows(client, spans[client], np.array([k]), context)
            for client, k in in_turn([len(span) // context for span in spans], count)
        ]
        return (to_device(torch.cat(windows), device),)

    def predict(self, model: nn.Module, *inputs: Tensor) -> Tensor:
        """Return the logits of each window's tokens, one window after the other."""
        chunks = torch.split(inputs[0], min(self.data.eval_batch_size, self.data.batch_size))
        return torch.cat([_logits(model, chunk) for chunk in chunks])

    def prediction_shape(self, count: int) -> tuple[int, int]:
        """Return the number of tokens in the windows, and that of token ids."""
        context = self.config.context
        whole = sum(len(own["validation"]) // context for own in self.split_of)
        return min(count, whole) * context, self.adapted.outputs

    def windows(self, client: int, span: Span, numbers: NDArray[np.int64], length: int) -> Tensor:
        """Return windows of `length` + 1 tokens [*numbers, length + 1] of a client's span.

        Window k predicts tokens kL .. kL + length - 1 of the span. Its first input is the token before them;
        for the first token of the span, that is the token that begins a text.
        """
        begins = span.begin + numbers[..., None] * self.config.context
        places = begins - 1 + np.arange(length + 1)
        tokens = self.streams[client].tokens[np.maximum(places, 0)].astype(np.int64)
        tokens[places < span.begin] = self.tokenizer.first
        return torch.from_numpy(tokens)

    def fingerprint(self) -> str:
        """Return a digest of the streams (texts and tokenizer) and of the base."""
        parts = [self.adapted.fingerprint(), *(stream.digest for stream in self.streams)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]

    def save(self, state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
        """Write one client's adapters as a PEFT folder."""
        self.adapted.save(state, path, metadata)

    def load(self, path: Path) -> dict[str, Tensor]:
        """Return the adapters in a PEFT folder."""
        return self.adapted.load(path)

    def lack(self, split: str) -> str:
        """Say that no text is kept for a split, and what helps."""
        return (
            f"this task has only {', '.join(self.splits)} data with task.validation_fraction="
            f"{self.config.validation_fraction:g}; set task.validation_fraction=0.1"
        )

    def data_in_memory(self) -> tuple[str, int]:
        """Return the bytes of all tokens."""
        return "tokens of all clients, files mapped", sum(s.tokens.nbytes for s in self.streams)

    def describe(self) -> dict[str, str]:
        """Return a description of texts and model, by title."""
        own, frozen = self.adapted.size()
        facts = {
            "base": f"{frozen:,} parameters ({self.adapted.base.name}), {4 * frozen / 2**20:,.1f} MiB "
            "in float32, once a rank",
            "adapter": f"{own:,} parameters ({own / (own + frozen):.2%}), {4 * own:,} bytes",
        }
        for name, stream, spans in zip(self.names, self.streams, self.split_of, strict=True):
            parts = ", ".join(
                f"{len(span):,} {split}" for split, span in spans.items() if len(span)
            )
            ratio = stream.ends_d2[-1, 1] / stream.ends_d2[-1, 0]
            facts[name] = f"{len(stream.tokens):,} tokens ({parts}), {ratio:.2f} bytes a token"
            if stream.skipped:
                facts[name] += f"; {stream.notice}"
        return facts


class WindowBatches:
    """Batches of whole windows of some clients' split, read from their streams of tokens."""

    def __init__(
        self,
        task: Language,
        clients: Sequence[int],
        device: torch.device,
        split: str,
        streams: Sequence[str],
        size: int,
    ) -> None:
        """Read `size` windows per batch; each of `streams` reads in its own random order."""
        self.task, self.clients, self.device, self.size = task, list(clients), device, size
        self.spans = [task.split_of[client][split] for client in clients]
        own = [torch.arange(len(span) // task.config.context) for span in self.spans]
        self.streams = {
            stream: BatchIndices(task.seed, f"batches {stream}", clients, own, size)
            for stream in streams
        }

    def batch(
        self, t: int, stream: str, rows: Tensor | None = None, part: int | None = None
    ) -> Batch:
        """Return windows [m, B, L + 1] and dropout keys [m, B] of batch t, or of that part of epoch t."""
        which = list(range(len(self.clients))) if rows is None else rows.tolist()
        clients = [self.clients[row] for row in which]
        length = self.task.config.context
        if not which:
            numbers_mb = torch.empty(0, self.size, dtype=torch.int64)
        elif part is None:
            numbers_mb = self.streams[stream].batch(t)[which]
        else:
            numbers_mb = self.streams[stream].part(t, part, which)
        windows = torch.empty(*numbers_mb.shape, length + 1, dtype=torch.int64)
        for place, (row, client) in enumerate(zip(which, clients, strict=True)):
            numbers = numbers_mb[place].numpy()
            windows[place] = self.task.windows(client, self.spans[row], numbers, length)
        keys = example_keys(
            self.task.seed, stream, number_of(t, part), clients, numbers_mb.shape[1]
        )
        return to_device(windows, self.device), to_device(keys, self.device)


def _logits(model: nn.Module, windows: Tensor) -> Tensor:
    """Return the logits of each predicted token of windows [B, L + 1], [B * L, token ids]."""
    logits: Tensor = model(input_ids=windows[:, :-1], use_cache=False).logits.flatten(0, 1)
    # From autocast it is too imprecise for a loss.
    return logits.float() if logits.dtype == torch.bfloat16 else logits


def _cross_entropies(model: nn.Module, windows: Tensor) -> Tensor:
    """Return the cross-entropy of each predicted token of windows [B, L + 1], [B * L]."""
    logits = _logits(model, windows)
    return nn.functional.cross_entropy(logits, windows[:, 1:].flatten(), reduction="none")
