"""Benchmarks: what a step costs, beside what people use today, after a proof that both compute the same thing.

``fastdiff bench`` runs them; ``docs/benchmarks.md`` says what is measured and how.
"""
