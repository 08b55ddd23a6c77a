"""Makes the tools of ``tests/gpu`` importable here: compiling, and the checks of a sanitized process."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))
