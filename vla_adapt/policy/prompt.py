"""The instruction as OpenVLA reads it: prompt text, token ids, and the empty token before the actions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer

from vla_adapt.policy.configuration import OpenVLAConfig

_KEPT_IDS = 2_000_000  # of known prompts, some 70 MB: a server may be asked ever new ones


def prompt_text(instruction: Any) -> str:
    """OpenVLA's prompt around an instruction (text), which it was trained on in lower case.

    Raises:
        ValueError: when the instruction is empty or not text.
    """
    if not isinstance(instruction, str) or not instruction.strip():
        raise ValueError(f"got instruction {instruction!r}; wanted a sentence such as 'pick up the cup'")
    return f"In: What action should the robot take to {instruction.strip().lower()}?\nOut:"


class PromptTokenizer:
    """Instructions to right-padded token ids that end in the empty token, ready for action tokens to follow.

    Args:
        tokenizer: of the checkpoint.
        bos_token_id: start of every sequence.
        empty_token_id: precedes the first action token.
        pad_token_id: fills the right.
    """

    def __init__(self, tokenizer: Tokenizer, bos_token_id: int, empty_token_id: int, pad_token_id: int):
        self.tokenizer = tokenizer
        self.bos_token_id = bos_token_id
        self.empty_token_id = empty_token_id
        self.pad_token_id = pad_token_id
        self._known: dict[str, list[int]] = {}
        self._room = _KEPT_IDS

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> PromptTokenizer:
        """Read `tokenizer.json` and the special ids of a checkpoint folder."""
        path = Path(directory) / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"no tokenizer.json in {directory}; download the checkpoint's tokenizer files")
        config = OpenVLAConfig.from_pretrained(directory)
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return cls(tokenizer, config.text["bos_token_id"], config.empty_token_id, config.pad_token_id)

    def ids(self, instruction: str) -> list[int]:
        """Token ids of one prompt: BOS, text, empty token."""
        known = self._known.get(instruction)
        if known is None:
            known = self.tokenizer.encode(prompt_text(instruction)).ids
            if known[0] != self.bos_token_id:
                known = [self.bos_token_id, *known]
            if known[-1] != self.empty_token_id:
                known = [*known, self.empty_token_id]
            if len(known) <= self._room:
                self._room -= len(known)
                self._known[instruction] = known
        return known

    def __call__(
        self, instructions: Sequence[str]
    ) -> tuple[Int[torch.Tensor, "B T"], Bool[torch.Tensor, "B T"]]:
        """Right-padded ids and attention mask of a batch of instructions."""
        rows = [self.ids(instruction) for instruction in instructions]
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self.pad_token_id, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = True
        return ids, mask
