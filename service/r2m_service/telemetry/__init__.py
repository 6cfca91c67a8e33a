"""Metrics in Prometheus' form: an adapter that listens, and reads the rest when it is asked.

`catalogue` names every metric; `hearing` counts what happens; `server` and `runs` turn what stands
into samples; `exposition` puts it together. One of it belongs to one server: nothing is global.
"""
