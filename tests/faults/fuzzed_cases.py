"""What a fuzzer cannot guess is filled in: ids and files that there are, in requests that are valid.

A schema says which requests are well-formed, not which videos there are. Without this nearly all answers to
well-formed requests would be 404, and nothing behind that would be tested.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import schemathesis
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemathesis import Case, HookContext
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation import GenerationMode
from schemathesis.generation.meta import ComponentInfo, TestPhase
from schemathesis.hooks import GLOBAL_HOOK_DISPATCHER
from schemathesis.transport.serialization import Binary

from indexer.errors import InvalidQueryError
from indexer.store.filters import parse_filter
from service.schemas.search import MAX_EXPLAINED_RESULTS

REAL_SHARE = 0.7
"""Of the ids and files in well-formed requests, this share are those of something that exists."""

UNREACHABLE = "http://films.invalid/beach.mp4"
"""An address that may be asked for, of a name that is none (RFC 2606)."""

ANY_VIDEO = {"id": {"exists": True}}
"""A filter that all videos match."""

SUBTITLES = b"1\n00:00:01,000 --> 00:00:02,000\n"
"""A transcript in SubRip, up to what is said."""

_MADE_BY_SERVER = re.compile(r"[0-9a-f]{32}")

_EXTRA_HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "Range": st.one_of(
            st.sampled_from(["bytes=0-", "bytes=0-0", "bytes=-5", "bytes=9-20", "lines=1-2", "bytes=9-2"]),
            st.integers(0, 10**20).map(lambda start: f"bytes={start}-"),
        ),
        "If-None-Match": st.sampled_from(["*", '"x"', 'W/"x", "y"', ""]),
        "If-Range": st.sampled_from(['"x"', "Wed, 21 Oct 2015 07:28:00 GMT", "never"]),
        "Accept": st.sampled_from(["*/*", "text/html", "application/xml;q=0.1", ";", "image/*, a/b"]),
        "Accept-Encoding": st.sampled_from(["gzip", "identity;q=0", "br, *;q=0.1", "x"]),
        "X-Forwarded-For": st.sampled_from(["192.0.2.7", "::1, 10.0.0.1", "unknown", ",,"]),
        "X-Forwarded-Proto": st.sampled_from(["https", "gopher"]),
        "Sec-Fetch-Site": st.sampled_from(["same-origin", "none", "cross-site"]),
        "Cookie": st.sampled_from(["a=b", "xclip_session=forged", "=; ;=", 'a="']),
        "traceparent": st.sampled_from(["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-x"]),
        "X-Request-Id": st.integers(0, 2**64).map(str),
    },
)
"""Headers that no schema names and that something on the way may read."""


@dataclass
class KnownThings:
    """What there is to fill in.

    ids: videos that must stay. spare_ids: videos that may be deleted and changed. job_ids: jobs that ended.
    pages: values of `after` for GET /videos.
    files: contents of playable files that the index knows. uris: files that the server may read.
    keys: valid API keys.
    new_file: makes a playable file that the index does not know. put_back: adds what was deleted.
    """

    ids: Sequence[str]
    spare_ids: Sequence[str]
    job_ids: Sequence[str] = ()
    pages: Sequence[int] = ()
    files: Sequence[bytes] = ()
    uris: Sequence[str] = ()
    keys: Sequence[str] = ()
    new_file: Callable[[], bytes] = lambda: b"no video"
    put_back: Callable[[Sequence[str]], None] = lambda ids: None
    _hooks: list[Callable[..., Any]] = field(default_factory=list)

    def __enter__(self) -> KnownThings:
        def flatmap_case(context: HookContext, case: Case) -> st.SearchStrategy[Case]:
            return _EXTRA_HEADERS.map(lambda headers: _with_headers(case, headers))

        def before_call(context: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
            self.fill_in(case)

        self._hooks = [flatmap_case, before_call]
        for hook in self._hooks:
            schemathesis.hook(hook)
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            GLOBAL_HOOK_DISPATCHER.unregister(hook)

    def fill_in(self, case: Case) -> None:
        """Fill in what there is, chosen by the case alone, so that the same case is the same request."""
        parts = (case.operation.label, case.path_parameters, case.query, case.body, dict(case.headers))
        choose = random.Random(zlib.crc32(repr(parts).encode("utf-8", "surrogatepass")))
        is_real = choose.random() < REAL_SHARE
        self._fill_in_id(case, choose, is_real)
        has_page = case.operation.label == "GET /videos" and "after" in case.query
        if has_page and not _is_negative(case, ParameterLocation.QUERY):
            # Numbers above that of the last change are of no page, and refused.
            case.query = {**case.query, "after": str(choose.choice([0, 1, *self.pages]))}
        if not _is_negative(case, ParameterLocation.QUERY) and _is_large((case.query or {}).get("filter")):
            case.query = {**case.query, "filter": json.dumps(ANY_VIDEO)}
        if _is_form_allowed_after_all(case):
            _call_body_positive(case)
        if not _is_negative(case, ParameterLocation.BODY):
            self._fill_in_body(case, choose, is_real)

    def _fill_in_id(self, case: Case, choose: random.Random, is_real: bool) -> None:
        if _is_negative(case, ParameterLocation.PATH):
            return
        # In a sequence of requests an id may come from an answer: there it means that very thing.
        is_given = case.meta is not None and case.meta.phase.name == TestPhase.STATEFUL
        for name, known in (("video_id", (*self.ids, *self.spare_ids)), ("job_id", self.job_ids)):
            id = case.path_parameters.get(name)
            if id is None:
                continue
            changes = case.operation.method.upper() in ("PATCH", "DELETE") and name == "video_id"
            if is_real and known and not (is_given and (id in known or _MADE_BY_SERVER.fullmatch(str(id)))):
                id = choose.choice(self.spare_ids if changes else known)
            if changes and id in self.ids:
                id = choose.choice(self.spare_ids)
            if not is_given:
                self.put_back([id])
            case.path_parameters[name] = id

    def _fill_in_body(self, case: Case, choose: random.Random, is_real: bool) -> None:
        body = case.body
        if not isinstance(body, dict):
            return
        label = case.operation.label
        if _is_large(body.get("filter")):
            case.body = body = {**body, "filter": ANY_VIDEO}
        if label == "POST /search" and isinstance(body.get("queries"), list):
            # That the number of results is bounded for all queries together, no schema can say.
            most = MAX_EXPLAINED_RESULTS // max(1, len(body["queries"]))
            if isinstance(limit := body.get("limit"), int) and limit > most:
                case.body = body = {**body, "limit": most}
        if label == "POST /session" and is_real and self.keys:
            case.body = {"key": choose.choice(self.keys)}
        elif label == "POST /videos" and "uri" in body and is_real and (self.uris or not _waits(case)):
            uris = list(self.uris) if _waits(case) else [*self.uris, UNREACHABLE]
            uri = choose.choice(uris)
            case.body = {**body, "uri": uri}
            if uri == UNREACHABLE:
                case.body.pop("id", None)
        elif label == "POST /videos" and "file" in body:
            self._fill_in_form(case, body, choose, is_real)

    def _fill_in_form(self, case: Case, form: dict[str, Any], choose: random.Random, is_real: bool) -> None:
        """A form with a video that there is. Bytes that are no video are accepted, but not of who waits."""
        changed = dict(form)
        if is_real or _waits(case):
            changed["file"] = self.new_file() if choose.random() < 0.2 else choose.choice(self.files)
        if "metadata" in form:
            # Any text is drawn for it: that it is an object in JSON, is not understood there.
            changed["metadata"] = json.dumps({"note": str(form["metadata"])})
        if isinstance(form.get("transcript"), list):
            # Any bytes are drawn for these: that they have lines with times, is not understood there.
            changed["transcript"] = [SUBTITLES + _as_bytes(content) for content in form["transcript"]]
        case.body = changed
        # Bytes cannot be held against a schema, and would be taken for a mistake.
        _call_body_positive(case)


def _is_large(filter: Any) -> bool:
    """Whether a filter has more conditions or levels than are accepted, which no schema can say."""
    try:
        parse_filter(json.loads(filter) if isinstance(filter, str) else filter)
    except InvalidQueryError as error:
        return re.search(r"more than \d+ (levels|conditions)", str(error)) is not None
    except ValueError:
        pass
    return False


def _is_form_allowed_after_all(case: Case) -> bool:
    """Whether a form that was drawn to break its schema keeps to it.

    Schemathesis appends an asterisk where it means to break a pattern, whatever the pattern is.
    """
    if not _is_negative(case, ParameterLocation.BODY) or case.media_type != "multipart/form-data":
        return False
    if not isinstance(case.body, dict):
        return False
    schema = case.operation.definition.raw["requestBody"]["content"][case.media_type]["schema"]
    form = {name: _as_text(value) for name, value in case.body.items()}
    return Draft202012Validator(schema).is_valid(form)


def _as_bytes(value: Any) -> bytes:
    content = value.data if isinstance(value, Binary) else value
    return content if isinstance(content, bytes) else str(content).encode()


def _as_text(value: Any) -> Any:
    content = value.data if isinstance(value, Binary) else value
    return content.decode("latin-1") if isinstance(content, bytes) else content


def _call_body_positive(case: Case) -> None:
    if case.meta is None:
        return
    case.meta.components[ParameterLocation.BODY] = ComponentInfo(mode=GenerationMode.POSITIVE)
    if all(info.mode.is_positive for info in case.meta.components.values()):
        case.meta.generation.mode = GenerationMode.POSITIVE


def _with_headers(case: Case, headers: Mapping[str, str]) -> Case:
    """The case with further headers: so an endpoint without parameters gets different requests too."""
    for name, value in headers.items():
        case.headers.setdefault(name, value)
    return case


def _waits(case: Case) -> bool:
    return str((case.query or {}).get("wait", "false")).lower() not in ("false", "0", "off", "no", "n", "f")


def _is_negative(case: Case, location: ParameterLocation) -> bool:
    return case.meta is not None and case.meta.is_negative_at(location)
