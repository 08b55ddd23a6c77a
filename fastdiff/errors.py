"""The errors this package raises. Each message says what was given, what is allowed and what to do."""


class FastdiffError(Exception):
    """Base of every error raised by this package."""


class PlanError(FastdiffError, ValueError):
    """A plan or row cannot be built: a bad setting, a coefficient that is not finite, a corrupt plan file."""


class InputError(FastdiffError, ValueError):
    """Tensors or seeds do not fit: shape, dtype, layout, device, overlap, range."""


class NetworkError(FastdiffError, ValueError):
    """The network returned something other than a tensor of the promised shape, dtype, device and layout."""


class BackendError(FastdiffError, RuntimeError):
    """No backend can do what was asked, or the one that was forced cannot; each reason is listed."""


class CheckpointError(FastdiffError, ValueError):
    """A file is not a safetensors checkpoint of the expected kind."""


class OutputError(FastdiffError, OSError):
    """A result cannot be written where it was asked to go."""
