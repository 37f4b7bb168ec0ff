"""Dropout whose mask is a pure function of a key of each example.

The key is that of (seed, stream, round, client, position in the batch); each layer adds its own name. So
masks are the same on any number of ranks, for any split of a batch, and when gradient checkpointing
computes a layer a second time.
"""

from __future__ import annotations

from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths import seeds
from cobo_dist.maths.flat import to_device

_LANES = 4  # 16-bit random numbers in one 64-bit word
_LANE_VALUES = 1 << 16
_MAX_DRAWN = 1 << 24  # decisions drawn together: 32 MB of random words

_Kind = tuple[int, float, bool]  # numbers of an example, share, whether a mask serves all examples


class Keys:
    """The keys of the examples that the model computes now, and which numbers its layers drop.

    Layers that drop equally many numbers draw together, as many as `_MAX_DRAWN` allows: a draw launches some
    15 kernels on a GPU, however short it is.
    """

    def __init__(self) -> None:
        self._names: list[int] = []  # of the layers
        self._kind_of: dict[int, _Kind] = {}  # of the layers that have computed
        self._now_b = torch.empty(0, dtype=torch.int64)
        self._dropped: dict[_Kind, dict[int, Tensor]] = {}  # by layer
        self._names_on: dict[tuple[int, ...], Tensor] = {}  # by layers, on the device

    @property
    def now_b(self) -> Tensor:
        """Keys int64 [B] of the examples in the batch."""
        return self._now_b

    @now_b.setter
    def now_b(self, keys_b: Tensor) -> None:
        self._now_b, self._dropped = keys_b, {}

    def add(self, name: str) -> int:
        """Return the number of a new layer."""
        self._names.append(seeds.signed(seeds.key(0, f"layer {name}")))
        return len(self._names) - 1

    def dropped(self, layer: int, count: int, share: float, alone: bool) -> Tensor:
        """Return which of `count` numbers of each example a layer drops, bool [B, count].

        `alone`: the layer has no batch dimension, so the first key draws one mask for all, [1, count].
        """
        kind = self._kind_of[layer] = (count, share, alone)
        found = self._dropped.get(kind, {})
        if layer not in found:
            found = self._dropped[kind] = self._draw(layer, kind)
        return found[layer]

    def _draw(self, layer: int, kind: _Kind) -> dict[int, Tensor]:
        count, share, alone = kind
        keys_b = self._now_b[:1] if alone else self._now_b
        alike = sorted(one for one, its in self._kind_of.items() if its == kind)
        step = max(1, _MAX_DRAWN // max(1, len(keys_b) * count))
        begin = alike.index(layer) // step * step
        layers = tuple(alike[begin : begin + step])
        names = self._names_on.get(layers)
        if names is None or names.device != keys_b.device:
            names = to_device(torch.tensor([self._names[one] for one in layers]), keys_b.device)
            self._names_on[layers] = names
        drawn = dropped_lanes((names[:, None] ^ keys_b).flatten(), count, share)
        return dict(zip(layers, drawn.view(len(layers), -1, count), strict=True))


def dropped_lanes(keys_b: Tensor, count: int, share: float) -> Tensor:
    """Return which of `count` numbers each key drops, bool [B, count], with `share` to 1/65536.

    Each key has a SplitMix64 stream (see `maths.seeds`), and each word makes four decisions: 16 bits are
    enough for a share, and the words take most of the time.
    """
    words = seeds.words(keys_b[:, None], -(-count // _LANES), 0, keys_b.device)
    dropped = min(round(share * _LANE_VALUES), _LANE_VALUES - 1)
    return words.view(torch.int16)[:, :count] < dropped - _LANE_VALUES // 2


def example_keys(seed: int, stream: str, t: int, clients: list[int], batch: int) -> Tensor:
    """Return the keys of a round's examples, int64 [m, batch]."""
    return torch.tensor(
        [
            [
                seeds.signed(seeds.key(seed, f"dropout {stream}", t, client, place))
                for place in range(batch)
            ]
            for client in clients
        ],
        dtype=torch.int64,
    ).view(len(clients), batch)
