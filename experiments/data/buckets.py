"""Batches of examples of similar length, under a fixed budget of tokens.

Padding is computed on like anything else, so examples are sorted into buckets by their length, the
longer of source and target. Buckets end at 16, 32, 64 and so on, and the last at the longest
example. Every batch of a bucket has the same shape, hence a program is compiled once per bucket:
`tokens // length` examples, or all of the bucket if it has fewer, padded to `length`. From eight
examples on it is a multiple of eight, as Fairseq makes it, so that up to eight devices can share
it; fewer are left as they are.

An epoch cuts every bucket, in a new order, into full batches, and visits the batches of all
buckets in a new order. What does not fill a batch is left out, other examples each time. Both
orders are parts of one permutation of the run's random stream (`pipeline.epoch_permutation`): of
the numbers of examples and batches together. Restricted to the examples it is a uniform order of
those, restricted to the batches an independent one of these.
"""

import dataclasses

import numpy as np

from experiments.data.example_order import epoch_permutation

_SHORTEST = 16
_MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The static shape of a batch.

    Attributes:
      size: number of examples.
      length: tokens of a row, source and target alike, padding included.
    """

    size: int
    length: int


class Buckets:
    """Examples sorted by length.

    Attributes:
      buckets: the shapes, by increasing length.
      batches_per_epoch: number of batches of all buckets together, the same in every epoch.

    >>> buckets = Buckets(np.array([3, 20, 5, 9, 18, 2]), tokens=40)
    >>> buckets.buckets
    (Bucket(size=2, length=16), Bucket(size=2, length=20))
    >>> len(buckets.batches(seed=0, epoch=0)), buckets.order(seed=0, epoch=0).shape
    (3, (6,))
    """

    def __init__(self, lengths: np.ndarray, tokens: int):
        """Sorts examples into buckets.

        Args:
          lengths: integers `(N,)`, tokens of each example: the longer of source and target.
          tokens: most tokens of a batch, source or target, padding included. A batch has at least
            one example, be it longer.

        Raises:
          ValueError: there is no example, or no token in a batch.
        """
        if not len(lengths) or tokens < 1:
            raise ValueError(
                f"{len(lengths)} examples in batches of {tokens} tokens: expected at least 1 each"
            )
        self._examples = len(lengths)
        ends = np.asarray(_ends(int(lengths.max())))
        # Of these, the ones that are not empty, and which of them every example is in.
        kept, self._of_example, counts = np.unique(
            np.searchsorted(ends, lengths), return_inverse=True, return_counts=True
        )
        self.buckets = tuple(
            Bucket(_shareable(min(count, max(1, tokens // end))), end)
            for count, end in zip(counts.tolist(), ends[kept].tolist(), strict=True)
        )
        self._batches = [
            count // bucket.size
            for count, bucket in zip(counts.tolist(), self.buckets, strict=True)
        ]
        self.batches_per_epoch = sum(self._batches)

    @classmethod
    def of_every_length(cls, longest: int, tokens: int) -> "Buckets":
        """One full batch of each length up to the longest, where the examples are not there.

        >>> Buckets.of_every_length(40, tokens=64).buckets
        (Bucket(size=4, length=16), Bucket(size=2, length=32), Bucket(size=1, length=40))
        """
        ends = _ends(longest)
        return cls(np.repeat(ends, [max(1, tokens // end) for end in ends]), tokens)

    def batches(self, seed: int, epoch: int) -> list[Bucket]:
        """The shapes of an epoch's batches, in order."""
        return [self.buckets[number] for number, _ in self._epoch(seed, epoch)]

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The examples of an epoch's batches, one batch after the other: int32.

        Batch `i` of `batches(seed, epoch)` has the next `batches[i].size` of them.
        """
        return np.concatenate([examples for _, examples in self._epoch(seed, epoch)])

    def members(self, number: int) -> np.ndarray:
        """All examples of a bucket, counted as in `buckets`, in their own order: int32."""
        return np.flatnonzero(self._of_example == number).astype(np.int32)

    def _epoch(self, seed: int, epoch: int) -> list[tuple[int, np.ndarray]]:
        """Every batch of an epoch: the number of its bucket, and its examples."""
        numbers = self._examples + self.batches_per_epoch
        permutation = np.asarray(epoch_permutation(seed, epoch, numbers), np.int32)
        examples = permutation[permutation < self._examples]
        order = permutation[permutation >= self._examples] - self._examples
        batches = []
        for number, (bucket, count) in enumerate(zip(self.buckets, self._batches, strict=True)):
            members = examples[self._of_example[examples] == number][: count * bucket.size]
            batches += [(number, rows) for rows in members.reshape(count, bucket.size)]
        return [batches[i] for i in order]


def _shareable(size: int) -> int:
    """The number of examples, rounded down where there is something to round to.

    >>> _shareable(31), _shareable(8), _shareable(7)
    (24, 8, 7)
    """
    return size if size < _MULTIPLE else size - size % _MULTIPLE


def _ends(longest: int) -> list[int]:
    """The largest length of each bucket: 16, 32, 64, ..., the last cut to what there is.

    >>> _ends(40), _ends(16), _ends(5)
    ([16, 32, 40], [16], [5])
    """
    ends, end = [], _SHORTEST
    while end < longest:
        ends.append(end)
        end *= 2
    return [*ends, longest]
