"""The journal: what every reward and every update was made of, appended to Arrow files.

A folder holds `scores-*.arrows` and `aligns-*.arrows`: Arrow's IPC stream format, in which a file
is whole up to its last whole batch at any moment, so a crash costs the batch at hand and no more.
Every process writes files of its own.
"""
