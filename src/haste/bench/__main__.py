"""Run the claims: `python -m haste.bench --claim cpu-step [--json]`. Each checks its results before it times them.

Claims cpu-step and cpu-memory run on any machine; paper-kernels, fused-step, memory and topk on a CUDA GPU, or with
--smoke, untimed and on tiny shapes, on any device. Claim end-to-end takes what there is, on a CPU a tenth of its labels
in some ten minutes; it needs transformers, and runs only where it is named.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from haste.bench import _sweep, cpu_memory, cpu_step, end_to_end, fused_step, memory, paper_kernels, plot, topk
from haste.bench._case import Case
from haste.bench._gpu import NoGpuError, require_gpu
from haste.bench._harness import CheckError
from haste.bench._run import OURS, Options, table
from haste.bench._variants import LABELS

CPU_CLAIMS: dict[str, Any] = {"cpu-step": cpu_step, "cpu-memory": cpu_memory}
GPU_CLAIMS: dict[str, Any] = {
    "paper-kernels": paper_kernels,
    "fused-step": fused_step,
    "memory": memory,
    "topk": topk,
}
_END_TO_END = "end-to-end"
CLAIMS = CPU_CLAIMS | GPU_CLAIMS | {_END_TO_END: end_to_end}


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen claims; return the exit status, 1 where a check failed, 2 where one cannot run here."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.plot:
        if not options.output:
            parser.error("--plot needs --output PICTURE.svg")
        try:
            plot.draw([Path(name) for name in options.plot], Path(options.output))
        except (ValueError, OSError) as error:
            parser.error(str(error))
        return 0
    chosen = options.claim or _default_claims(options.smoke)
    if options.smoke and (named := [name for name in chosen if name in CPU_CLAIMS]):
        parser.error(f"claim {named[0]} has no smoke run; it is small with --labels 300 --repeats 1")
    status = 0
    for name in chosen:
        try:
            for record in _records(name, options):
                status |= OURS in record.get("failed", [])
                _show(name, record, options)
        except CheckError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        except NoGpuError as error:
            print(error, file=sys.stderr)
            return 2
        except ValueError as error:
            parser.error(str(error))
    return int(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m haste.bench", description=__doc__)
    parser.add_argument(
        "--claim", choices=sorted(CLAIMS), action="append", help="default: all that run here; may be repeated"
    )
    parser.add_argument(
        "--case", action="append", help="of a claim that has some, such as A; default: all; may be repeated"
    )
    parser.add_argument(
        "--variant", choices=LABELS, action="append", help="GPU claims: default: all of the claim; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="one JSON line per claim, or per case and operation")
    parser.add_argument("--output", help="append the JSON lines to this file too; with --plot, the picture")
    parser.add_argument("--smoke", action="store_true", help="GPU claims on tiny shapes, checked but not timed")
    parser.add_argument("--device", default="cpu", help="of smoke runs; default %(default)s")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="GPU claims: another than the claim's")
    parser.add_argument("--sweep", action="store_true", help="fused-step: time every plan of the Triton kernels")
    parser.add_argument("--limit", type=float, help="--sweep: seconds to compile plans, and again to try them")
    parser.add_argument("--plot", nargs="+", metavar="FILE", help="draw the records of JSON-lines files and leave")
    parser.add_argument("--labels", type=int, help="CPU claims: another number of labels than the claim's")
    parser.add_argument("--threads", type=int, default=2, help="CPU claims: of PyTorch; default %(default)s")
    parser.add_argument("--repeats", type=int, help="rounds timed or steps taken; default the claim's")
    return parser


def _default_claims(smoke: bool) -> list[str]:
    if smoke:
        return list(GPU_CLAIMS)
    if torch.cuda.is_available():
        return [*CPU_CLAIMS, *GPU_CLAIMS]
    print(f"no CUDA GPU: claims {', '.join(GPU_CLAIMS)} are left out", file=sys.stderr)
    return list(CPU_CLAIMS)


def _records(name: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    repeats = {} if options.repeats is None else {"repeats": options.repeats}
    if name in CPU_CLAIMS:
        yield CPU_CLAIMS[name].run(num_labels=options.labels, threads=options.threads, **repeats)
        return
    if options.repeats is not None and options.repeats < 1:
        raise ValueError(f"repeats ({options.repeats}) must be at least 1")
    if name == _END_TO_END:
        found = "cuda" if torch.cuda.is_available() and not options.smoke else options.device
        more = {"smoke": options.smoke, "labels": options.labels, "threads": options.threads, **repeats}
        yield from end_to_end.records(options.case, device=torch.device(found), **more)
        return
    device = torch.device(options.device) if options.smoke else require_gpu(name)
    claim = GPU_CLAIMS[name]
    known = {case.name: replace(case, dtype=options.dtype or case.dtype) for case in claim.CASES}
    wanted = options.case or (_distinct(known) if options.smoke else list(known))
    if unknown := [case for case in wanted if case not in known]:
        raise ValueError(f"case ({unknown[0]}) must be one of {', '.join(known)}")
    if options.sweep and name != "fused-step":
        raise ValueError(f"--sweep must go with --claim fused-step, not {name}")
    settings = Options(
        device=device,
        smoke=options.smoke,
        sweep=options.sweep,
        limit=options.limit,
        variants=tuple(options.variant or ()),
        **repeats,
    )
    yield from claim.records([known[case] for case in wanted], settings)


def _distinct(known: dict[str, Case]) -> list[str]:
    """Return cases whose smoke runs differ."""
    return list({tuple(case.tiny().shape().items()): name for name, case in known.items()}.values())


def _show(name: str, record: dict[str, Any], options: argparse.Namespace) -> None:
    line = json.dumps(record)
    if options.output:
        with Path(options.output).open("a") as file:
            file.write(line + "\n")
    if options.json:
        print(line, flush=True)
    elif name in CPU_CLAIMS:
        print(CPU_CLAIMS[name].table(record), flush=True)
    elif name == _END_TO_END:
        print(end_to_end.table(record), flush=True)
    elif "plans" in record:
        print(f"fused-step {record['case']}, every plan:\n{_sweep.table(record)}\n", flush=True)
    else:
        print(table(record, LABELS) + "\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
