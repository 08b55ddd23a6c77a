"""What a planted fault is."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """A fault: in a file of the repository, ``right`` becomes ``wrong``, and ``test`` must fail.

    ``right`` occurs once in the file; ``test`` is the node id of a test, or of all the cases of one.
    """

    fault: str
    file: str
    right: str
    wrong: str
    test: str
