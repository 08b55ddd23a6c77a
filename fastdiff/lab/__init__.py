"""The laboratory: benchmarks, fuzzing, and the statistics of the noise."""
