"""Networks for images from libraries: `torchvision`, `timm`, and `vit`, a small vision transformer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import BeforeValidator, Field

from cobo_dist.errors import ConfigError, words_of
from cobo_dist.lazy import nn, torch
from cobo_dist.registry import register
from cobo_dist.settings import Text, Width, as_tuple
from cobo_dist.tasks.dropout_off import turn_off_dropout
from cobo_dist.tasks.sections import ModelSection

_PRETRAINED = "pretrained"
_SET_BY_KEYS = {
    "num_classes": "the labels decide it",
    "in_chans": "the images decide it",
    "pretrained": "model.weights=pretrained sets it",
    "weights": "model.weights sets it",
}
"""Arguments of libraries' networks that follow from the data and from other keys."""

_MAX_REASON = 200  # characters: libraries list what they know


class LibrarySection(ModelSection):
    """The keys of networks from libraries, which start as the library initializes them."""

    min_pixels: ClassVar[int] = 1
    initialized: ClassVar[bool] = True

    network: Text = Field("resnet18", description="name of the network in the library")
    options: Annotated[tuple[Text, ...], BeforeValidator(as_tuple)] = Field(
        (), description="further arguments of the network, as [img_size=32, patch_size=4]"
    )
    weights: Text = Field(
        "",
        description="first weights: a file, .safetensors or as torch.save writes it, or `pretrained` for the "
        "library's own, which prepare fetches; a layer of another shape starts at random; empty: all do",
    )

    @abstractmethod
    def known(self) -> list[str]:
        """Return the names of the library's networks."""

    @abstractmethod
    def create(self, channels: int, classes: int, side: int, options: dict[str, Any]) -> nn.Module:
        """Return the network."""

    @abstractmethod
    def pretrained_file(self, fetch: bool = False) -> Path:
        """Return the file of the library's own weights, which need not exist unless it is fetched."""

    def build(self, shape: torch.Size, classes: int) -> nn.Module:
        """Return the network for images of `shape`, without its dropout.

        Raises:
            ConfigError: no such network, options or weights.
        """
        known = self.known()
        if self.network not in known:
            near = ", ".join(get_close_matches(self.network, known, 3)) or ", ".join(known[:3])
            raise ConfigError(
                f"model.network={self.network} is none of the {len(known)} networks of {self.name}; nearest: "
                f"{near}"
            )
        try:
            model = self.create(shape[0], classes, shape[1], self._options())
        except ConfigError:
            raise
        except Exception as error:  # of any kind: it depends on the network
            raise ConfigError(
                f"model.network={self.network} cannot be made for images of {shape[1]} x {shape[2]} pixels "
                f"with model.options={list(self.options)}: {words_of(error)[:_MAX_REASON]}; change the "
                "options or the network"
            ) from None
        turn_off_dropout(model)
        if self.weights:
            self._load(model)
        return model

    def _options(self) -> dict[str, Any]:
        pairs = [one.partition("=") for one in self.options]
        if wrong := [name for name, sign, _ in pairs if not sign or not name.isidentifier()]:
            raise ConfigError(
                f"model.options={list(self.options)}: {wrong[0]!r} is no name=value; write "
                "[img_size=32, patch_size=4]"
            )
        for name, _, value in pairs:
            if name in _SET_BY_KEYS:
                raise ConfigError(
                    f"model.options={list(self.options)}: {name} is no option: {_SET_BY_KEYS[name]}; drop "
                    f"{name}={value}"
                )
        return {name: yaml.safe_load(value) for name, _, value in pairs}

    def _load(self, model: nn.Module) -> None:
        """Overwrite those of the network's tensors that the file of weights has in the same shape."""
        where = f"model.weights={self.weights}"
        own = self.weights == _PRETRAINED
        file = self.pretrained_file() if own else Path(self.weights).expanduser()
        if not file.is_file():
            raise ConfigError(
                f"{where}: {file} is not on this machine, and training never downloads; "
                + ("run python -m cobo_dist.prepare first" if own else "give the path of a file")
            )
        try:
            if file.suffix == ".safetensors":
                from safetensors.torch import load

                found = load(file.read_bytes())
            else:
                found = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # of any kind: damaged, a pickle of other things
            raise ConfigError(
                f"{where}: {file} holds no tensors by name ({words_of(error)[:_MAX_REASON]}); save a "
                "state_dict"
            ) from None
        state = model.state_dict()
        fitting = {
            name: found[name]
            for name, one in state.items()
            if name in found and found[name].shape == one.shape
        }
        if not fitting:
            raise ConfigError(
                f"{where}: none of its tensors fits model.network={self.network}; name the network that they "
                "are of"
            )
        model.load_state_dict(state | fitting)

    def fetch(self) -> Iterator[str]:
        """Fetch the library's weights if they are wanted."""
        if self.weights == _PRETRAINED:
            yield f"found       weights of {self.network} in {self.pretrained_file(fetch=True)}"


@register.model("torchvision")
class TorchvisionConfig(LibrarySection):
    """A network of torchvision for images, without its dropout."""

    def known(self) -> list[str]:
        """Return torchvision's classifiers."""
        from torchvision import models

        return models.list_models(module=models)  # type: ignore[no-any-return]

    def create(self, channels: int, classes: int, side: int, options: dict[str, Any]) -> nn.Module:
        """Return the network; its first convolution takes so many channels."""
        from torchvision import models

        if self.network.startswith("vit_"):
            options = {"image_size": side} | options
        if self.network.startswith("maxvit"):
            options = {"input_size": (side, side)} | options
        if self.network in ("googlenet", "inception_v3"):
            options = {"aux_logits": False, "init_weights": True} | options
        model: nn.Module = models.get_model(self.network, num_classes=classes, **options)
        if channels != 3:
            _take_channels(model, channels)
        return model

    def pretrained_file(self, fetch: bool = False) -> Path:
        """Return the file of torchvision's default weights in torch's cache."""
        from torchvision import models

        url = models.get_model_weights(self.network).DEFAULT.url
        file: Path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
        if fetch and not file.is_file():
            try:
                torch.hub.load_state_dict_from_url(url, progress=False, check_hash=True)
            except (OSError, RuntimeError) as error:
                raise ConfigError(
                    f"model.weights={_PRETRAINED}: {url} cannot be fetched ({words_of(error)}); copy it to "
                    f"{file} from another machine"
                ) from None
        return file


def _take_channels(model: nn.Module, channels: int) -> None:
    """Replace the first convolution by one that takes images of so many channels."""
    name, first = next(
        (name, one) for name, one in model.named_modules() if isinstance(one, nn.Conv2d)
    )
    at, _, last = name.rpartition(".")
    as_before: Any = {
        key: getattr(first, key) for key in ("kernel_size", "stride", "padding", "dilation")
    }
    new = nn.Conv2d(channels, first.out_channels, bias=first.bias is not None, **as_before)
    setattr(model.get_submodule(at), last, new)


@register.model("timm")
class TimmConfig(LibrarySection):
    """A network of timm (PyTorch Image Models), without its dropout; needs the extra timm."""

    def known(self) -> list[str]:
        """Return timm's networks."""
        return _timm().list_models()  # type: ignore[no-any-return]

    def create(self, channels: int, classes: int, side: int, options: dict[str, Any]) -> nn.Module:
        """Return the network; one that must know the size of images gets it by `options`."""
        made: nn.Module = _timm().create_model(
            self.network, num_classes=classes, in_chans=channels, **options
        )
        return made

    def pretrained_file(self, fetch: bool = False) -> Path:
        """Return the file of timm's default weights in the hub's cache."""
        from cobo_dist.tasks.language.base import find

        named = _timm().models.get_pretrained_cfg(self.network)
        if named is None or not named.hf_hub_id:
            raise ConfigError(
                f"model.weights={_PRETRAINED}: timm has no weights of model.network={self.network} on the "
                "hub; leave model.weights empty"
            )
        return find(named.hf_hub_id, "model.network", fetch) / "model.safetensors"


def _timm() -> Any:
    from cobo_dist.tasks.language.libraries import library

    return library("timm", "model.name=timm", "timm")


@register.model("vit")
class VitConfig(ModelSection):
    """A small vision transformer, of torchvision's layers."""

    min_pixels: ClassVar[int] = 1
    initialized: ClassVar[bool] = True

    patch: int = Field(4, ge=1, le=4096, description="side of a patch; divides that of the image")
    width: Width = Field(64, description="width; a multiple of model.heads")
    layers: int = Field(4, ge=1, le=1000, description="number of layers")
    heads: int = Field(4, ge=1, le=1000, description="attention heads of a layer")

    def build(self, shape: torch.Size, classes: int) -> nn.Module:
        """Return the network for square images.

        Raises:
            ConfigError: a patch that does not divide the image, or heads that do not divide the width.
        """
        from torchvision.models import VisionTransformer

        channels, height, width = shape
        if height != width or height % self.patch:
            raise ConfigError(
                f"model.patch={self.patch} does not divide images of {height} x {width} pixels into squares; "
                "choose a divisor of both sides, which must be equal"
            )
        if self.width % self.heads:
            raise ConfigError(
                f"model.heads={self.heads} does not divide model.width={self.width}; choose a divisor"
            )
        model: nn.Module = VisionTransformer(
            height, self.patch, self.layers, self.heads, self.width, 2 * self.width,
            num_classes=classes,
        )  # fmt: skip
        if channels != 3:
            _take_channels(model, channels)
        return model
