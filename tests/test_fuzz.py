"""Every reader, on files that are damaged at random and on purpose: an error of astrogen, or the
values that were written; no other exception, no hang, no crash, no memory beyond a limit.
"""

from collections import Counter

import pytest
from fuzzing import READERS, Cases

FEW, MANY = 3, 130  # cases of each reader
SMALL = [name for name, reader in READERS.items() if reader.share == 1]


@pytest.fixture(scope="module")
def cases():
    cases = Cases()
    yield cases
    cases.close()


def _wrong(cases, name, numbers):
    """What became of the cases, counted, and those that must not be."""
    ends = {number: cases.run(name, number) for number in numbers}
    print(f"{name}: {dict(Counter(word for word, _ in ends.values()))}")
    return [
        (number, word, told)
        for number, (word, told) in ends.items()
        if word not in ("read", "refused")
    ]


@pytest.mark.parametrize("name", SMALL)
def test_a_few_damaged_files_are_read_or_refused(cases, name):
    assert not _wrong(cases, name, range(FEW))


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files_are_read_or_refused(cases, name):
    assert not _wrong(
        cases, name, range(FEW if name in SMALL else 0, int(MANY * READERS[name].share))
    )


def test_enough_cases_are_tried():
    assert sum(int(MANY * reader.share) for reader in READERS.values()) >= 5000
