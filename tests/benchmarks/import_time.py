"""What `import funprop` adds to `import jax, optax, chex`, in fresh processes.

Target: at most 0.2 s. Run: python -m tests.benchmarks.import_time
"""

import statistics
import subprocess
import sys

from tests.benchmarks.harness import header

CODE = """
import time, jax, optax, chex
start = time.perf_counter()
import funprop
print(time.perf_counter() - start)
"""


def main() -> None:
    """Print the median of ten."""
    header()
    seconds = [
        float(subprocess.run([sys.executable, "-c", CODE], capture_output=True, check=True).stdout)
        for _ in range(10)
    ]
    print(
        f"import funprop adds {statistics.median(seconds):.3f} s "
        f"(from {min(seconds):.3f} to {max(seconds):.3f}; target: at most 0.2 s)"
    )


if __name__ == "__main__":
    main()
