"""The lab: does R2M hold a policy that drifts, and against which controls? `make lab`."""
