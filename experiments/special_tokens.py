"""The token ids with which every vocabulary begins."""

PAD = 0  # behind the last token of a row
UNK = 1  # a token that is not in the vocabulary
BOS = 2  # before the first target
EOS = 3  # behind the last token of a sentence
MASK = 4  # a token that is to be guessed; vocabularies of one language have it, others do not
