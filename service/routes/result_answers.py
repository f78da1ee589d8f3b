"""Results of searches as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anyio import to_thread
from starlette.responses import Response

from indexer.search.types import SearchResult
from service.routes.addresses import media_url, preview_url, thumbnail_url
from service.schemas import Answer, ExplanationAnswer, MomentAnswer, ResultAnswer, ScoresAnswer, Span
from service.state import ReadyService


async def to_result_answers(
    results: Sequence[SearchResult], service: ReadyService, root_path: str
) -> list[ResultAnswer]:
    """`results` as JSON; `root_path` comes before every address of ours."""
    ids = list(dict.fromkeys(result.id for result in results))
    playable = await to_thread.run_sync(service.playability.of_ids, ids)
    return [_to_answer(result, playable, root_path) for result in results]


def to_response(body: Answer) -> Response:
    """`body` as it is; FastAPI would check and copy it first, and large answers would hold up all others."""
    return Response(body.model_dump_json(exclude_unset=True), media_type="application/json")


def _to_answer(result: SearchResult, playable: Mapping[str, bool], root_path: str) -> ResultAnswer:
    best = result.moments[0].time_seconds if result.moments else result.segment.start_seconds
    optional: dict[str, Any] = {}
    if result.explanation is not None:
        optional["explanation"] = ExplanationAnswer.model_validate(result.explanation)
    return ResultAnswer(
        id=result.id,
        segment_id=result.segment_id,
        rank=result.rank,
        score=result.score,
        percentile=result.percentile,
        scores=ScoresAnswer(**result.scores),
        title=result.title,
        uri=result.uri,
        duration_seconds=result.duration_seconds,
        metadata=dict(result.metadata),
        segment=Span.model_validate(result.segment),
        moments=[MomentAnswer.model_validate(moment) for moment in result.moments],
        thumbnail_url=root_path + thumbnail_url(result.id, best),
        media_url=root_path + media_url(result.id),
        preview_url=root_path + preview_url(result.id, best),
        playable=playable.get(result.id, False),
        **optional,
    )
