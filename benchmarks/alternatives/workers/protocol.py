"""What a worker says and hears: a line of JSON when it is ready, then one for each number that it reads."""

import json
import os
import sys
import time
from importlib import metadata


def serve(build, packages=()):
    """Answer until the input ends.

    Args:
        build: called without arguments; returns the function that answers the n-th query, and a dictionary of
            what else there is to say.
        packages: of which the versions are told.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between
    started = time.perf_counter()
    ask, facts = build()
    facts |= {
        "build_seconds": time.perf_counter() - started,
        "versions": {name: metadata.version(name) for name in packages},
    }
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        number = int(line)
        started = time.perf_counter()
        answer = ask(number)
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "answer": answer}), file=answers, flush=True)
