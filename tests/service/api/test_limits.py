"""Bytes of all requests together: what is held is bounded, and given back."""

import asyncio

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request

from service.api import problems
from service.api.limits import BodiesInFlight, RecordsRoute
from service.api.problems import RefusedError

NDJSON = {"Content-Type": "application/x-ndjson"}


def test_bodies_share_one_limit_and_give_it_back() -> None:
    bodies = BodiesInFlight(10)
    with bodies.one() as first:
        first(6)
        with bodies.one() as second:
            second(4)
            with pytest.raises(RefusedError) as caught:
                first(1)
            assert caught.value.status_code == 503
        first(4)
    with bodies.one() as third:
        third(10)


def test_a_request_beyond_the_limit_is_told_when_to_come_back() -> None:
    router = APIRouter(route_class=RecordsRoute)

    @router.post("/records")
    async def send(request: Request) -> int:
        return len(await request.body())

    app = FastAPI()
    problems.install(app)
    app.include_router(router)
    app.state.bodies_in_flight = BodiesInFlight(1000)

    async def post(size: int) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            return await client.post("/records", content=b"x" * size, headers=NDJSON)

    for _ in range(3):
        assert asyncio.run(post(900)).json() == 900
        answer = asyncio.run(post(1001))
        assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (503, "busy")
        assert answer.headers["Retry-After"] == "5"
