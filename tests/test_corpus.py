"""Every case that ever failed passes now, on the reference, every usable backend and emulated CUDA."""

import pytest

from fastdiff.lab.fuzz import corpus, variants
from fastdiff.lab.fuzz.campaign import replay

CORPUS = variants.CHECKOUT / "tests" / "corpus" / corpus.NAME
LINES = corpus.read(CORPUS)


@pytest.fixture(scope="module")
def everything():
    plugins = variants.checkout_plugins()
    fast = {name: plugin for name, plugin in plugins.items() if plugin.share >= 1}
    return variants.usable(fast)


def test_there_is_a_corpus():
    assert LINES


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_what_failed_once_passes(line, everything):
    assert replay(corpus.read_line(line), everything) == []
