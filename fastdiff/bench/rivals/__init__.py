"""Rivals: what people use today, each as a contestant. Written from papers, or their own code where installed."""

from fastdiff.bench.contestant import Contestant, backend
from fastdiff.bench.rivals.compiled import COMPILED, forget
from fastdiff.bench.rivals.eager import EAGER
from fastdiff.bench.rivals.installed import INSTALLED

RIVALS: dict[str, Contestant] = {rival.name: rival for rival in (*EAGER, *INSTALLED, *COMPILED, backend("reference"))}

__all__ = ["RIVALS", "forget"]
