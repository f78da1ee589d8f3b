"""Searches by text, videos like a video, texts for a video; and their results as JSON."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from indexer.search.types import SearchAnswer, SearchQuery, SearchResult, TextsAnswer
from service.auth.access import READ
from service.errors import FilterTooCostlyError, OverloadedError, VideoNotFoundError
from service.http.middleware import WHILE_CONNECTED
from service.http.openapi import problems
from service.schemas.fields import Answer, media_url, preview_url, thumbnail_url, to_datetime
from service.schemas.search import (
    RankTextsRequest,
    ResultAnswer,
    SearchAnswerBody,
    SearchAnswersBody,
    SearchRequest,
    SimilarAnswerBody,
    SimilarParameters,
    TextsAnswerBody,
    TimingsAnswer,
)
from service.state import ReadyService, Service

router = APIRouter(tags=["search"], dependencies=[READ, WHILE_CONNECTED])

QUERIES_AT_ONCE = 8
TEXTS_AT_ONCE = 64
"""A longer list is searched for in parts of this size; between them other clients get their turn."""

TEXTS_BODY_LIMIT_BYTES = 4 * 1024 * 1024
"""A thousand texts need more than other bodies."""


@router.post(
    "/search",
    response_model=SearchAnswerBody | SearchAnswersBody,
    responses=problems(FilterTooCostlyError, OverloadedError),
)
async def search(request: Request, body: SearchRequest, service: Service) -> Response:
    """Find videos, and the moments in them, by text; or by several texts, each by itself."""
    fields = {name: value for name, value in body if name not in ("query", "queries")}
    root_path = request.scope.get("root_path", "")
    if body.queries is None:
        query = SearchQuery(text=str(body.query), **fields)
        answer = await service.search_limiter.run(partial(service.searcher.search, query))
        return _to_response(await _to_body(answer, service, root_path))
    started = time.perf_counter()
    queries = [SearchQuery(text=text, **fields) for text in body.queries]
    parts = []
    for first in range(0, len(queries), QUERIES_AT_ONCE):
        search_some = partial(service.searcher.search_all, queries[first : first + QUERIES_AT_ONCE])
        parts.append(await service.search_limiter.run(search_some, begun=first > 0))
    timings = [part.timings for part in parts]
    together = SearchAnswersBody(
        answers=[await _to_body(answer, service, root_path) for part in parts for answer in part.answers],
        timings=TimingsAnswer(
            encode_seconds=sum(part.encode_seconds for part in timings),
            coarse_seconds=sum(part.coarse_seconds for part in timings),
            rerank_seconds=sum(part.rerank_seconds for part in timings),
            total_seconds=time.perf_counter() - started,
        ),
    )
    return _to_response(together)


@router.get(
    "/videos/{video_id}/similar",
    response_model=SimilarAnswerBody,
    responses=problems(FilterTooCostlyError, VideoNotFoundError, OverloadedError),
)
async def find_similar(
    request: Request, video_id: str, parameters: Annotated[SimilarParameters, Query()], service: Service
) -> Response:
    """Videos that look like this one, best first; never this one itself."""
    find = partial(
        service.searcher.similar,
        video_id,
        limit=parameters.limit,
        offset=parameters.offset,
        filter=parameters.filter,
    )
    answer = await service.search_limiter.run(find)
    results = await _to_results(answer.results, service, request.scope.get("root_path", ""))
    return _to_response(SimilarAnswerBody(id=answer.id, num_videos=answer.num_videos, results=results))


@router.post(
    "/videos/{video_id}/texts",
    response_model=TextsAnswerBody,
    responses=problems(VideoNotFoundError, OverloadedError),
    max_body_size=TEXTS_BODY_LIMIT_BYTES,
)
async def rank_texts(video_id: str, body: RankTextsRequest, service: Service) -> Response:
    """Order texts by how well they fit this video, best first."""
    answers = []
    for first in range(0, len(body.texts), TEXTS_AT_ONCE):
        # Warnings are about all texts together, and come once.
        warn_of = body.texts if first == 0 else ()
        some = body.texts[first : first + TEXTS_AT_ONCE]
        rank = partial(service.searcher.rank_texts, video_id, some, warn_of=warn_of)
        answers.append(await service.search_limiter.run(rank, begun=first > 0))
    return _to_response(TextsAnswerBody.model_validate(TextsAnswer.join(answers)))


# Answers


async def _to_body(answer: SearchAnswer, service: ReadyService, root_path: str) -> SearchAnswerBody:
    results = await _to_results(answer.results, service, root_path)
    return SearchAnswerBody.model_validate({**vars(answer), "results": results})


async def _to_results(
    results: Sequence[SearchResult], service: ReadyService, root_path: str
) -> list[ResultAnswer]:
    """`results` as JSON; `root_path` comes before every address of ours."""
    ids = list(dict.fromkeys(result.id for result in results))
    playable = await to_thread.run_sync(service.playability.of_ids, ids)
    return [_to_result(result, playable.get(result.id, False), root_path) for result in results]


def _to_result(result: SearchResult, playable: bool, root_path: str) -> ResultAnswer:
    best = result.moments[0].time_seconds if result.moments else result.segment.start_seconds
    fields = {
        **vars(result),
        "recorded_at": to_datetime(result.recorded_at),
        "thumbnail_url": root_path + thumbnail_url(result.id, best),
        "media_url": root_path + media_url(result.id),
        "preview_url": root_path + preview_url(result.id, best),
        "playable": playable,
    }
    if result.explanation is None:
        del fields["explanation"]  # What is not set does not show in the answer.
    return ResultAnswer.model_validate(fields)


def _to_response(body: Answer) -> Response:
    """`body` as it is: FastAPI would check and copy it first, and large answers would delay all others."""
    return Response(body.model_dump_json(exclude_unset=True), media_type="application/json")
