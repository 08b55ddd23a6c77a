"""Samplers, one step each, and the trace on which a step runs."""
