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

# The HTTP library beneath, whose errors of connection are not all OSError, differs between versions.
_TRANSPORT: tuple[type[Exception], ...] = tuple(
    base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)
)
_FAILURES: tuple[type[Exception], ...] = (OSError, RuntimeError, ValueError, *_TRANSPORT)
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class Published:
    """A commit on the Hub. commit: its full hash. url: its page. spec: what loads exactly these weights."""

    commit: str
    url: str
    spec: str


def download(repository: str, files: Sequence[str], *, endpoint: str | None = None) -> Path:
    """Fetch files of `OWNER/NAME` or `OWNER/NAME@REVISION` into the Hub's cache, or find them there.

    endpoint: the Hub's address, by default huggingface_hub's own. Returns the folder that holds them.
    Raises SpecError, one line that holds no token.
    """
    name, _, revision = repository.partition("@")
    try:
        found = snapshot_download(
            name, revision=revision or None, allow_patterns=list(files), endpoint=endpoint
        )
    except HFValidationError:
        raise SpecError(
            f"{repository!r} is not OWNER/NAME or OWNER/NAME@REVISION: "
            "letters, digits, '-', '_' and '.', 96 characters at most"
        ) from None
    except _FAILURES as error:
        raise SpecError(f"hf-hub:{repository} cannot be fetched: {explained(error, endpoint)}") from None
    return Path(found)


def require_repository_name(name: str) -> None:
    """Raise HubError where `name` is not OWNER/NAME."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        name = ""
    if name.count("/") != 1:
        raise HubError(
            "a repository is named OWNER/NAME: letters, digits, '-', '_' and '.', 96 characters at most"
        )


def publish(
    files: Mapping[str, Path | bytes],
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload model",
    endpoint: str | None = None,
    token: str | None = None,
) -> Published:
    """Put files into the Hub repository `OWNER/NAME`, made if absent, in one commit.

    files: by name in the repository, a path or the bytes themselves; other files there stay.
    private: make the repository private. One that exists and is public is refused.
    revision: the branch, made if absent; `main` by default.
    endpoint, token: by default huggingface_hub's own, from its settings and its login.
    Raises HubError, one line that holds no token.
    """
    require_repository_name(repository)
    try:
        api = HfApi(endpoint=endpoint, token=token or get_token())
        if not api.token:
            raise HubError(f"publishing needs a token: {_LOG_IN}")
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
        raise HubError(f"{repository} cannot be published: {explained(error, endpoint, token)}") from None
    return Published(done.oid, done.commit_url, f"hf-hub:{repository}@{done.oid}")


def explained(error: BaseException, endpoint: str | None = None, token: str | None = None) -> str:
    """Why the Hub did not do it: one line, without address, request id or token."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, GatedRepoError):
            return "it is gated: ask for access on its page, then " + _LOG_IN
        if isinstance(cause, RevisionNotFoundError):
            return "it has no such revision"
        if isinstance(cause, RepositoryNotFoundError):
            return f"there is no such repository, or it is private: {_LOG_IN} as someone who may see it"
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            return _without_token(_answer(cause), token)
    host = urlsplit(endpoint or constants.ENDPOINT).hostname
    for cause in causes:
        if isinstance(cause, OfflineModeIsEnabled):
            return "huggingface_hub is set to stay offline, and it is not in the cache"
        if isinstance(cause, ConnectionError | TimeoutError) or _is_transport(cause):
            return f"{host} cannot be reached"
    while error.__cause__ is not None:
        error = error.__cause__
    return _without_token(next(iter(str(error).splitlines()), type(error).__name__), token)


def _answer(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    said = next(iter((error.server_message or "").splitlines()), "")
    if status == 401:
        return f"the Hub does not accept the token: {_LOG_IN}"
    if status == 403:
        return "permission is refused to this token" + (f": {said}" if said else "")
    return f"the Hub answered {status}" + (f": {said}" if said else "")


def _is_transport(error: BaseException) -> bool:
    """Whether an error is the HTTP library's own: no answer came."""
    return isinstance(error, _TRANSPORT) and not isinstance(error, OSError)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _without_token(text: str, token: str | None) -> str:
    for secret in {token, get_token()} - {None, ""}:
        text = text.replace(str(secret), "(token)")
    return text
