"""Rivals: what people use today, each as a contestant. Written from papers, or their own code where installed."""

from fastdiff.lab.bench.contestant import Contestant, backend
from fastdiff.lab.bench.rivals.compiled import COMPILED, forget
from fastdiff.lab.bench.rivals.eager import EAGER
from fastdiff.lab.bench.rivals.installed import INSTALLED

RIVALS: dict[str, Contestant] = {rival.name: rival for rival in (*EAGER, *INSTALLED, *COMPILED, backend("reference"))}

__all__ = ["RIVALS", "forget"]
