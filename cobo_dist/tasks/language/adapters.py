"""LoRA adapters on the base model: the only parameters that are trained, sent and saved."""

from __future__ import annotations

import copy
import hashlib
import math
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from cobo_dist.clients.engines import trained
from cobo_dist.errors import ConfigError
from cobo_dist.lazy import Tensor, nn, torch
from cobo_dist.maths import seeds
from cobo_dist.tasks.language.base import Base, load_base
from cobo_dist.tasks.language.config import Adapters, LanguageModelConfig
from cobo_dist.tasks.language.dropout import Keys
from cobo_dist.tasks.language.libraries import library, reason_of

_NAME = "default"  # PEFT's name of an adapter without a name

StartKind = Literal["zero", "normal", "uniform"]


class Adapted:
    """A base model with one set of adapters, whose parameters are views into a client's row."""

    def __init__(self, base: Base, config: Adapters) -> None:
        """Add adapters to the base, in place.

        Raises:
            ConfigError: targets that match no layer, or no layer that can have an adapter.
        """
        from cobo_dist.tasks.language.dropout_layer import KeyedDropout

        self.base, self.config, self.keys = base, config, Keys()
        self.model: Any = self._wrap()
        for name, module in list(self.model.named_modules()):
            if isinstance(module, nn.Dropout) and module.p > 0:
                at, _, last = name.rpartition(".")
                owner = self.model.get_submodule(at)
                setattr(owner, last, KeyedDropout(module.p, name, self.keys))
        # Buffers such as position tables belong to the base, not to a client.
        for module in self.model.modules():
            module._non_persistent_buffers_set.update(module._buffers)
        if config.gradient_checkpointing:
            # The name since transformers 5; both methods take the same settings.
            enable = getattr(base.model, "activation_checkpointing_enable", None)
            (enable or base.model.gradient_checkpointing_enable)({"use_reentrant": False})
        self.shapes = {name: one.shape for name, one in trained(self.model)}
        self._kinds = self._start_kinds()

    @property
    def outputs(self) -> int:
        """Numbers that the model returns for each token: one for each token id."""
        return int(self.base.model.get_output_embeddings().weight.shape[0])

    def _wrap(self) -> Any:
        peft, model, config = library("peft"), self.base.model, self.config
        self._refuse_unmatched()
        lora = peft.LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=list(config.lora_targets) or "all-linear",
            task_type="CAUSAL_LM",
        )
        try:
            # The weights that PEFT draws are replaced later. PEFT itself fixes what it warns of.
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return peft.get_peft_model(model, lora)
        except Exception as error:
            raise ConfigError(
                f"model.lora_targets={list(config.lora_targets)}: {reason_of(error)}; choose among "
                f"{', '.join(self._layers())}"
            ) from None

    def _refuse_unmatched(self) -> None:
        names = [f".{name}" for name, _ in self.base.model.named_modules()]
        for target in self.config.lora_targets:
            if not any(name.endswith(f".{target}") for name in names):
                raise ConfigError(
                    f"model.lora_targets={list(self.config.lora_targets)}: {target} is no layer of the "
                    f"model {self.base.name}; choose among {', '.join(self._layers())}"
                )

    def _layers(self) -> list[str]:
        """Return the last names of the layers that can have an adapter."""
        modules = self.base.model.named_modules()
        return sorted(
            {
                name.rpartition(".")[2]
                for name, module in modules
                if isinstance(module, nn.Linear | nn.Embedding) or type(module).__name__ == "Conv1D"
            }
        )

    def _start_kinds(self) -> dict[str, StartKind]:
        """Return how each tensor starts, read from what PEFT gave it and from the layer that it adapts.

        PEFT lets one factor of an adapter start at zero: B of a linear layer, but A of an embedding.
        """
        kinds: dict[str, StartKind] = {}
        for name, one in trained(self.model):
            layer = self._adapted_layer(name)
            drawn: StartKind = "normal" if isinstance(layer, nn.Embedding) else "uniform"
            # A tensor on the device meta, which has a shape only, counts as drawn.
            kinds[name] = drawn if one.is_meta or one.any() else "zero"
        return kinds

    def _adapted_layer(self, name: str) -> nn.Module | None:
        """Return the layer of the base that a tensor of an adapter belongs to."""
        while name:
            name = name.rpartition(".")[0]
            owner = self.model.get_submodule(name)
            if hasattr(owner, "base_layer"):
                return owner.base_layer  # type: ignore[no-any-return]
        return None

    def start(self, seed: int) -> dict[str, Tensor]:
        """Return starting adapters: numbers from keys of the seed where PEFT draws, zeros where it has zeros.

        Numbers are uniform in ±1/sqrt(inputs), those of an embedding standard normal, as PEFT draws them.
        """
        return {
            name: _start(name, shape, self._kinds[name], seed)
            for name, shape in self.shapes.items()
        }

    def size(self) -> tuple[int, int]:
        """Return the numbers of trained and of frozen parameters."""
        own = sum(shape.numel() for shape in self.shapes.values())
        return own, sum(one.numel() for one in self.model.parameters()) - own

    def fingerprint(self) -> str:
        """Return a digest of the base: every tensor's name and shape, and its first numbers."""
        digest = hashlib.sha256()
        for name, one in self.base.model.named_parameters():
            if not one.requires_grad:
                first = one.detach().flatten()[:64].double().cpu().numpy()
                digest.update(f"{name} {list(one.shape)}".encode() + first.tobytes())
        return digest.hexdigest()[:16]

    def save(self, state: Mapping[str, Tensor], folder: Path, metadata: Mapping[str, str]) -> None:
        """Write adapters as PEFT's folder: `adapter_model.safetensors`, `adapter_config.json`."""
        from safetensors.torch import save_file

        peft = library("peft")
        draft = folder.with_name(folder.name + ".part")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        named = peft.get_peft_model_state_dict(
            self.model, state_dict=dict(state), adapter_name=_NAME, save_embedding_layers=False
        )
        # Libraries refuse a file that does not name its framework.
        about = {"format": "pt", **metadata}
        save_file(named, draft / "adapter_model.safetensors", metadata=about)
        config = copy.copy(self.model.peft_config[_NAME])
        config.inference_mode, config.base_model_name_or_path = True, self.base.name
        if isinstance(config.target_modules, set):
            config.target_modules = sorted(config.target_modules)
        config.save_pretrained(str(draft))
        draft.replace(folder)

    def load(self, folder: Path) -> dict[str, Tensor]:
        """Return what `save` wrote; PEFT leaves an adapter's own name out of its files."""
        from safetensors.torch import load

        held = load((folder / "adapter_model.safetensors").read_bytes())
        names = {re.sub(rf"\.{_NAME}(?=\.|$)", "", name): name for name in self.shapes}
        return {names.get(name, name): one for name, one in held.items()}


def read_adapted(config: LanguageModelConfig, context: int, folder: Path) -> nn.Module:
    """Return the PEFT model of the base and the adapters that `Adapted.save` wrote into a folder.

    Raises:
        ConfigError: the base is not on this machine.
    """
    base = load_base(config, context)
    model: nn.Module = library("peft").PeftModel.from_pretrained(base.model, str(folder))
    return model


def _start(name: str, shape: torch.Size, kind: StartKind, seed: int) -> Tensor:
    if kind == "zero":
        return torch.zeros(shape)
    key, count = seeds.key(seed, f"start {name}"), shape.numel()
    if kind == "normal":
        return seeds.normals(key, count).view(shape).float()
    bound = 1.0 / math.sqrt(shape[1:].numel())
    return ((2.0 * seeds.uniforms(key, count) - 1.0) * bound).view(shape).float()
