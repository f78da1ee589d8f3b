"""GET /videos/{id}/similar."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.auth.access import READ
from service.errors import OverloadedError, VideoNotFoundError
from service.http.openapi import problems
from service.routes.result_answers import to_response, to_result_answers
from service.schemas import SimilarAnswerBody, SimilarParameters
from service.state import Service

router = APIRouter(prefix="/videos/{video_id}", tags=["search"], dependencies=[READ])


@router.get(
    "/similar",
    response_model=SimilarAnswerBody,
    responses=problems(VideoNotFoundError, OverloadedError),
)
async def find_similar(
    request: Request, video_id: str, parameters: Annotated[SimilarParameters, Query()], service: Service
) -> Response:
    """Videos that look like this one, best first; never this one itself."""
    search = partial(
        service.searcher.similar,
        video_id,
        limit=parameters.limit,
        offset=parameters.offset,
        filter=None if parameters.filter is None else json.loads(parameters.filter),
    )
    answer = await service.search_gate.run(search)
    root_path = request.scope.get("root_path", "")
    body = SimilarAnswerBody(
        id=answer.id,
        num_videos=answer.num_videos,
        results=await to_result_answers(answer.results, service, root_path),
    )
    return to_response(body)
