"""The tokenizer of both learned models: CLIP's byte pair encoding in which every word of the grammar is one token.

Other text is split into smaller pieces, as by any CLIP tokenizer.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import CLIPTokenizer

from magicseg.stages.describe.words import COLOURS, FILLERS, LIGHTS, OPENINGS, PLACES, SCENES, SIZES
from magicseg.stages.generate.counterfactual_caption import REPLACEMENT
from training.scenes import nouns

LENGTH = 32  # enough for captions with one or two objects

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"


def words() -> list[str]:
    """Return all words of captions, sorted, in lower case."""
    phrases = [phrase.text for phrase in (*PLACES, *SCENES, *LIGHTS)]
    texts = [*FILLERS, *COLOURS, *SIZES, *nouns(), *phrases, *OPENINGS, REPLACEMENT]
    return sorted({word for text in texts for word in re.findall(r"[a-z]+", text.lower())})


def merges(of: Sequence[str]) -> list[tuple[str, str]]:
    """Train byte pair encoding (Sennrich et al. 2016, arXiv 1508.07909) until every word is one token."""
    split = [[*word[:-1], word[-1] + _WORD_END] for word in of]
    learned: list[tuple[str, str]] = []
    while pairs := Counter(pair for signs in split for pair in itertools.pairwise(signs)):
        most = max(pairs.values())
        best = min(pair for pair, count in pairs.items() if count == most)
        learned.append(best)
        split = [_merged(signs, best) for signs in split]
    return learned


def _merged(signs: Sequence[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    for sign in signs:
        if result and (result[-1], sign) == pair:
            result[-1] += sign
        else:
            result.append(sign)
    return result


def write_tokenizer(folder: Path) -> Any:
    """Write a CLIP tokenizer's files into a folder. Returns: the `CLIPTokenizer`."""
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters += [chr(256 + number) for number in range(256 - len(letters))]  # CLIP's characters for the 256 bytes
    learned = merges(words())
    pieces = [*letters, *(letter + _WORD_END for letter in letters), *map("".join, learned), _START, _END]
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "bos_token": _START}
    settings |= {"eos_token": _END, "unk_token": _END, "pad_token": _END}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({piece: id_ for id_, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in learned))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return CLIPTokenizer.from_pretrained(folder)


def token_ids(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Return token ids, int64 (texts, LENGTH), padded with the end token."""
    ids: Tensor = tokenizer(
        list(texts), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    return ids
