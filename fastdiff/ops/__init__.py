"""The ops, which everything that moves tensors goes through."""

from fastdiff.ops.schema import fill_noise, gram, normalise_seeds, stage, stage_functional

__all__ = ["fill_noise", "gram", "normalise_seeds", "stage", "stage_functional"]
