"""POST /search."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from indexer.search.types import SearchAnswer, SearchQuery, Timings
from service.auth.access import READ
from service.errors import OverloadedError
from service.http.openapi import problems
from service.routes.result_answers import to_response, to_result_answers
from service.schemas import SearchAnswerBody, SearchAnswersBody, SearchRequest, TimingsAnswer
from service.state import ReadyService, Service

router = APIRouter(tags=["search"], dependencies=[READ])

QUERIES_A_TURN = 8
"""So many of a list of queries are searched for together; then others have their turn."""


@router.post(
    "/search",
    response_model=SearchAnswerBody | SearchAnswersBody,
    responses=problems(OverloadedError),
)
async def search(request: Request, body: SearchRequest, service: Service) -> Response:
    """Find videos, and the moments in them, by text; or by several texts, each by itself."""
    fields = body.model_dump(exclude={"query", "queries"})
    root_path = request.scope.get("root_path", "")
    if body.queries is None:
        query = SearchQuery(text=str(body.query), **fields)
        answer = await service.search_gate.run(partial(service.searcher.search, query))
        return to_response(await _to_body(answer, service, root_path))
    started = time.perf_counter()
    queries = [SearchQuery(text=text, **fields) for text in body.queries]
    turns = []
    for first in range(0, len(queries), QUERIES_A_TURN):
        some = queries[first : first + QUERIES_A_TURN]
        search_some = partial(service.searcher.search_all, some)
        turns.append(await service.search_gate.run(search_some, begun=first > 0))
    answers = [answer for turn in turns for answer in turn.answers]
    together = SearchAnswersBody(
        answers=[await _to_body(answer, service, root_path) for answer in answers],
        timings=_sum([turn.timings for turn in turns], time.perf_counter() - started),
    )
    return to_response(together)


def _sum(timings: Sequence[Timings], total_seconds: float) -> TimingsAnswer:
    return TimingsAnswer(
        encode_seconds=sum(one.encode_seconds for one in timings),
        coarse_seconds=sum(one.coarse_seconds for one in timings),
        rerank_seconds=sum(one.rerank_seconds for one in timings),
        total_seconds=total_seconds,
    )


async def _to_body(answer: SearchAnswer, service: ReadyService, root_path: str) -> SearchAnswerBody:
    return SearchAnswerBody(
        query=answer.query,
        mode=answer.mode,
        num_videos=answer.num_videos,
        truncated=answer.truncated,
        warnings=list(answer.warnings),
        timings=TimingsAnswer.model_validate(answer.timings),
        results=await to_result_answers(answer.results, service, root_path),
    )
