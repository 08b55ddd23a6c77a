"""The statistical battery: whether the noise of a backend is what it claims to be.

``fastdiff noise`` runs it; ``docs/fuzzing.md`` says what is tested and at which level.
"""
