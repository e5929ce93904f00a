"""Camera image to the six normalized channels OpenVLA's towers see, with PIL alone.

Three ways to reach the square input, as in Prismatic VLMs (2402.07865): `resize-naive` squashes,
`resize-crop` scales the short side and crops the middle, `letterbox` pads to a square first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image

from vla_adapt.policy.configuration import OpenVLAConfig
from vla_adapt.suggest import did_you_mean

STRATEGIES = ("resize-naive", "resize-crop", "letterbox")
_MEANS = ((0.485, 0.456, 0.406), (0.5, 0.5, 0.5))
_STDS = ((0.229, 0.224, 0.225), (0.5, 0.5, 0.5))
_LETTERBOX_FILL = (127, 127, 127)

# Something done to square images in [0, 1], float32 [B, 3, size, size], before they are normalized.
PixelChange = Callable[[torch.Tensor], torch.Tensor]


class ImagePreprocessor:
    """Resizes and normalizes images once per tower (shared where both towers want the same pixels).

    Args:
        sizes: side of each tower's input in pixels.
        strategy: one of `STRATEGIES`.
        means: per tower, per channel, of images in [0, 1].
        stds: per tower, per channel.
        fill: letterbox color.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        strategy: str = "resize-naive",
        means: Sequence[Sequence[float]] = _MEANS,
        stds: Sequence[Sequence[float]] = _STDS,
        fill: Sequence[int] = _LETTERBOX_FILL,
    ):
        if strategy not in STRATEGIES:
            raise ValueError(f"unknown resize strategy {strategy!r}; {did_you_mean(strategy, STRATEGIES)}")
        self.sizes = tuple(int(size) for size in sizes)
        self.strategy = strategy
        self.fill = tuple(fill)
        self._mean = torch.tensor(means, dtype=torch.float32).reshape(-1, 1, 1)
        self._std = torch.tensor(stds, dtype=torch.float32).reshape(-1, 1, 1)

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> ImagePreprocessor:
        """Read the fields of a `preprocessor_config.json`."""
        fields = {"means": config.get("means", _MEANS), "stds": config.get("stds", _STDS)}
        sizes = [size[-1] for size in config["input_sizes"]]
        fill = config.get("tvf_letterbox_fill") or _LETTERBOX_FILL
        return cls(sizes, config["image_resize_strategy"], fill=fill, **fields)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> ImagePreprocessor:
        """Read `preprocessor_config.json` of a checkpoint folder, else the image fields of `config.json`."""
        path = Path(directory) / "preprocessor_config.json"
        if path.is_file():
            return cls.from_dict(json.loads(path.read_text()))
        config = OpenVLAConfig.from_pretrained(directory)
        return cls(config.image_sizes, config.raw.get("image_resize_strategy", "resize-naive"))

    def to_dict(self) -> dict[str, Any]:
        """The fields of `preprocessor_config.json` that describe the result."""
        return {
            "image_processor_type": "PrismaticImageProcessor",
            "use_fused_vision_backbone": True,
            "image_resize_strategy": self.strategy,
            "input_sizes": [[3, size, size] for size in self.sizes],
            "interpolations": ["bicubic"] * len(self.sizes),
            "means": self._mean.reshape(-1, 3).double().round(decimals=6).tolist(),
            "stds": self._std.reshape(-1, 3).double().round(decimals=6).tolist(),
            "tvf_do_letterbox": self.strategy == "letterbox",
            "tvf_letterbox_fill": list(self.fill) if self.strategy == "letterbox" else None,
        }

    def __call__(
        self, images: Sequence[np.ndarray], change: PixelChange | None = None
    ) -> Float[torch.Tensor, "B 6 size size"]:
        """Pixel values of a batch of uint8 RGB images, each of any size.

        Args:
            images: uint8 [h, w, 3] each.
            change: done once to the resized images, the same for both towers.

        Raises:
            ValueError: for anything but uint8 [h, w, 3].
        """
        pixels = torch.from_numpy(np.stack([self._pixels(image) for image in images]))
        planes = pixels.permute(0, 3, 1, 2).contiguous()  # twice as fast as strided arithmetic
        planes = planes.float().div_(255.0)
        if change is not None:
            changed = change(planes[:, :3])
            for tower in range(len(self.sizes)):
                planes[:, 3 * tower : 3 * tower + 3] = changed
        return planes.sub_(self._mean).div_(self._std)

    def _pixels(self, image: np.ndarray) -> UInt8[np.ndarray, "size size 6"]:
        array = np.asarray(image)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
            raise ValueError(
                f"image is {array.dtype} {list(array.shape)}, wanted uint8 [height, width, 3] (RGB)"
            )
        picture = Image.fromarray(array)
        resized = {size: np.asarray(self._resize(picture, size)) for size in set(self.sizes)}
        return np.concatenate([resized[size] for size in self.sizes], axis=2)

    def _resize(self, picture: Image.Image, size: int) -> Image.Image:
        if self.strategy == "resize-naive":
            return picture.resize((size, size), Image.Resampling.BICUBIC)
        if self.strategy == "letterbox":
            picture = _letterbox(picture, self.fill)
        width, height = picture.size
        if width <= height:
            scaled = (size, int(size * height / width))
        else:
            scaled = (int(size * width / height), size)
        left, top = round((scaled[0] - size) / 2.0), round((scaled[1] - size) / 2.0)
        picture = picture.resize(scaled, Image.Resampling.BICUBIC)
        return picture.crop((left, top, left + size, top + size))


def _letterbox(picture: Image.Image, fill: tuple[int, ...]) -> Image.Image:
    """Pad the short sides equally; an odd difference leaves the picture one pixel short of square."""
    width, height = picture.size
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    canvas = Image.new("RGB", (width + 2 * left, height + 2 * top), fill)
    canvas.paste(picture, (left, top))
    return canvas
