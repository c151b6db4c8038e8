"""python -m bench [NAME ...]: the named benchmarks, or all."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import bench
from bench.report import say

NOT_BENCHMARKS = {"__main__", "report", "prepare", "visit"}


def main() -> int:
    known = sorted(module.name for module in pkgutil.iter_modules(bench.__path__) if module.name not in NOT_BENCHMARKS)
    names = sys.argv[1:] or known
    unknown = sorted(set(names) - set(known))
    if unknown:
        say(f"bench: no benchmark {', '.join(unknown)}; there are {', '.join(known)}")
        return 2
    for number, name in enumerate(names, 1):
        say(f"bench: {name} ({number} of {len(names)})")
        importlib.import_module(f"bench.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
