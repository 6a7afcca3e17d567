"""How many tokens a text encoder sees in a caption: an estimate from above that needs no tokenizer."""

import re

CLIP_TOKENS = 75  # CLIP's text encoders read 77, two of which mark start and end

_PIECE = re.compile(r"[A-Za-z]+|[^A-Za-z\s]")
_WHOLE_WORD = 6  # letters; English words up to here are nearly always one token of CLIP's
_LETTERS_PER_TOKEN = 4
_RESERVE = 2


def count_tokens(text: str) -> int:
    """An upper estimate of CLIP's tokens in a text (start and end not counted).

    Words of up to six letters count as one token, longer ones as one for each four letters, digits and marks as
    one each, letters beyond ASCII as one for each of their bytes; two more are held in reserve.
    """
    return _RESERVE + sum(map(_cost, _PIECE.findall(text)))


def _cost(piece: str) -> int:
    if not piece.isascii():
        return len(piece.encode("utf-8", "surrogatepass"))
    return 1 if len(piece) <= _WHOLE_WORD else -(-len(piece) // _LETTERS_PER_TOKEN)
