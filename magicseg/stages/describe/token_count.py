"""Upper estimate of the number of tokens in a caption, without a tokenizer."""

import re

CLIP_TOKENS = 75  # CLIP's text encoders read 77 tokens, including a start and an end token

_PIECE = re.compile(r"[A-Za-z]+|[^A-Za-z\s]")
_WHOLE_WORD = 6  # letters; shorter English words are nearly always one CLIP token
_LETTERS_PER_TOKEN = 4
_RESERVE = 2


def count_tokens(text: str) -> int:
    """Return an upper estimate of the CLIP tokens in a text, without start and end tokens.

    A word of up to six letters counts as one token, a longer word as one token for every four letters. Each digit and
    punctuation mark counts as one token, each non-ASCII character as one token per UTF-8 byte. Two tokens are added
    as a reserve.
    """
    return _RESERVE + sum(map(_cost, _PIECE.findall(text)))


def _cost(piece: str) -> int:
    if not piece.isascii():
        return len(piece.encode("utf-8", "surrogatepass"))
    return 1 if len(piece) <= _WHOLE_WORD else -(-len(piece) // _LETTERS_PER_TOKEN)
