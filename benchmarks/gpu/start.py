"""Start the run of an unpacked kit: `python3 KIT/run.py --help`. A kit holds this file as run.py, beside its packages; it needs nothing but Python."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    kit = Path(__file__).resolve().parent
    places = [str(kit), str(kit / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    # -P: the folder that this is called from may be a checkout, whose code did not make the kernels of the kit
    command = [sys.executable, "-P", "-m", "benchmarks.gpu.run", *sys.argv[1:]]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": os.pathsep.join(places)})
