"""The servers that ours is measured against, each set up as its own documents advise.

They load the same model folder with transformers, read the same texts, and answer
`{"rewards": [...]}` to `{"texts": [...]}`. Each is started with `python -m bench.peers.NAME FOLDER
PORT`.
"""
