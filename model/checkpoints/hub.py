"""Models on the Hugging Face Hub: fetched for `hf-hub:OWNER/NAME`, and published in one commit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented all the same

from model.errors import HubError, SpecError

_TRANSPORT: tuple[type[Exception], ...] = tuple(
    base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)
)
"""Errors of the HTTP library below, not all of them OSError; which library differs between versions."""

HOW_TO_FETCH = (
    ". The weights are fetched once and then kept: run this once with a network, or copy the cache"
    " of huggingface_hub (~/.cache/huggingface, or HF_HOME) from a machine that has them"
)

_FAILURES: tuple[type[Exception], ...] = (OSError, RuntimeError, ValueError, *_TRANSPORT)
_NAME_RULE = "letters, digits, '-', '_' and '.', 96 characters at most"
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (GatedRepoError, f"it is gated: ask for access on its page, then {_LOG_IN}"),
    (RevisionNotFoundError, "it has no such revision"),
    (
        RepositoryNotFoundError,
        f"there is no such repository, or it is private: {_LOG_IN} as someone who may see it",
    ),
    (OfflineModeIsEnabled, "huggingface_hub is set to stay offline, and it is not in the cache"),
)
"""In this order: a gated repository is also one that was not found."""


@dataclass(frozen=True)
class Published:
    """A commit on the Hub.

    Attributes:
        commit: Its full hash.
        url: Its page.
        spec: What loads exactly these weights.
    """

    commit: str
    url: str
    spec: str


def download(repository: str, files: Sequence[str], *, endpoint: str | None = None) -> Path:
    """Fetch files of a repository into the Hub's cache, or find them there.

    Args:
        repository: `OWNER/NAME` or `OWNER/NAME@REVISION`.
        files: Names in the repository.
        endpoint: The Hub's address, by default huggingface_hub's own.

    Returns:
        The folder that holds them.

    Raises:
        SpecError: One line that holds no token.
    """
    name, _, revision = repository.partition("@")
    try:
        found = snapshot_download(
            name, revision=revision or None, allow_patterns=list(files), endpoint=endpoint
        )
    except HFValidationError:
        raise SpecError(f"{repository!r} is not OWNER/NAME or OWNER/NAME@REVISION: {_NAME_RULE}") from None
    except _FAILURES as error:
        raise SpecError(f"hf-hub:{repository} cannot be fetched: {reason(error, endpoint)}") from None
    return Path(found)


def require_repository_name(name: str) -> None:
    """Raise HubError where `name` is not OWNER/NAME."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        name = ""
    if name.count("/") != 1:
        raise HubError(f"a repository is named OWNER/NAME: {_NAME_RULE}")


def publish(
    files: Mapping[str, Path | bytes],
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload model",
    api: HfApi | None = None,
) -> Published:
    """Put files into the Hub repository `OWNER/NAME`, made if absent, in one commit.

    Args:
        files: By name in the repository, a path or the bytes themselves; other files there stay.
        repository: `OWNER/NAME`.
        private: Make the repository private. One that exists and is public is refused.
        revision: The branch, made if absent; `main` by default.
        message: Of the commit.
        api: Address and token; by default huggingface_hub's own, from its settings and its login.

    Raises:
        HubError: One line that holds no token.
    """
    require_repository_name(repository)
    api = api or HfApi(token=get_token())
    if not api.token:
        raise HubError(f"publishing needs a token: {_LOG_IN}")
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.repo_info(repository).private:
            raise HubError(
                f"{repository} exists and is public; make it private on its page, or publish openly"
            )
        if revision is not None and revision != constants.DEFAULT_REVISION:
            api.create_branch(repository, branch=revision, exist_ok=True)
        done = api.create_commit(
            repository,
            [CommitOperationAdd(name, content) for name, content in files.items()],
            commit_message=message,
            revision=revision,
        )
    except _FAILURES as error:
        token = api.token if isinstance(api.token, str) else None  # True stands for the login's
        why = reason(error, api.endpoint, token)
        raise HubError(f"{repository} cannot be published: {why}") from None
    return Published(done.oid, done.commit_url, f"hf-hub:{repository}@{done.oid}")


def reason(error: Exception, endpoint: str | None = None, token: str | None = None) -> str:
    """Why the Hub did not do it: one line, without address, request id or token."""
    causes = list(_causes(error))
    for kind, why in _REASONS:
        if any(isinstance(cause, kind) for cause in causes):
            return why
    for cause in causes:
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            status = cause.response.status_code
            said = next(iter((cause.server_message or "").splitlines()), "")
            if status == 401:
                return f"the Hub does not accept the token: {_LOG_IN}"
            refused = "permission is refused to this token" if status == 403 else f"the Hub answered {status}"
            return _without_token(f"{refused}: {said}" if said else refused, token)
    if is_unreachable(error):
        return f"{urlsplit(endpoint or constants.ENDPOINT).hostname} cannot be reached"
    first: BaseException = error
    while first.__cause__ is not None:
        first = first.__cause__
    return _without_token(next(iter(str(first).splitlines()), type(first).__name__), token)


def is_unreachable(error: Exception) -> bool:
    """Whether no answer came: no network, or huggingface_hub is set to stay offline."""
    return any(
        isinstance(cause, ConnectionError | TimeoutError)
        or (isinstance(cause, _TRANSPORT) and not isinstance(cause, OSError))
        for cause in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _without_token(text: str, token: str | None) -> str:
    for secret in {token, get_token()} - {None, ""}:
        text = text.replace(str(secret), "(token)")
    return text
