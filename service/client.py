"""A small client of the HTTP API, for the command line and the demo."""

import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from service.errors import HoldfastError, SettingsError

FINISHED = ("review", "done", "failed")


class ApiError(HoldfastError):
    """The API answered with a problem document, `document`."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        super().__init__(str(document.get("detail", "")), fix=str(document.get("fix", "")), members=document)
        self.document = document


class Client:
    """Calls the API; every failure is one `ApiError` that says what to do."""

    def __init__(self, url: str, *, timeout_seconds: float = 60.0) -> None:
        """
        Raises:
            SettingsError: `url` is not one that could be called.
        """
        self._url = url
        try:
            self._http = httpx.Client(base_url=url, timeout=timeout_seconds)
            usable = self._http.base_url.scheme in ("http", "https") and bool(self._http.base_url.host)
        except httpx.InvalidURL:
            usable = False
        if not usable:
            raise SettingsError(
                f"{url!r} is not the URL of an API.",
                fix="Give one such as http://127.0.0.1:8400 with --url or HOLDFAST_URL.",
            )

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()

    def get(self, path: str) -> Any:
        """The JSON answer of a GET."""
        return self._call("GET", path)

    def post(self, path: str, body: Any = None, *, key: str | None = None) -> Any:
        """The JSON answer of a POST; `key` is its Idempotency-Key."""
        return self._call("POST", path, body=body, headers={"Idempotency-Key": key} if key else {})

    def push(self, pipeline: str, lines: Sequence[bytes], *, key: str | None = None) -> Any:
        """Send records, each one JSON text; `key` is the Idempotency-Key."""
        headers = {"Content-Type": "application/x-ndjson", **({"Idempotency-Key": key} if key else {})}
        path = f"/v1/pipelines/{segment(pipeline)}/records"
        return self._call("POST", path, content=b"\n".join(lines), headers=headers)

    def send(self, path: str, content: bytes, *, media_type: str) -> Any:
        """The JSON answer of a POST whose body is a file of records."""
        return self._call("POST", path, content=content, headers={"Content-Type": media_type})

    def follow(self, update: str, *, timeout_seconds: float = 600.0) -> Iterator[Mapping[str, Any]]:
        """Yield the update repeatedly, until it has finished or awaits a decision.

        Raises:
            HoldfastError: it takes too long, or waits for another update that a person must decide first.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            found = self.get(f"/v1/updates/{segment(update)}")
            yield found
            if found["state"] in FINISHED:
                return
            self._refuse_to_wait_for_a_person(found)
            if time.monotonic() > deadline:
                raise HoldfastError(
                    f"Update {update} is still {found['state']} after {timeout_seconds:.0f} seconds.",
                    fix="See the dispatcher's log; GET /readyz shows which roles are alive.",
                )
            time.sleep(0.1)

    def _refuse_to_wait_for_a_person(self, update: Mapping[str, Any]) -> None:
        if not update["waits_for"]:
            return
        first = self.get(f"/v1/updates/{segment(update['waits_for'])}")
        if first["state"] == "review":
            raise HoldfastError(
                f"Update {update['id']} waits for update {first['id']}, which awaits a decision.",
                fix=f"Decide it with `holdfast update approve {first['id']} --reason ...`, or `reject`.",
            )

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        try:
            if content is not None:
                answer = self._http.request(method, path, content=content, headers=headers)
            else:
                answer = self._http.request(method, path, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise HoldfastError(
                f"The API on {self._url} does not answer: {error}.",
                fix="Start it with `holdfast up`, or name another one with --url.",
            ) from error
        try:
            document = answer.json()
        except ValueError as error:
            raise self._unknown_service(answer) from error
        if answer.is_success:
            return document
        if not isinstance(document, dict) or "fix" not in document:
            raise self._unknown_service(answer)
        raise ApiError(document)

    def _unknown_service(self, answer: httpx.Response) -> HoldfastError:
        return HoldfastError(
            f"{self._url} answers, but not as Holdfast's API does (status {answer.status_code}).",
            fix="Name the API with --url or HOLDFAST_URL.",
        )


def segment(name: str) -> str:
    """A name as one segment of a path, whatever it holds."""
    return quote(name, safe="")
