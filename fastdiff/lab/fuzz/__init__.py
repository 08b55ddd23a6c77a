"""Fuzzing: random rows and random samplers on every backend that runs here, compared bit for bit.

``fastdiff fuzz`` runs it; ``docs/fuzzing.md`` says what is drawn, what is compared, and how to add a backend.
"""
