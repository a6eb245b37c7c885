"""Methods and bodies of every route, as the API tells them to whoever asks."""

from collections import defaultdict
from collections.abc import Iterator

import pytest
from fastapi.routing import APIRoute, iter_route_contexts

from service.api.app import create_app
from service.api.limits import JsonRoute
from service.api.methods import METHODS
from service.ingest.bodies import MEDIA_TYPES
from service.settings import Settings
from tests.support.api_parts import Api, declare, running_api
from tests.support.routes import ROUTES, described, filled


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("methods")) as running:
        declare(running, "here")
        yield running


def test_head_answers_as_get_does_without_a_body_at_every_route(api: Api) -> None:
    for path in (path for method, path in ROUTES if method == "GET"):
        got, head = api.http.get(path), api.http.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        for name in ("content-type", "content-length", "cache-control", "content-security-policy"):
            assert head.headers.get(name) == got.headers.get(name), (path, name)
    assert api.http.head("/healthz").status_code == 200
    assert api.http.head("/nothing").status_code == 404


def test_allow_names_every_method_of_a_path(api: Api) -> None:
    taken = defaultdict(set)
    for method, path in ROUTES:
        taken[path.split("?")[0]].add(method)
    assert {"GET", "POST"} <= taken["/v1/pipelines"]
    for path, methods in taken.items():
        answers = {each: api.http.request(each, path) for each in METHODS}
        refused = {each: answer for each, answer in answers.items() if answer.status_code == 405}
        # Some paths are also those of another route, to which a part of them is a parameter.
        assert methods <= set(METHODS) - set(refused), path
        for method, answer in refused.items():
            assert set(answer.headers["allow"].split(", ")) == set(METHODS) - set(refused), path
            if method != "HEAD":
                assert answer.headers["allow"] in api.refuses(answer, 405, "http-405")["fix"]


def test_the_description_names_the_types_of_body_that_each_route_takes(api: Api) -> None:
    routes = list(iter_route_contexts(create_app(Settings(home=api.settings.root)).routes))
    takes = {filled(str(each.path)): each.original_route for each in routes if each.methods == {"POST"}}
    posts = {path.split("?")[0]: doc for (method, path), doc in described().items() if method == "POST"}
    assert set(posts) == set(takes)
    for path, operation in posts.items():
        route = takes[path]
        assert isinstance(route, APIRoute)
        assert isinstance(route, JsonRoute), "a route that takes a body names its types"
        assert set(operation["requestBody"]["content"]) == set(route.media_types), path
    whole = [path for path, each in posts.items() if len(each["requestBody"]["content"]) == len(MEDIA_TYPES)]
    assert len(whole) == 3
