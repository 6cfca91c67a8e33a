"""Adapters for trainers. Each needs its trainer installed; importing this package loads none."""
