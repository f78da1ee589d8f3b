"""POST /search."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request

from indexer.search_types import SearchAnswer, SearchQuery, SearchResult
from service.access import READ
from service.addresses import media_url, preview_url, thumbnail_url
from service.errors import OverloadedError
from service.ready_service import Service
from service.request_body import describe_body, read_json
from service.routes.descriptions import BODY_ERRORS, problems
from service.schemas import (
    ExplanationAnswer,
    MomentAnswer,
    ResultAnswer,
    ScoresAnswer,
    SearchAnswerBody,
    SearchRequest,
    Span,
    TimingsAnswer,
)

router = APIRouter(tags=["search"], dependencies=[READ])


@router.post(
    "/search",
    response_model_exclude_unset=True,
    responses=problems(*BODY_ERRORS, OverloadedError),
    openapi_extra=describe_body(SearchRequest),
)
async def search(request: Request, service: Service) -> SearchAnswerBody:
    """Find videos, and the moments in them, by text."""
    body = await read_json(request, SearchRequest, service.settings.body_limit_bytes)
    fields = body.model_dump()
    query = SearchQuery(text=fields.pop("query"), **fields)
    answer = await service.search_gate.run(partial(service.searcher.search, query))
    ids = [result.id for result in answer.results]
    playable = await to_thread.run_sync(service.playability.of_ids, ids)
    return to_answer_body(answer, playable, request.scope.get("root_path", ""))


def to_answer_body(answer: SearchAnswer, playable: Mapping[str, bool], root_path: str) -> SearchAnswerBody:
    """`answer` as JSON; `playable` by id; `root_path` comes before every address of ours."""
    return SearchAnswerBody(
        query=answer.query,
        mode=answer.mode,
        num_videos=answer.num_videos,
        truncated=answer.truncated,
        warnings=list(answer.warnings),
        timings=TimingsAnswer.model_validate(answer.timings),
        results=[_to_result(result, playable, root_path) for result in answer.results],
    )


def _to_result(result: SearchResult, playable: Mapping[str, bool], root_path: str) -> ResultAnswer:
    best = result.moments[0].time_seconds if result.moments else result.segment.start_seconds
    optional: dict[str, Any] = {}
    if result.explanation is not None:
        optional["explanation"] = ExplanationAnswer.model_validate(result.explanation)
    return ResultAnswer(
        id=result.id,
        segment_id=result.segment_id,
        rank=result.rank,
        score=result.score,
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
