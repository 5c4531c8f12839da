"""Further fields from the batch's own inputs: a second view, and half images.

Each sample gets draws of its own, from a generator that the provider keeps. torchvision's
transforms draw once for a whole batch, from the global generator, and clamp colours to [0, 1],
which normalised inputs are not in; so the views are made here, by torch's own sampling grid.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import lossearch
from lossearch import Choices, Given, Range
from lossearch.components import Drawing
from lossearch.errors import FieldError, ModelError


def check_real(name: str, inputs: Tensor) -> None:
    """Refuse inputs that cannot be changed a little."""
    if not inputs.is_floating_point():
        raise FieldError(
            f"{name} changes real inputs, and these are {inputs.dtype}; for tokens write a "
            "provider of your own"
        )


@lossearch.provider(
    name="second_view", gives=("logits_b", "embeddings_b"), cost="a second forward"
)
class SecondView(Drawing):
    """The network's outputs at another random augmentation of the inputs.

    Inputs ``[B, channels, H, W]`` are shifted, flipped, coloured and partly erased; all others get
    noise, and features dropped. The first view stays what the data give, augmented or not. The
    second one goes through the network as the first does, with gradients, and in training mode
    with batch statistics of its own.

    Args:
        shift: Images: the largest shift, as a share of the side, in [0, 1]; mirrored beyond the
            edge, as after padding by reflection and a random crop.
        flip: Images: flip every other one left to right.
        jitter: Images: strength s of random brightness (up to s deviations of the image),
            contrast and, with three channels, saturation (factors in [1 - s, 1 + s]), in [0, 1].
        erase: Images: the probability that a rectangle of 2 to 33 % of the area becomes the
            image's mean, as in random erasing.
        noise: Others: deviation of Gaussian noise, in deviations of each feature over the batch,
            >= 0.
        drop: Others: the probability that a feature of a sample becomes 0, in [0, 1).
        seed: Of its own generator.

    Returns:
        ``logits_b`` as the logits, and ``embeddings_b`` ``[B, E]``, which is missing where the
        network gives scores alone.

    Raises:
        FieldError: the inputs are no real numbers, such as tokens.
    """

    def __init__(
        self,
        *,
        shift: Annotated[float, Field(ge=0, le=1), Range(0.0, 0.5)] = 0.125,
        flip: Annotated[bool, Choices()] = True,
        jitter: Annotated[float, Field(ge=0, le=1), Range(0.0, 1.0)] = 0.4,
        erase: Annotated[float, Field(ge=0, le=1), Range(0.0, 1.0)] = 0.25,
        noise: Annotated[float, Field(ge=0), Range(0.01, 1.0, log=True)] = 0.1,
        drop: Annotated[float, Field(ge=0, lt=1), Range(0.0, 0.5)] = 0.0,
        seed: Annotated[int, Given("seed")] = 0,
    ) -> None:
        super().__init__(seed)
        self.shift, self.flip, self.jitter, self.erase = shift, flip, jitter, erase
        self.noise, self.drop = noise, drop

    def forward(self, inputs: Tensor, model: nn.Module) -> tuple[Tensor, Tensor | None]:
        out = model(self.view(inputs))
        return out["logits"], out.get("embeddings")

    def view(self, inputs: Tensor) -> Tensor:
        """The inputs, augmented anew."""
        check_real("second_view", inputs)
        if inputs.ndim != 4:
            spread = inputs.std(0, correction=0, keepdim=True)
            kept = self.uniform(inputs, *inputs.shape) >= self.drop
            noise = self.noise * spread * self.normal(inputs, *inputs.shape)
            return torch.where(kept, inputs + noise, 0.0)
        draws = self.uniform(inputs, len(inputs), 11)  # as many whatever is switched on
        images = _moved(inputs, draws[:, :2], self.shift, (draws[:, 2] < 0.5) & self.flip)
        if self.jitter:
            images = _coloured(images, self.jitter * (2 * draws[:, 3:6] - 1))
        return _erased(images, draws[:, 6:10], draws[:, 10] < self.erase)


def _moved(images: Tensor, draws: Tensor, shift: float, flip: Tensor) -> Tensor:
    """Shifted by whole pixels and flipped; the sampling grid mirrors what lies beyond the edge."""
    sides = images.new_tensor(images.shape[:1:-1])  # width, height
    pixels = ((2 * draws - 1) * shift * sides).round()
    theta = images.new_zeros(len(images), 2, 3)
    theta[:, 0, 0] = torch.where(flip, -1.0, 1.0)
    theta[:, 1, 1] = 1
    theta[:, :, 2] = 2 * pixels / sides
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(
        images, grid, mode="nearest", padding_mode="reflection", align_corners=False
    )


def _coloured(images: Tensor, amounts: Tensor) -> Tensor:
    """Brightness, contrast and saturation, each by so much, whatever the images' scale."""
    brightness, contrast, saturation = amounts[:, :, None, None, None].unbind(1)
    flat = images.flatten(1)
    mean, spread = (v[:, None, None, None] for v in (flat.mean(1), flat.std(1, correction=0)))
    images = mean + (1 + contrast) * (images - mean) + brightness * spread
    if images.shape[1] == 3:
        grey = images.mean(1, keepdim=True)
        images = grey + (1 + saturation) * (images - grey)
    return images


def _erased(images: Tensor, draws: Tensor, chosen: Tensor) -> Tensor:
    """A random rectangle of each chosen image becomes its mean."""
    height, width = images.shape[2:]
    share = 0.02 + 0.31 * draws[:, 0]
    aspect = (math.log(3.3) * (2 * draws[:, 1] - 1)).exp()
    inside = chosen[:, None, None, None]
    for dim, size, ratio, place in (
        (2, height, aspect, draws[:, 2]), (3, width, 1 / aspect, draws[:, 3]),
    ):  # fmt: skip
        side = ((share * ratio).sqrt() * size).round().clamp(1, size)
        start = (place * (size - side + 1)).floor()[:, None]
        position = torch.arange(size, device=images.device)[None]
        within = (position >= start) & (position < start + side[:, None])
        inside = inside & (within[:, None, :, None] if dim == 2 else within[:, None, None, :])
    return torch.where(inside, images.mean((1, 2, 3), keepdim=True), images)


@lossearch.provider(
    gives=("embeddings_left", "embeddings_b", "rho"), cost="one forward of twice the batch"
)
def half_images(inputs: Tensor, model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """The embeddings of both halves of each image, and how far the halves are alike.

    The image is cut at its vertical midline (the middle column of an odd width is left out), the
    right half is mirrored, and both are brought to the image's size. ``embeddings`` stays what it
    is for every loss, the whole image's: the left half has a field of its own.

    Args:
        inputs: Images ``[B, channels, H, W]``.
        model: The network, which has to give embeddings.

    Returns:
        ``embeddings_left`` and ``embeddings_b`` (of the right half), both ``[B, E]``; and ``rho``
        ``[B]``, the correlation of the pixels of both halves, clipped to [0, 1], 0 where a half
        has one colour. It stands in for the symmetry that landmarks of a face would show.

    Raises:
        FieldError: the inputs are no images.
        ModelError: the network gives scores alone.
    """
    if inputs.ndim != 4 or inputs.shape[3] < 2:
        raise FieldError(
            "half_images cuts images [B, channels, H, W] of a width of at least 2, and the inputs "
            f"are {list(inputs.shape)}"
        )
    half = inputs.shape[3] // 2
    left, right = inputs[..., :half], inputs[..., -half:].flip(3)
    size = list(inputs.shape[2:])
    both = F.interpolate(torch.cat([left, right]), size, mode="bilinear", align_corners=False)
    embeddings = model(both).get("embeddings")
    if embeddings is None:
        raise ModelError(
            "half_images compares embeddings, and this model gives scores alone; make its last "
            "linear layer the last of an nn.Sequential or an attribute fc, head or classifier"
        )
    a, b = (h.flatten(1) - h.flatten(1).mean(1, keepdim=True) for h in (left, right))
    norms = a.norm(dim=1) * b.norm(dim=1)
    rho = (a * b).sum(1) / norms.clamp(min=torch.finfo(norms.dtype).tiny)
    return *embeddings.chunk(2), rho.clamp(0, 1)
