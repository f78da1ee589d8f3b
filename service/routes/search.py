"""Searches by text, videos like a video, texts for a video; and their results as JSON.

An answer may hold megabytes. Its JSON is made in a thread, one result after the other and one query after the
other, and sent in pieces that are forgotten then, so that the whole is in memory at most once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from indexer.search.types import SearchAnswer, SearchQuery, SearchResult, TextsAnswer, texts_of
from service.auth.access import READ
from service.errors import (
    FilterTooCostlyError,
    InvalidRequestError,
    OverloadedError,
    VideoNotFoundError,
)
from service.http.middleware import WHILE_CONNECTED
from service.http.openapi import problems
from service.schemas.fields import media_url, preview_url, thumbnail_url, to_datetime
from service.schemas.search import (
    MediaSearchAnswerBody,
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

if TYPE_CHECKING:
    from indexer.search.text_encoding import EncodedTexts

router = APIRouter(tags=["search"], dependencies=[READ, WHILE_CONNECTED])

STALE_HEADER = "X-Index-Stale-Seconds"
"""Of an answer from the index as it was: for how long the database has not answered."""

QUERIES_AT_ONCE = 8
TEXTS_AT_ONCE = 64
"""A longer list is searched for in parts of this size; between them other clients get their turn."""

MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""Results are bounded by their number first; those with the longest metadata by this."""

PIECE_BYTES = 64 * 1024
"""Sent at a time; waited for until the client has taken most of it."""

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
        query, pieces = SearchQuery(text=str(body.query), **fields), Pieces()
        encode = partial(service.searcher.encode, texts_of([query]))

        def answer_it(*encoded: EncodedTexts) -> SearchAnswer:
            # Its JSON is made in the same thread: another one would be one more wait for Python's lock.
            answer = service.searcher.search(query, *encoded)
            _write_answer(pieces, answer, service, root_path)
            return answer

        answer = await service.search_limiter.run(answer_it, prepare=encode)
        return pieces.to_response(_staleness([answer]))
    started = time.perf_counter()
    queries = [SearchQuery(text=text, **fields) for text in body.queries]
    timings, pieces, answers = [], Pieces(), list[SearchAnswer]()
    for first in range(0, len(queries), QUERIES_AT_ONCE):
        some = queries[first : first + QUERIES_AT_ONCE]
        encode = partial(service.searcher.encode, texts_of(some))
        search_some = partial(service.searcher.search_all, some)
        part = await service.search_limiter.run(search_some, prepare=encode, begun=first > 0)
        timings.append(part.timings)
        answers += (replace(answer, results=()) for answer in part.answers)
        for position, answer in enumerate(part.answers, start=first):
            pieces.write(b"," if position else b'{"answers":[')
            await to_thread.run_sync(_write_answer, pieces, answer, service, root_path)
    together = TimingsAnswer(
        encode_seconds=sum(part.encode_seconds for part in timings),
        coarse_seconds=sum(part.coarse_seconds for part in timings),
        rerank_seconds=sum(part.rerank_seconds for part in timings),
        total_seconds=time.perf_counter() - started,
    )
    pieces.write(b'],"timings":%s}' % together.model_dump_json().encode())
    return pieces.to_response(_staleness(answers))


def _staleness(answers: Sequence[SearchAnswer]) -> dict[str, str]:
    """The header of answers from the index as it was."""
    seconds = [answer.stale_seconds for answer in answers if answer.stale_seconds is not None]
    return {STALE_HEADER: f"{max(seconds):.0f}"} if seconds else {}


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
        **dict(parameters),
    )
    answer = await service.search_limiter.run(find)
    pieces = Pieces()
    body = SimilarAnswerBody(id=video_id, num_videos=answer.num_videos, results=[])
    root_path = request.scope.get("root_path", "")
    await to_thread.run_sync(write_results, pieces, body, answer.results, service, root_path)
    return pieces.to_response()


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
    answer = TextsAnswerBody.model_validate(TextsAnswer.join(answers))
    # FastAPI would check and copy it first, and large answers would delay all others.
    return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")


# Answers


class Pieces:
    """The JSON of an answer as it grows. Raises InvalidRequestError where it becomes too large."""

    def __init__(self) -> None:
        self._pieces: deque[bytearray] = deque([bytearray()])
        self._num_bytes = 0

    def write(self, text: bytes) -> None:
        """Append; all of it is JSON only in the end."""
        self._num_bytes += len(text)
        if self._num_bytes > MAX_ANSWER_BYTES:
            raise InvalidRequestError(
                f"The answer is larger than {MAX_ANSWER_BYTES >> 20} MiB. Ask for fewer queries at once, set"
                " a lower limit, or leave out explain; videos with long metadata make it long."
            )
        if len(self._pieces[-1]) >= PIECE_BYTES:
            self._pieces.append(bytearray())
        self._pieces[-1] += text

    def to_response(self, headers: Mapping[str, str] = MappingProxyType({})) -> Response:
        """An answer that sends the pieces, and forgets each that was sent."""
        return _PiecesResponse(self._pieces, {"Content-Length": str(self._num_bytes), **headers})


class _PiecesResponse(Response):
    media_type = "application/json"

    def __init__(self, pieces: deque[bytearray], headers: dict[str, str]) -> None:
        self._pieces = pieces
        super().__init__(headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request: an ASGI application."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while self._pieces:
            piece = bytes(self._pieces.popleft())
            await send({"type": "http.response.body", "body": piece, "more_body": bool(self._pieces)})


def _write_answer(pieces: Pieces, answer: SearchAnswer, service: ReadyService, root_path: str) -> None:
    fields = {name: value for name, value in vars(answer).items() if name != "stale_seconds"}
    body = SearchAnswerBody.model_validate({**fields, "results": []})
    write_results(pieces, body, answer.results, service, root_path)


def write_results(
    pieces: Pieces,
    body: SearchAnswerBody | SimilarAnswerBody | MediaSearchAnswerBody,
    results: Sequence[SearchResult],
    service: ReadyService,
    root_path: str,
) -> None:
    """Append `body`, whose last field takes the results, with them. Blocks.

    root_path: comes before every address of ours.
    """
    playable = service.playability.of_ids(list(dict.fromkeys(result.id for result in results)))
    head = body.model_dump_json().encode()
    pieces.write(head.removesuffix(b"]}"))
    for position, result in enumerate(results):
        pieces.write(b"," if position else b"")
        pieces.write(write_result(result, playable.get(result.id, False), root_path))
    pieces.write(b"]}")


def write_result(result: SearchResult, playable: bool, root_path: str) -> bytes:
    """The JSON of a `ResultAnswer`, in the order of its fields.

    Not made as one first, which takes longer than all else here; a test holds that it is one.

    Args:
        result: What the searcher gave.
        playable: Whether browsers play the file itself.
        root_path: Comes before every address of ours.
    """
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
    if not result.text_hits:
        del fields["text_hits"]
    if not result.num_copies:
        del fields["copies"], fields["num_copies"]
    in_order = {name: fields[name] for name in ResultAnswer.model_fields if name in fields}
    return to_json(in_order, inf_nan_mode="null")
