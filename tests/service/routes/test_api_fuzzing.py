"""Every endpoint keeps what the OpenAPI document says of it, whatever it is asked."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import schemathesis

from tests.faults.api_fuzzing import ROUNDS, Tally, configuration, fuzz, run_rounds
from tests.faults.fuzzed_cases import KnownThings
from tests.support.catalog_builders import enqueue
from tests.support.servers.service_fakes import add_video, running


def found(tallies: dict[str, Tally]) -> dict[str, Any]:
    return {label: tally.first for label, tally in tallies.items() if tally.failures}


def test_few_requests_to_every_endpoint_find_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as service:
        for id in ("film", "spare"):
            add_video(service.catalog, id)
        content = b"\0\0\0\x20ftypisom"
        add_video(service.catalog, "known", content)
        assert hashlib.sha256(content).hexdigest() == service.catalog.get_video("known").content_sha256
        job = enqueue(service.job_queue, None, str(tmp_path / "film.mp4"))
        tallies: dict[str, Tally] = {}
        only_some = {"coverage": {"enabled": False}, "stateful": {"enabled": False}}
        config = configuration(3, seed=1, phases=only_some)
        schema = schemathesis.openapi.from_asgi("/openapi.json", service.app, config=config)
        with KnownThings(
            ids=["film", "known"],
            spare_ids=["spare"],
            job_ids=[job.id],
            files=[content],
            new_file=lambda: content,
        ):
            fuzz(schema, tallies)
    assert not found(tallies)
    assert len(tallies) >= 20 and all(tally.num_examples >= 1 for tally in tallies.values())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_real_server_keeps_what_its_document_says_with_and_without_keys(tmp_path: Path) -> None:
    for one, tallies, _ in run_rounds(tmp_path, ROUNDS, examples=5, seed=1):
        assert not found(tallies), one.title
        if one.key == "write":
            for label, tally in tallies.items():
                assert 200 in tally.statuses or 204 in tally.statuses, label
