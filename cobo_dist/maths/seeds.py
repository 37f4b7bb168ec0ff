"""Counter-based randomness: every random number is a pure function of its name.

A name is `(seed, purpose, *counters)`, for example `(7, "pairs", round)`. The finalizer of SplitMix64
(Steele, Lea and Flood, OOPSLA 2014) mixes it into a 64-bit key. The numbers of a key are the SplitMix64
stream that starts there. There is no state to save, to share between ranks or to restore: any rank computes
any client's numbers, in any order, and gets the same bits. (Words, uniforms and permutations are exact on any
device; normals use log and cos, which may round differently on another kind of device.)
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

from cobo_dist.lazy import Tensor, torch

_MASK = (1 << 64) - 1
STEP = 0x9E3779B97F4A7C15
_MUL_1 = 0xBF58476D1CE4E5B9
_MUL_2 = 0x94D049BB133111EB


def key(seed: int, purpose: str, *counters: int) -> int:
    """Return the 64-bit key of the name `(seed, purpose, *counters)`, in [0, 2^64).

    >>> key(7, "pairs", 0) == key(7, "pairs", 0) != key(7, "pairs", 1)
    True
    """
    mixed = _mix_int(seed & _MASK)
    for word in (zlib.crc32(purpose.encode()), *counters):
        mixed = _mix_int((mixed ^ (word & _MASK)) + STEP)
    return mixed


def keys(seed: int, purpose: str, *counters: Tensor) -> Tensor:
    """Return `key` of many names at once, as the signed int64 that `words` takes.

    Counters are int64 tensors whose shapes broadcast; so does the answer.
    """
    mixed = torch.tensor(signed(key(seed, purpose)), device=counters[0].device)
    for counter in counters:
        mixed = mix((mixed ^ counter) + signed(STEP))
    return mixed


def uniforms(
    name: int, count: int, *, start: int = 0, device: str | torch.device = "cpu"
) -> Tensor:
    """Return `count` float64 numbers in the open interval (0, 1): elements start.. of key `name`."""
    return _to_unit_interval(words(signed(name), count, start, device))


def key_tensor(names: Sequence[int]) -> Tensor:
    """Return several keys as the signed int64 [len(names)] that `words` takes, on the CPU."""
    return torch.tensor([signed(name) for name in names], dtype=torch.int64)


def uniform_rows(keys_k: Tensor, count: int) -> Tensor:
    """Return `uniforms` of several (signed) keys at once, float64 [k, count], on their device."""
    return _to_unit_interval(words(keys_k[:, None], count, 0, keys_k.device))


def _to_unit_interval(words: Tensor) -> Tensor:
    return (_shift_right(words, 11).to(torch.float64) + 0.5) * 2.0**-53


def normals(name: int, count: int, *, device: str | torch.device = "cpu") -> Tensor:
    """Return `count` float64 standard normal numbers of key `name` (Box-Muller)."""
    half = (count + 1) // 2
    both = uniforms(name, 2 * half, device=device)
    radius, angle = (-2.0 * both[:half].log()).sqrt(), 2.0 * math.pi * both[half:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]


def permutation(name: int, count: int, *, device: str | torch.device = "cpu") -> Tensor:
    """Return a uniformly random permutation of 0..count-1 (int64 [count]) of key `name`."""
    # A tie of 64-bit words is very unlikely; the stable sort decides it.
    return words(signed(name), count, 0, device).argsort(stable=True)


def permutations(names_k: Tensor, count: int) -> Tensor:
    """Return `permutation` of several (signed) keys at once, int64 [k, count]."""
    return words(names_k[:, None], count, 0, names_k.device).argsort(dim=1, stable=True)


def words(name: int | Tensor, count: int, start: int, device: str | torch.device) -> Tensor:
    """Return elements start..start+count of the SplitMix64 stream of a (signed) key, as int64 bit patterns.

    A column of keys gives one row for each.
    """
    state = torch.arange(start + 1, start + count + 1, dtype=torch.int64, device=device)
    return mix(state * signed(STEP) + name)  # int64 wraps around, as the stream requires


def mix(state: Tensor) -> Tensor:
    """Apply the finalizer to each word, in place."""
    state ^= _shift_right(state, 30)
    state *= signed(_MUL_1)
    state ^= _shift_right(state, 27)
    state *= signed(_MUL_2)
    state ^= _shift_right(state, 31)
    return state


def _shift_right(words: Tensor, bits: int) -> Tensor:
    """Shift logically: a shift of int64 brings in copies of the sign bit, so mask them out."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _mix_int(word: int) -> int:
    word &= _MASK
    word = ((word ^ (word >> 30)) * _MUL_1) & _MASK
    word = ((word ^ (word >> 27)) * _MUL_2) & _MASK
    return word ^ (word >> 31)


def signed(word: int) -> int:
    """Return a 64-bit key as the int64 of the same bits."""
    return word - (1 << 64) if word >= 1 << 63 else word
