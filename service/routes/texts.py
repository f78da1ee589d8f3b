"""POST /videos/{id}/texts."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from starlette.responses import Response

from indexer.search.types import TextsAnswer
from service.auth.access import READ
from service.errors import OverloadedError, VideoNotFoundError
from service.http.openapi import problems
from service.routes.result_answers import to_response
from service.schemas import RankTextsRequest, TextsAnswerBody
from service.state import Service

router = APIRouter(prefix="/videos/{video_id}", tags=["search"], dependencies=[READ])

BODY_LIMIT_BYTES = 4 * 1024 * 1024
"""A thousand texts need more than other bodies."""

TEXTS_A_TURN = 64
"""So many texts are ranked together; then others have their turn."""


@router.post(
    "/texts",
    response_model=TextsAnswerBody,
    responses=problems(VideoNotFoundError, OverloadedError),
    max_body_size=BODY_LIMIT_BYTES,
)
async def rank_texts(video_id: str, body: RankTextsRequest, service: Service) -> Response:
    """Order texts by how well they fit this video, best first."""
    answers = []
    for first in range(0, len(body.texts), TEXTS_A_TURN):
        some = body.texts[first : first + TEXTS_A_TURN]
        # What is unusual about all of them is said once.
        warn_of = body.texts if first == 0 else ()
        rank = partial(service.searcher.rank_texts, video_id, some, warn_of=warn_of)
        answers.append(await service.search_gate.run(rank, begun=first > 0))
    return to_response(TextsAnswerBody.model_validate(TextsAnswer.join(answers)))
