"""The mathematics of noise levels, predictions and linear combinations, in 160-bit reals; knows no tensors."""
