"""Ours beside what one would otherwise take: vector databases with our rerank, other reranks, other encoders.

`python -m benchmarks.alternatives` makes an environment for each alternative, so that versions do not clash,
and a process in each, which gets the same features through files and answers the same queries in turns.
`workers` holds what runs there: scripts that import nothing of ours but `workers/protocol.py`.
"""
