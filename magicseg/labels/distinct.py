"""Refuse labels that a model cannot tell apart, because its tokenizer gives them the same tokens."""

from collections.abc import Hashable, Sequence

from magicseg.core.errors import BackendError
from magicseg.core.text import printable


def refuse_alike(names: Sequence[str], meanings: Sequence[Hashable], reader: str) -> None:
    """Raise BackendError if two labels have the same tokens. The message names the first two.

    Args: meanings: each name's tokens, as the model sees them. reader: the model or component, for the message.
    """
    first: dict[Hashable, str] = {}
    for name, meaning in zip(names, meanings, strict=True):
        if meaning in first:
            raise BackendError(
                f"{reader} cannot tell label {printable(name, 60)!r} from {printable(first[meaning], 60)!r}: "
                "its tokenizer gives both the same tokens (unknown words, or truncated at its length)",
                hint="rename one of them: shorter, or in the language of the model",
            )
        first[meaning] = name


def refuse_unknown(names: Sequence[str], meanings: Sequence[Sequence[int]], unknown: int | None, reader: str) -> None:
    """Raise BackendError for the first label that has no known token.

    Args: meanings: each name's tokens, from `known_tokens`. reader: the model or component, for the message.
    """
    for name, meaning in zip(names, meanings, strict=True):
        if unknown is not None and set(meaning) <= {unknown}:
            raise BackendError(
                f"{reader} knows no word of label {printable(name, 60)!r}",
                hint="give it a name in the language of the model",
            )


def known_tokens(tokens: Sequence[int], *, unknown: int | None, special: Sequence[int]) -> tuple[int, ...]:
    """Return a text's tokens without special tokens. Consecutive unknown tokens are merged into one."""
    kept: list[int] = []
    for token in tokens:
        if token == unknown:
            if not kept or kept[-1] != unknown:
                kept.append(token)
        elif token not in special:
            kept.append(token)
    return tuple(kept)
