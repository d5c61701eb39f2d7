"""The words of an output and the tokens that spell them, for any vocabulary."""

import re
from collections.abc import Callable, Sequence

# Chinese characters and Japanese kana, written without spaces, count one by one
WORD = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff]|[^\s\u2e80-\u9fff\uf900-\ufaff]+")


def split_words(text: str) -> list[str]:
    """Words between white space; a Chinese or Japanese character is a word of its own."""
    return WORD.findall(text)


def words_of_tokens(tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[int | None]:
    """For each token the number of the word of ``decode(tokens)`` that it helps to spell.

    A token that adds nothing to the text (a space of its own, half a character) belongs to the word that the next one
    goes on with. None: to no word (end of sentence, language).
    """
    last = len(split_words(decode(tokens))) - 1
    owners: list[int | None] = []
    waiting, before = 0, ""
    for count in range(1, len(tokens) + 1):
        text = decode(tokens[:count])
        if text.strip() == before:
            waiting += 1
            continue
        before = text.strip()
        owner = min(len(split_words(before)) - 1, last)
        owners += [owner] * (waiting + 1)
        waiting = 0
    return owners + [None] * waiting
