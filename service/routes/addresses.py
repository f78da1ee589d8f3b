"""Addresses of our own resources, relative to the host."""

from __future__ import annotations

from urllib.parse import quote


def video_url(video_id: str) -> str:
    """Of a video's record."""
    return f"/videos/{quote(video_id, safe='')}"


def media_url(video_id: str) -> str:
    """Of a video's file."""
    return f"{video_url(video_id)}/media"


def thumbnail_url(video_id: str, time_seconds: float) -> str:
    """Of the picture that a video shows at a moment."""
    return f"{video_url(video_id)}/thumbnail?time_seconds={time_seconds:.3f}"


def preview_url(video_id: str, time_seconds: float) -> str:
    """Of the short clip that every browser plays, from a moment on."""
    return f"{video_url(video_id)}/preview?time_seconds={time_seconds:.3f}"


def job_url(job_id: str) -> str:
    """Of a job."""
    return f"/jobs/{quote(job_id, safe='')}"
