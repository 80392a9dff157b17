"""Run the claims: `python -m haste.bench --claim cpu-step [--json]`. Each checks its results before it times them."""

import argparse
import json
import sys
from typing import Any

from haste.bench import cpu_memory, cpu_step
from haste.bench._harness import CheckError

CLAIMS: dict[str, Any] = {"cpu-step": cpu_step, "cpu-memory": cpu_memory}


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen claims; return the exit status, 1 where a check failed."""
    parser = argparse.ArgumentParser(prog="python -m haste.bench", description=__doc__)
    parser.add_argument("--claim", choices=sorted(CLAIMS), action="append", help="default: all; may be repeated")
    parser.add_argument("--json", action="store_true", help="one JSON line per claim")
    parser.add_argument("--labels", type=int, help="a smaller (or larger) number of labels than the claim's")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch; default %(default)s")
    parser.add_argument("--repeats", type=int, help="rounds timed or steps taken; default the claim's")
    options = parser.parse_args(arguments)
    for name in options.claim or CLAIMS:
        claim = CLAIMS[name]
        try:
            chosen = {"repeats": options.repeats} if options.repeats is not None else {}
            record = claim.run(num_labels=options.labels, threads=options.threads, **chosen)
        except CheckError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        except ValueError as error:
            parser.error(str(error))
        print(json.dumps(record) if options.json else claim.table(record), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
