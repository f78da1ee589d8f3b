"""`xclip-search list` and `delete`. Heavy imports happen inside the commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xclip_search.console import SOME_FAILED, IndexOption, JsonOption, errors_explained, make_app
from xclip_search.index import FilterOption, clock, parse_json

if TYPE_CHECKING:
    from indexer.store.records import VideoRecord

app = make_app()


@app.command("list")
def list_videos(
    index: IndexOption,
    limit: Annotated[int, typer.Option("--limit", "-k", min=1, help="The most videos to list.")] = 50,
    filter_json: FilterOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the videos of an index with their ids, the newest first.

    Examples:

      xclip-search list --index my-index --limit 5

      xclip-search list --index my-index --filter '{"duration_seconds": {"gt": 60}}' --json
    """
    with errors_explained():
        from indexer.store.filters import parse_filter
        from indexer.store.sqlite.catalog import Catalog

        conditions = parse_json(filter_json)
        chosen = None if conditions is None else parse_filter(conditions)
        with Catalog.open(index) as catalog:
            videos = [_facts(record) for record in catalog.list_videos(limit, chosen=chosen)]
            num_videos = catalog.num_videos
    print_videos(videos, num_videos, as_json)


@app.command()
def delete(
    ids: Annotated[list[str], typer.Argument(help="Ids of videos, as `list` shows them.", metavar="ID...")],
    index: IndexOption,
) -> None:
    """Take videos out of an index, which may be in use.

    Files that were indexed where they lie stay there; the file of an upload is removed by the server.

    Exit status: 0 all deleted, 3 some ids are of no video (they are listed), 2 wrong use.

    Examples:

      xclip-search delete 0f5c2a7e9b31 --index my-index
    """
    unknown = []
    with errors_explained():
        from indexer.errors import VideoNotFoundError
        from indexer.store.sqlite.catalog import Catalog

        with Catalog.open(index) as catalog:
            for video_id in dict.fromkeys(ids):
                try:
                    catalog.delete_video(video_id)
                except VideoNotFoundError:
                    unknown.append(video_id)
    print_deleted(ids, unknown)


def print_videos(videos: Sequence[dict[str, Any]], num_videos: int, as_json: bool) -> None:
    """What `list` prints of the videos found among `num_videos`."""
    if as_json:
        typer.echo(json.dumps({"num_videos": num_videos, "videos": videos}, indent=2, ensure_ascii=False))
        return
    width = max((len(video["id"]) for video in videos), default=0)
    for video in videos:
        typer.echo(f"{video['id']:<{width}}  {clock(video['duration_seconds']):>7}  {video['title'] or ''}")
    typer.echo(f"{len(videos)} of {num_videos} videos", err=True)


def print_deleted(ids: Sequence[str], unknown: Sequence[str]) -> None:
    """What `delete` prints; ends the command where some ids are of no video."""
    typer.echo(f"{len(set(ids)) - len(unknown)} deleted")
    for video_id in unknown:
        typer.echo(f"failed: {video_id}: no video has this id", err=True)
    if unknown:
        raise typer.Exit(SOME_FAILED)


def _facts(record: VideoRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "title": record.title,
        "uri": record.uri,
        "metadata": dict(record.metadata),
        "duration_seconds": record.duration_seconds,
        "width": record.width,
        "height": record.height,
        "frame_rate": record.frame_rate,
        "codec": record.codec,
        "size_bytes": record.size_bytes,
        "content_sha256": record.content_sha256,
        "partial": record.partial,
        "fraction_read": record.fraction_read,
        "added_at": datetime.fromtimestamp(record.added_at, UTC).isoformat(),
    }
