"""What lets callers in: the file of keys, certificates, and the rule for open addresses."""
