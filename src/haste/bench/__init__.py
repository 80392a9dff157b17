"""One module per claim: each checks its results, then times them (`python -m haste.bench`)."""
