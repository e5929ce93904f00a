"""QLoRA (Dettmers et al., 2305.14314): low-rank adapters on a base held in 4 bits while it trains.

Judged, saved and served is the adapter on the base's own weights, as any other one.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

from torch import nn

from vla_adapt.adaptation.lora import Lora
from vla_adapt.policy.openvla import OpenVLA


class QLora(Lora):
    """As `lora`, with the base's linear layers but its output layer in 4-bit NormalFloat (bitsandbytes).

    Block constants are quantized too. Numbers are computed in the base's type (`train.precision`).
    """

    kind: Literal["qlora"] = "qlora"  # type: ignore[assignment]

    def prepare(self, model: OpenVLA, robots: list[str]) -> None:
        """Quantize the model, then inject the adapters.

        Raises:
            ValueError: bitsandbytes is not installed; robots that no adapter can be named after.
        """
        check_bitsandbytes("adaptation 'qlora'", "adaptation.kind=lora")
        quantize(model)
        super().prepare(model, robots)

    def finish(self, model: OpenVLA) -> None:
        """Put the base's own weights back under the adapters."""
        restore(model)


def check_bitsandbytes(what: str, instead: str) -> None:
    """Raise ValueError when bitsandbytes, which `what` needs, is not installed."""
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            f"{what} needs bitsandbytes, which is not installed: pip install 'vla_adapt[qlora]', or choose "
            f"{instead}"
        )


def is_quantizable(name: str, layer: nn.Module) -> bool:
    """Whether `quantize` replaces the layer called `name`: linear, not `lm_head`, of ordinary widths.

    bitsandbytes 0.50 on a GPU (H100) ends in "misaligned address" for 16-bit rows that are not a multiple of
    16 bytes long; the tiny base has such a layer, OpenVLA-7B none.
    """
    if type(layer) is not nn.Linear or "lora_" in name or "lm_head" in name:
        return False
    return layer.in_features % 8 == layer.out_features % 8 == 0


def quantize(model: OpenVLA) -> None:
    """Replace linear layers (`is_quantizable`) by ones that hold their weight in nf4."""
    import bitsandbytes  # pyright: ignore[reportMissingImports]

    for name, linear in list(model.named_modules()):
        if not is_quantizable(name, linear):
            continue
        assert isinstance(linear, nn.Linear)
        layer = bitsandbytes.nn.Linear4bit(
            linear.in_features, linear.out_features, bias=linear.bias is not None,
            compute_dtype=model.dtype, quant_type="nf4", compress_statistics=True, device="meta",
        )  # fmt: skip
        layer.weight = bitsandbytes.nn.Params4bit(
            linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=layer
        )
        layer.bias = linear.bias
        _put(model, name, layer.to(linear.weight.device))


def restore(model: OpenVLA) -> None:
    """Replace the quantized layers, adapters on them or not, by the checkpoint's own."""
    fresh = OpenVLA.from_pretrained(model.source, dtype=model.dtype, device=model.device)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and hasattr(module.weight, "quant_state"):
            linear = fresh.get_submodule(name.removesuffix(".base_layer"))
            _put(model, name, linear.requires_grad_(False))


def _put(model: nn.Module, name: str, layer: Any) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
