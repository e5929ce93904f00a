"""The files of a plain PEFT adapter, and reading its LoRA configuration."""

from __future__ import annotations

from pathlib import Path

from peft import LoraConfig

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def read_lora_config(folder: Path) -> LoraConfig:
    """The configuration of the adapter in `folder`.

    Raises:
        ValueError: there is none, it is broken, or of another kind than LoRA.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(f"no {ADAPTER_CONFIG} in {folder}; wanted the folder of a PEFT adapter")
    try:
        config = LoraConfig.from_pretrained(str(folder))
    except Exception as error:  # PEFT raises whatever a wrong field leads to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{folder / ADAPTER_CONFIG} is no LoRA configuration ({reason})") from error
    if not isinstance(config, LoraConfig):
        kind = getattr(config, "peft_type", None)
        raise ValueError(f"{folder / ADAPTER_CONFIG} is of type {kind}; only LoRA adapters are read")
    if not all(isinstance(number, int | float) and number > 0 for number in (config.r, config.lora_alpha)):
        got = f"r {config.r!r} and lora_alpha {config.lora_alpha!r}"
        raise ValueError(f"{folder / ADAPTER_CONFIG} has {got}; wanted numbers above 0")
    return config
