"""Runs compiled PTX on the CPU, thread by thread in numpy, and checks every access to memory.

``parser`` reads the text, ``memory`` holds the buffers and their checks, ``arithmetic`` rounds as the hardware is
documented to, ``instructions`` gives each instruction its meaning and ``execution`` schedules the threads. What is not
known is an error. The meaning of instructions is that of the *PTX ISA* reference manual.
"""

from .errors import PtxError
from .execution import Statistics, execute
from .memory import Memory, Region
from .parser import Kernel, parse

__all__ = ["Kernel", "Memory", "PtxError", "Region", "Statistics", "execute", "parse"]
