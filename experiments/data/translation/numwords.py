"""`numwords`: numbers below a million in words, from German to English. Generated, no files.

The smallest task with a real difference in order between the languages (einundzwanzig, twenty-one)
and with compounds that have no spaces:

    neunhunderteinundzwanzigtausendsiebzehn    nine hundred twenty-one thousand seventeen

The numbers come from a hash of 0, 1, 2, ..., each number once: the first are for training, the
next for validation and the last for testing.
"""

import hashlib
from collections.abc import Iterable
from itertools import islice

from experiments.data.original import Arrays
from experiments.data.translation.parallel_text import Pairs, pack

_LIMIT = 1_000_000
_SIZES = {"train": 20_000, "validation": 500, "test": 500}

# The words of 0 to 19, and of 20, 30, ..., 90.
_ONES = (
    ("null", "zero"),
    ("ein", "one"),
    ("zwei", "two"),
    ("drei", "three"),
    ("vier", "four"),
    ("fünf", "five"),
    ("sechs", "six"),
    ("sieben", "seven"),
    ("acht", "eight"),
    ("neun", "nine"),
    ("zehn", "ten"),
    ("elf", "eleven"),
    ("zwölf", "twelve"),
    ("dreizehn", "thirteen"),
    ("vierzehn", "fourteen"),
    ("fünfzehn", "fifteen"),
    ("sechzehn", "sixteen"),
    ("siebzehn", "seventeen"),
    ("achtzehn", "eighteen"),
    ("neunzehn", "nineteen"),
)
_TENS = (
    ("zwanzig", "twenty"),
    ("dreißig", "thirty"),
    ("vierzig", "forty"),
    ("fünfzig", "fifty"),
    ("sechzig", "sixty"),
    ("siebzig", "seventy"),
    ("achtzig", "eighty"),
    ("neunzig", "ninety"),
)
_GERMAN, _ENGLISH = 0, 1


def read() -> Arrays:
    """The packed text of the three splits."""
    numbers = iter(_numbers(sum(_SIZES.values())))
    return pack({split: _pairs(islice(numbers, size)) for split, size in _SIZES.items()})


def _pairs(numbers: Iterable[int]) -> Pairs:
    return [(german(number).encode(), english(number).encode()) for number in numbers]


def _numbers(count: int) -> list[int]:
    """The first `count` different numbers of the hash."""
    chosen: dict[int, None] = {}
    index = 0
    while len(chosen) < count:
        digest = hashlib.sha256(f"numwords:{index}".encode()).digest()
        chosen[int.from_bytes(digest[:8], "big") % _LIMIT] = None
        index += 1
    return list(chosen)


def german(number: int) -> str:
    """A number in `[0, 1_000_000)` in German, as one word.

    >>> german(21), german(101), german(1001), german(700_016)
    ('einundzwanzig', 'einhunderteins', 'eintausendeins', 'siebenhunderttausendsechzehn')
    """
    thousands, rest = divmod(number, 1000)
    words = f"{_german_below_1000(thousands)}tausend" if thousands else ""
    if rest or not thousands:
        words += _german_below_1000(rest)
    # A one is "ein" before what it counts, and "eins" at the end of the number.
    return f"{words}s" if rest % 100 == 1 else words


def _german_below_1000(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    words = f"{_ONES[hundreds][_GERMAN]}hundert" if hundreds else ""
    if not rest and hundreds:
        return words
    if rest < 20:
        return words + _ONES[rest][_GERMAN]
    tens, ones = divmod(rest, 10)
    before = f"{_ONES[ones][_GERMAN]}und" if ones else ""
    return words + before + _TENS[tens - 2][_GERMAN]


def english(number: int) -> str:
    """A number in `[0, 1_000_000)` in English.

    >>> english(21), english(101), english(1001), english(700_016)
    ('twenty-one', 'one hundred one', 'one thousand one', 'seven hundred thousand sixteen')
    """
    thousands, rest = divmod(number, 1000)
    words = [_english_below_1000(thousands), "thousand"] if thousands else []
    if rest or not thousands:
        words.append(_english_below_1000(rest))
    return " ".join(words)


def _english_below_1000(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    words = [_ONES[hundreds][_ENGLISH], "hundred"] if hundreds else []
    if rest >= 20:
        tens, ones = divmod(rest, 10)
        words.append(_TENS[tens - 2][_ENGLISH] + (f"-{_ONES[ones][_ENGLISH]}" if ones else ""))
    elif rest or not hundreds:
        words.append(_ONES[rest][_ENGLISH])
    return " ".join(words)
