"""Makes the modules of this folder importable by their names, whatever the import mode of pytest is."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
