"""A small tokenizer for the tiny twin: robot-instruction English in few tokens, any text in some.

512 ids laid out as in a real vocabulary: specials, printable ASCII, learned pieces, and the last 256 are the
action bins; padding comes after. The two halves of the prompt template are one token each.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

VOCAB_SIZE = 512
ACTION_BINS = 256
UNK, BOS, EOS, EMPTY = "<unk>", "<s>", "</s>", "\u2581"
PAD = "<PAD>"
TEMPLATE_START = "In: What action should the robot take to "
TEMPLATE_END = "?\nOut:"

# What instructions are made of, most useful first; earlier words weigh more when pieces are learned.
_WORDS = """
the pick up lift cube red block place put and in on to move push open close drawer from into of with grasp
grab take turn button table left right cup bowl pot pan lid plate spoon green blue yellow orange purple it
its off out at over under near behind front top bottom side between lamp towel cloth can bottle box basket
sink stack slide pull press fold wipe pour rotate reach hold carry bring set down flip insert remove knob
switch handle door cabinet shelf fridge oven stove microwave tray rack peg nut ring ball toy banana carrot
apple corn object objects gripper arm arms hand robot base both small large big square round white black
brown gray gold silver metal wooden one two three another other first second then while toward away back
forward corner center edge raise handover gently
"""


def build_tiny_tokenizer() -> Tokenizer:
    """The tokenizer, the same on every machine."""
    characters = [EMPTY, "\n", *(chr(code) for code in range(33, 127))]
    pieces = [UNK, BOS, EOS, *characters, TEMPLATE_START, TEMPLATE_END]
    merges = _learn_merges(_WORDS.split(), VOCAB_SIZE - ACTION_BINS - len(pieces))
    pieces += [left + right for left, right in merges]
    assert len(pieces) == VOCAB_SIZE - ACTION_BINS == len(set(pieces))
    pieces += [f"<action_{index}>" for index in range(ACTION_BINS)]
    vocab = {piece: index for index, piece in enumerate([*pieces, PAD])}

    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=UNK, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Replace(Regex("[ \t]+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=EMPTY, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocab[BOS])]
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (TEMPLATE_START, TEMPLATE_END)])
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in (UNK, BOS, EOS, PAD)])
    return tokenizer


def save_tiny_tokenizer(directory: Path) -> None:
    """Write `tokenizer.json` and a `tokenizer_config.json` that transformers reads."""
    build_tiny_tokenizer().save(str(directory / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNK,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n")


def _learn_merges(words: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Byte-pair encoding (Sennrich et al., 1508.07909) of words; ties go to the alphabetically first pair."""
    weights = Counter({word: 1 + (len(words) - rank) // 8 for rank, word in enumerate(words)})
    split = {word: [EMPTY, *word] for word in weights}
    merges: list[tuple[str, str]] = []
    made: set[str] = set()
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in split.items():
            for pair in itertools.pairwise(pieces):
                pairs[pair] += weights[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        assert best[0] + best[1] not in made
        made.add(best[0] + best[1])
        merges.append(best)
        split = {word: _join(pieces, best) for word, pieces in split.items()}
    return merges


def _join(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined
