"""The one error of the executor."""


class PtxError(Exception):
    """PTX that is not understood, or that does something it must not."""
