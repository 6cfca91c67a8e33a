"""Rewards and feedback inside trainers: one module for each (docs/trainers.md).

Nothing is imported here: a module asks for its trainer's packages, and the client needs none.
"""
