"""The mathematics of one tile of elements in Triton: Philox, normals, and the row.

Only ``tl.core`` builtins are used, without autotuning, device libraries or inline assembly, so that the same source
compiles without a GPU, for NVIDIA and AMD, and runs in Triton's interpreter.
"""
