"""Numbers in words: known ones, and all read back by a parser that shares nothing with them."""

import re

import pytest

from experiments.data.catalog import translation_set
from experiments.data.lookup import find
from experiments.data.translation.numwords import english, german

KNOWN = {
    0: ("null", "zero"),
    1: ("eins", "one"),
    7: ("sieben", "seven"),
    12: ("zwölf", "twelve"),
    16: ("sechzehn", "sixteen"),
    17: ("siebzehn", "seventeen"),
    20: ("zwanzig", "twenty"),
    21: ("einundzwanzig", "twenty-one"),
    30: ("dreißig", "thirty"),
    66: ("sechsundsechzig", "sixty-six"),
    77: ("siebenundsiebzig", "seventy-seven"),
    100: ("einhundert", "one hundred"),
    101: ("einhunderteins", "one hundred one"),
    111: ("einhundertelf", "one hundred eleven"),
    1000: ("eintausend", "one thousand"),
    1001: ("eintausendeins", "one thousand one"),
    2021: ("zweitausendeinundzwanzig", "two thousand twenty-one"),
    21_000: ("einundzwanzigtausend", "twenty-one thousand"),
    101_101: (
        "einhunderteintausendeinhunderteins",
        "one hundred one thousand one hundred one",
    ),
    999_999: (
        "neunhundertneunundneunzigtausendneunhundertneunundneunzig",
        "nine hundred ninety-nine thousand nine hundred ninety-nine",
    ),
}

GERMAN_UNITS = {
    "null": 0, "eins": 1, "ein": 1, "zwei": 2, "drei": 3, "vier": 4, "fünf": 5, "sechs": 6,
    "sieben": 7, "acht": 8, "neun": 9, "zehn": 10, "elf": 11, "zwölf": 12, "dreizehn": 13,
    "vierzehn": 14, "fünfzehn": 15, "sechzehn": 16, "siebzehn": 17, "achtzehn": 18,
    "neunzehn": 19,
}  # fmt: skip
GERMAN_TENS = {
    "zwanzig": 20, "dreißig": 30, "vierzig": 40, "fünfzig": 50, "sechzig": 60, "siebzig": 70,
    "achtzig": 80, "neunzig": 90,
}  # fmt: skip
ENGLISH = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
    "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14,
    "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20,
    "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip


def read_german(text):
    """By taking the longest known word off the front again and again."""
    words = sorted((*GERMAN_UNITS, *GERMAN_TENS, "und", "hundert", "tausend"), key=len)[::-1]
    found = re.findall("|".join(words), text)
    assert "".join(found) == text
    total = part = 0
    for word in found:
        if word == "tausend":
            total, part = total + 1000 * part, 0
        elif word == "hundert":
            part *= 100
        elif word != "und":
            part += GERMAN_UNITS.get(word, GERMAN_TENS.get(word))
    return total + part


def read_english(text):
    total = part = 0
    for word in re.split("[ -]", text):
        if word == "thousand":
            total, part = total + 1000 * part, 0
        elif word == "hundred":
            part *= 100
        else:
            part += ENGLISH[word]
    return total + part


@pytest.mark.parametrize("number", KNOWN)
def test_known_numbers(number):
    assert (german(number), english(number)) == KNOWN[number]


def test_all_are_read_back():
    for number in (*range(2000), *range(2000, 1_000_000, 97), *range(999_000, 1_000_000)):
        assert read_german(german(number)) == number
        assert read_english(english(number)) == number
        # a one is never "eins" inside, nor "ein" at the end
        assert not re.search("eins(hundert|tausend|und)", german(number))
        assert not german(number).endswith("ein")


def test_the_splits_are_distinct_numbers_that_translate_each_other():
    text = find(translation_set("numwords"))
    sizes = {split: len(pairs) for split, pairs in text.splits.items()}
    assert sizes == {"train": 20_000, "validation": 500, "test": 500}
    pairs = [
        (read_german(source.decode()), read_english(target.decode()))
        for split in text.splits.values()
        for source, target in split
    ]
    assert all(source == target for source, target in pairs)
    numbers = [source for source, _ in pairs]
    assert len(set(numbers)) == 21_000
    # spread evenly: a tenth below 100,000
    assert sum(number < 100_000 for number in numbers) == pytest.approx(2100, rel=0.1)
