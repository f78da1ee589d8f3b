"""The whole API held against its own OpenAPI document by schemathesis, over real HTTP.

    python -m tests.faults.api_fuzzing --examples 1000 [--seed N] [--rounds open,write,...] [--json FILE]

A small index of the demo corpus is served by `xclip-search serve` with its worker. Four rounds follow, each
with all checks and all phases (examples of the document, boundaries of its schemas, random requests both
well-formed and not, sequences of requests in which answers give the next ids): on a server without keys, with
a key that may write, with one that may read, and without the key that is needed. Stopped by a signal, a round
ends early and prints what it has counted. Exit 0: nothing found.
"""

# ruff: noqa: T201, this is a program that prints its table.

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.core.transport import Response
from schemathesis.engine import Status, events, from_schema
from schemathesis.generation.case import Case
from schemathesis.generation.meta import TestPhase

from service.auth.keys import KEYS_FILE, add_key
from tests.faults.fuzzed_cases import KnownThings
from tests.faults.fuzzed_index import FuzzedIndex
from tests.support.servers.server_process import ServerProcess, wait_until

TOO_LARGE = ["413", "414", "431"]
"""No schema says how large a body, an address or the headers may be as a whole."""

WELL_FORMED = ["2xx", "3xx", "401", "403", "404", "409", "429", "503", "507", *TOO_LARGE]
"""Answers to well-formed requests. No schema promises that a video is there, or that one may change it."""

REFUSED = ["400", "401", "403", "404", "405", "409", "415", "422", "429", "503", *TOO_LARGE]
"""Answers to requests that a schema does not allow."""

CONFIG: dict[str, Any] = {
    "continue-on-failure": True,
    "request-timeout": 120,
    "max-redirects": 0,
    "checks": {
        "positive_data_acceptance": {"expected-statuses": WELL_FORMED},
        "negative_data_rejection": {"expected-statuses": REFUSED},
    },
    "output": {"sanitization": {"enabled": False}},
    "operations": [
        {
            # A job that was cancelled stays, to say that it was.
            "include-path": "/jobs/{job_id}",
            "checks": {"use_after_free": {"enabled": False}},
        },
        {
            # That a text has a line with times, no schema says.
            "include-path": "/videos/{video_id}/transcripts/{track}",
            "include-method": "PUT",
            "checks": {"positive_data_acceptance": {"expected-statuses": [*WELL_FORMED, "422"]}},
        },
        {
            # A range may begin after the end of a file, whose size no schema knows.
            "include-path-regex": "/(media|preview)$",
            "checks": {"positive_data_acceptance": {"expected-statuses": [*WELL_FORMED, "416"]}},
        },
    ],
}


@dataclass(frozen=True)
class Round:
    """What is sent with which key. share: of the examples asked for."""

    name: str
    title: str
    share: float
    key: str | None = None
    keys_required: bool = True


ROUNDS = (
    Round("open", "a server without keys", 0.1, keys_required=False),
    Round("write", "with a key that may write", 1.0, key="write"),
    Round("read", "with a key that may read", 0.05, key="read"),
    Round("none", "without the key that is needed", 0.05),
)


@dataclass
class Tally:
    """What came of one operation's requests.

    num_examples: random requests. num_requests: all, those of the other phases and of checks too.
    num_well_formed, num_successes: random requests that the schema allows, and 2xx among their answers.
    failures: titles of what was found, with how often; first: the first message of each.
    """

    num_examples: int = 0
    num_requests: int = 0
    num_well_formed: int = 0
    num_successes: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def count(self, case: Case, response: Response | None, is_derived: bool) -> None:
        """Count one request; is_derived: a check made it out of another one."""
        self.num_requests += 1
        if response is not None:
            self.statuses[response.status_code] += 1
        meta = case.meta
        if is_derived or meta is None or meta.phase.name != TestPhase.FUZZING:
            return
        self.num_examples += 1
        if meta.generation.mode.is_positive:
            self.num_well_formed += 1
            self.num_successes += response is not None and 200 <= response.status_code < 300

    def fail(self, title: str, message: str) -> None:
        """Count a failed check."""
        self.failures[title] += 1
        self.first.setdefault(title, message)

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON."""
        return {
            "examples": self.num_examples,
            "requests": self.num_requests,
            "well_formed": self.num_well_formed,
            "successes": self.num_successes,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "failures": dict(self.failures),
            "first": self.first,
        }


def fuzz(schema: Any, tallies: dict[str, Tally], between: Iterable[Any] = ()) -> None:
    """Run schemathesis's engine over a loaded schema and count by operation.

    between: advanced after each scenario, to put things in order.
    """
    tidying = iter(between)
    for result in schema.get_all_operations():
        tallies.setdefault(result.ok().label, Tally())
    for event in from_schema(schema).execute():
        if isinstance(event, events.NonFatalError):
            tallies.setdefault(event.label, Tally()).fail(type(event.value).__name__, str(event.value))
        elif isinstance(event, events.FatalError):
            raise event.exception
        elif isinstance(event, events.ScenarioFinished):
            _count_scenario(event, tallies)
            num_cases, phase = len(event.recorder.cases), event.phase.value
            print(f"{phase} {event.label}: {num_cases} in {event.elapsed_time:.1f} s", file=sys.stderr)
            next(tidying, None)


def _count_scenario(event: events.ScenarioFinished, tallies: dict[str, Tally]) -> None:
    recorder = event.recorder
    for id, node in recorder.cases.items():
        interaction = recorder.interactions.get(id)
        tally = tallies.setdefault(node.value.operation.label, Tally())
        is_derived = node.parent_id is not None and node.transition is None
        tally.count(node.value, interaction.response if interaction else None, is_derived)
        for check in recorder.checks.get(id, []):
            # Too many wrong keys came and all are refused for a while, which this check does not know.
            is_throttled = interaction and interaction.response and interaction.response.status_code == 429
            if check.name == "ignored_auth" and is_throttled:
                continue
            if check.status == Status.FAILURE and check.failure_info is not None:
                failure = check.failure_info.failure
                message = f"{failure.message}\n{check.failure_info.code_sample}"
                if interaction and interaction.response:
                    message += (
                        f"\n-> {interaction.response.status_code} {interaction.response.content[:600]!r}"
                    )
                tally.fail(f"{check.name}: {failure.title}", message)


def configuration(
    examples: int,
    seed: int,
    key: str | None = None,
    *,
    keys_required: bool = False,
    only: str = ".",
    phases: Mapping[str, Any] | None = None,
) -> SchemathesisConfig:
    """Schemathesis's. examples: random requests to each operation. key: sent with all.

    keys_required: whether a request without one must be refused. only: regular expression that is found in
    the paths that are asked. phases: settings of schemathesis's phases.
    """
    settings = {
        **CONFIG,
        "operations": [*CONFIG["operations"], {"exclude-path-regex": only, "enabled": False}],
        "seed": seed,
        "generation": {"max-examples": examples, "database": "none", "no-shrink": True},
        "phases": {
            # Things that there are come from KnownThings. Those of answers run out where things are deleted,
            # and then fewer requests are made than were asked for.
            "fuzzing": {"extra-data-sources": {"responses": False}},
            # A sequence is many requests.
            "stateful": {"generation": {"max-examples": max(10, examples // 10)}},
            **(phases or {}),
        },
        "checks": {**CONFIG["checks"], "ignored_auth": {"enabled": keys_required}},
    }
    if key is not None:
        settings["auth"] = {"openapi": {"key": {"bearer": key}}}
    return SchemathesisConfig.from_dict(settings)


def print_table(title: str, tallies: dict[str, Tally], seconds: float) -> None:
    """One line for each operation, and below it what was found."""
    print(f"\n{title}: {seconds:.0f} s")
    print("| operation | examples | requests | 2xx of well-formed | statuses | failures |")
    print("| --- | ---: | ---: | ---: | --- | ---: |")
    for label, tally in sorted(tallies.items()):
        share = f"{tally.num_successes / tally.num_well_formed:.0%}" if tally.num_well_formed else "-"
        statuses = " ".join(f"{status}:{count}" for status, count in sorted(tally.statuses.items()))
        print(
            f"| {label} | {tally.num_examples} | {tally.num_requests} | {share} | {statuses} "
            f"| {sum(tally.failures.values())} |"
        )
    for label, tally in sorted(tallies.items()):
        for title, count in tally.failures.items():
            print(f"\n{label}: {title} ({count} times)\n{tally.first[title]}")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rounds and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=100, help="random requests to each operation")
    parser.add_argument("--seed", type=int, default=None, help="the same requests again")
    parser.add_argument("--rounds", default=",".join(one.name for one in ROUNDS), help="some of them")
    parser.add_argument("--only", default=".", help="only paths in which this regular expression is found")
    parser.add_argument("--json", type=Path, default=None, help="write all figures to this file")
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    seed = random.randrange(2**32) if options.seed is None else options.seed
    print(f"--examples {options.examples} --seed {seed}", flush=True)
    chosen = [one for one in ROUNDS if one.name in options.rounds.split(",")]
    figures = {}
    with tempfile.TemporaryDirectory(prefix="xclip-fuzzing-") as name:
        for one, tallies, seconds in run_rounds(Path(name), chosen, options.examples, seed, options.only):
            print_table(one.title, tallies, seconds)
            figures[one.name] = {label: tally.to_json() for label, tally in sorted(tallies.items())}
            if options.json is not None:
                options.json.write_text(json.dumps({"seed": seed, "rounds": figures}, indent=1))
    num_failures = sum(
        sum(tally["failures"].values()) for tallies in figures.values() for tally in tallies.values()
    )
    print(f"\n{num_failures} failures")
    return 1 if num_failures else 0


def run_rounds(
    directory: Path, rounds: Sequence[Round], examples: int, seed: int, only: str = "."
) -> Iterator[tuple[Round, dict[str, Tally], float]]:
    """Each round with what it counted, and its seconds."""
    index = FuzzedIndex(directory)
    log = directory / "server.log"
    server = ServerProcess(
        index.directory,
        *("--device", "cpu", "--allow-root", index.corpus),
        log=log,
        XCLIP_URL_INGEST="true",
        XCLIP_WAIT_LIMIT_SECONDS="5",
    )
    try:
        keys: dict[str | None, str] = {}
        for one in rounds:
            if one.keys_required and not keys:
                keys = {
                    scope: add_key(index.directory / KEYS_FILE, scope, scope) for scope in ("read", "write")
                }
                wait_until(lambda: server.client.get("/videos").status_code == 401, 10)
            started = time.monotonic()
            tallies: dict[str, Tally] = {}
            with find_things(server.client, index, keys):
                config = configuration(
                    max(10, round(one.share * examples)),
                    seed,
                    keys[one.key] if one.key else None,
                    keys_required=one.keys_required,
                    only=only,
                )
                schema = schemathesis.openapi.from_url(
                    f"{server.client.base_url}/openapi.json", config=config
                )
                fuzz(schema, tallies, between=_tidy(index))
            if index.count_missing():
                tallies.setdefault("the index", Tally()).fail("videos were lost", f"{index.count_missing()}")
            text = log.read_text()
            if "Traceback" in text:
                tallies.setdefault("the log", Tally()).fail(
                    "a traceback", text[text.index("Traceback") :][:3000]
                )
            yield one, tallies, time.monotonic() - started
    finally:
        server.stop()
        index.close()


def _tidy(index: FuzzedIndex) -> Iterator[None]:
    while True:
        index.put_back([*index.ids, *index.spare_ids])
        yield


def find_things(client: httpx.Client, index: FuzzedIndex, keys: dict[str | None, str]) -> KnownThings:
    """What is there to be asked for: made by a few requests."""
    headers = {"Authorization": f"Bearer {keys['write']}"} if keys else {}
    job_ids = []
    for content in (b"no video", index.new_clip()):
        response = client.post("/videos", files={"file": ("film.mp4", content)}, headers=headers)
        response.raise_for_status()
        job_ids.append(response.json()["job"]["id"])
    for id in job_ids:
        wait_until(
            lambda id=id: client.get(f"/jobs/{id}", headers=headers).json()["finished_at"] is not None, 120
        )
    page = client.get("/videos", params={"limit": 2}, headers=headers).raise_for_status().json()
    return KnownThings(
        ids=index.ids,
        spare_ids=index.spare_ids,
        job_ids=job_ids,
        pages=[page["next"]],
        files=[path.read_bytes() for path in index.clips],
        uris=[str(path) for path in index.clips] + [path.as_uri() for path in index.clips],
        keys=list(keys.values()),
        new_file=index.new_clip,
        put_back=index.put_back,
    )


if __name__ == "__main__":
    sys.exit(main())
