"""Runs, heads, branches, verdicts, samples: plain Python, no framework, no torch."""
