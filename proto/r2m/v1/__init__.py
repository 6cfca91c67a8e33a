"""Generated from r2m.proto; regenerate with `make proto`."""
