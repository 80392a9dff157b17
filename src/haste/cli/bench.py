"""`haste bench ...`, the same as `python -m haste.bench ...`."""


def run(argv: list[str]) -> int:
    """Check, then time; returns 1 where a check failed."""
    from haste.bench.__main__ import main

    return main(argv)
