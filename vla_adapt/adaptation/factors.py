"""LoRA adapters as factors: one (A, B, scale) per module, read from and written to PEFT's form.

Working on factors keeps every change of form exact: ranks and scales may differ from module to module, which
PEFT expresses by `rank_pattern` and `alpha_pattern`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import Tensor

from vla_adapt.adaptation.adapter_name import PREFIX

_KEY = re.compile(re.escape(PREFIX) + r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# What makes a LoRA adapter more than W + scale B A: field -> value that leaves it plain.
_PLAIN: dict[str, Any] = {"use_dora": False, "lora_bias": False, "bias": "none", "use_qalora": False}
# What changes or adds parameters outside of (A, B); empty in plain adapters.
OUTSIDE = (
    "modules_to_save", "trainable_token_indices", "layer_replication", "target_parameters", "use_bdlora",
    "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "velora_config",
)  # fmt: skip
_PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva")  # others also change the base's own weights


@dataclass(frozen=True)
class Factor:
    """One module's update, weight + scale B A; convolutions have kernels behind the first two dimensions."""

    a: Float[Tensor, "r in *kernel"]
    b: Float[Tensor, "out r *ones"]
    scale: float

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.a.shape[0]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight it belongs to."""
        return (self.b.shape[0], *self.a.shape[1:])

    def delta(self) -> Float[Tensor, "out in *kernel"]:
        """The change of the weight, computed in float32."""
        product = self.b.float().flatten(1) @ self.a.float().flatten(1)
        return (self.scale * product).reshape(self.weight_shape)


def read_factors(config: LoraConfig, tensors: Mapping[str, Tensor]) -> dict[str, Factor]:
    """Factors by module name.

    Raises:
        ValueError: an adapter that is more than weight + scale B A, tensors that are no LoRA pair, NaN.
    """
    _check_plain(config)
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = _KEY.fullmatch(key)
        if found is None:
            raise ValueError(f"adapter tensor '{key}' is not {PREFIX}MODULE.lora_A.weight or lora_B")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"adapter tensor '{key}' holds NaN or infinity; restore it or train it again")
        sides.setdefault(found["module"], {})[found["side"]] = tensor
    factors = {}
    for module, pair in sides.items():
        if len(pair) != 2:
            raise ValueError(
                f"adapter of '{module}' has lora_{next(iter(pair))} alone; its other half is missing"
            )
        factors[module] = _factor(config, module, pair["A"], pair["B"])
    return factors


def _factor(config: LoraConfig, module: str, a: Tensor, b: Tensor) -> Factor:
    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    rank = ranks.get(get_pattern_key(list(ranks), module), config.r)
    alpha = alphas.get(get_pattern_key(list(alphas), module), config.lora_alpha)
    if (a.shape[0], b.shape[1]) != (rank, rank):
        raise ValueError(
            f"adapter of '{module}': A is {list(a.shape)} and B {list(b.shape)}, but its configuration says "
            f"rank {rank}; copy both files from one save"
        )
    return Factor(a, b, alpha / (math.sqrt(rank) if config.use_rslora else rank))


def _check_plain(config: LoraConfig) -> None:
    odd = [name for name, plain in _PLAIN.items() if getattr(config, name, plain) != plain]
    odd += [name for name in OUTSIDE if getattr(config, name, None)]
    if config.init_lora_weights not in _PLAIN_INITS:
        odd.append("init_lora_weights")
    if odd:
        value = getattr(config, odd[0])
        raise ValueError(
            f"adapter_config.json has {odd[0]} {value!r}; only plain LoRA adapters can be converted"
        )


def write_factors(factors: Mapping[str, Factor], rslora: bool) -> tuple[LoraConfig, dict[str, Tensor]]:
    """PEFT's form: rank and alpha of most modules as the common ones, of the others as patterns.

    Args:
        factors: by module name, at least one.
        rslora: whether alpha counts as in rank-stabilized LoRA (scale = alpha / sqrt(r)).
    """
    ranks = {module: factor.rank for module, factor in factors.items()}
    alphas = {module: _alpha(factor, rslora) for module, factor in factors.items()}
    pairs = Counter((ranks[module], alphas[module]) for module in sorted(factors))
    (rank, alpha), _ = pairs.most_common(1)[0]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT divides it, whole or not
        target_modules=sorted(factors),
        rank_pattern={module: r for module, r in sorted(ranks.items()) if r != rank},
        alpha_pattern={module: a for module, a in sorted(alphas.items()) if a != alpha},  # type: ignore[arg-type]
        use_rslora=rslora,
        bias="none",
        inference_mode=True,
    )
    config.target_modules = sorted(factors)  # PEFT makes a set of it, in another order in every process
    tensors = {}
    for module, factor in sorted(factors.items()):
        for side, tensor in (("A", factor.a), ("B", factor.b)):
            tensors[f"{PREFIX}{module}.lora_{side}.weight"] = tensor.detach().cpu().contiguous()
    return config, tensors


def _alpha(factor: Factor, rslora: bool) -> int | float:
    alpha = factor.scale * (math.sqrt(factor.rank) if rslora else factor.rank)
    return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha
