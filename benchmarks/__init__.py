"""Programs that measure: each checks that what it times is right, and prints a table.

`python -m benchmarks` runs the short form of all of them; `python -m benchmarks.scoring` one of
them. What they share is in `report` (timing, tables, checks, JSON) and `machine` (what it ran on, memory).
"""
