"""Implementations of the ops ``stage`` and ``fill_noise``; ``reference`` is the specification."""
