"""Random crops with reflect padding, flips and dropout masks, drawn for all clients at once.

Every draw is a pure function of (seed, stream, round, client). Shapes: m clients, B images each.
"""

from __future__ import annotations

from collections.abc import Sequence

from cobo_dist.lazy import Tensor, torch
from cobo_dist.maths import seeds

PADDING_PIXELS = 4


class Augmentation:
    """Random crop of the padded image and horizontal flip, as one gather from the stored images."""

    def __init__(self, seed: int, stream: str, clients: Sequence[int], images: Tensor) -> None:
        """Draw for `clients` from `images`, uint8 [N, H, W, C].

        Reflection needs more pixels than padding, so small images are padded less.
        """
        self.seed, self.purpose, self.clients = seed, f"augmentation {stream}", tuple(clients)
        self.images = images
        self.padding = [min(PADDING_PIXELS, size - 1) for size in images.shape[1:3]]

    def keys(self, t: int, rows: Sequence[int] | None = None) -> Tensor:
        """Return the keys of round t's draws, int64 [m], on the CPU.

        `rows`: the rows of the clients that draw; None: all clients in order.
        """
        clients = self.clients if rows is None else [self.clients[row] for row in rows]
        return seeds.key_tensor(
            [seeds.key(self.seed, self.purpose, t, client) for client in clients]
        )

    def __call__(self, indices_mb: Tensor, keys_m: Tensor) -> Tensor:
        """Return the augmented images uint8 [m, B, H, W, C] of image indices, by the draws of these keys."""
        m, batch = indices_mb.shape
        draws = seeds.uniform_rows(keys_m, 3 * batch).view(m, 3, batch)
        height, width = self.images.shape[1:3]
        across = _window(draws[:, 1], width, self.padding[1])
        flipped = (draws[:, 2] < 0.5)[..., None]
        across = torch.where(flipped, across.flip(-1), across)
        down = _window(draws[:, 0], height, self.padding[0])
        # Rows and columns of pixels broadcast to [m, B, H, W]; channels follow.
        return self.images[indices_mb[..., None, None], down[..., :, None], across[..., None, :]]


def _window(draws_mb: Tensor, size: int, padding: int) -> Tensor:
    """Return the pixels of a crop, [m, B, size]: a window of the line reflected at its ends."""
    offset = (draws_mb * (2 * padding + 1)).long() - padding
    position = torch.arange(size, device=draws_mb.device) + offset[..., None]
    return (size - 1) - ((size - 1) - position.abs()).abs()


def dropout_keys(seed: int, stream: str, clients: Sequence[int], t: int) -> Tensor:
    """Return the keys of round t's dropout masks of some clients, int64 [m], on the CPU."""
    return seeds.key_tensor([seeds.key(seed, f"dropout {stream}", t, client) for client in clients])


def dropout_mask(keys_m: Tensor, shape: tuple[int, int], share: float) -> Tensor:
    """Return factors [m, *shape]: 0 for the dropped `share` of the features, 1 / (1 - share) for the rest."""
    draws = seeds.uniform_rows(keys_m, shape[0] * shape[1]).view(len(keys_m), *shape)
    return (draws >= share).to(torch.float32) / (1.0 - share)
