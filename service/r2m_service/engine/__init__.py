"""The device behind the engine port: one worker thread, batches, the RTE cache."""
