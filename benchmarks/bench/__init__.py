"""`make bench`: how fast the service is, side by side with the limit and with its peers.

A module a table; `__main__` runs them. What they share:

`scale` sizes of a full and of a minimal run · `machine` what it ran on, and which core runs what ·
`models`, `texts` reward models and texts of known length · `servers` server processes ·
`load`, `feedback_load` load generators, each a process of its own · `measure` medians of
interleaved rounds, memory and CPU of a process · `report` tables, summary.json, the docs page.

Every ratio is of arms that took turns within the same minutes, and stands beside an A/A control:
the same arm twice, which shows what a difference of no meaning looks like here.
"""
