"""Requests to a model that is awake."""

import asyncio
import json

import aiohttp
import openai
import pytest

from gptoss_api.names import engine_model_id
from tests.contract.gateway.house import KEY, OTHER_KEY, UID, House, client, eventually, model_object

MESSAGES = [{"role": "user", "content": "Hi"}]
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
async def awake(house: House):
    house.apply(model_object("serving"))
    application = house.deploy()
    return await house.open_gateway(), application


async def test_openai_client_gets_whole_and_streamed_answers(awake):
    server, _ = awake
    async with client(server) as api:
        whole = await api.chat.completions.create(model="assistant", messages=MESSAGES)
        assert whole.choices[0].message.content == "Hello world"
        stream = await api.chat.completions.create(model="ml/assistant", messages=MESSAGES, stream=True)
        assert "".join([chunk.choices[0].delta.content async for chunk in stream]) == "Hello world"


async def test_responses_api_whole_and_streamed(awake):
    server, _ = awake
    async with client(server) as api:
        whole = await api.responses.create(model="assistant", input="Hi")
        assert whole.output_text == "Hello world"
        stream = await api.responses.create(model="assistant", input="Hi", stream=True)
        kinds = [event.type async for event in stream]
        assert kinds == ["response.output_text.delta"] * 2 + ["response.completed"]


async def test_stream_bytes_are_untouched(awake):
    server, application = awake
    application.words = ["ä€😀", "data: [DONE]", " end"]
    body = {"model": "assistant", "messages": MESSAGES, "stream": True}
    async with aiohttp.ClientSession() as session:
        async with session.post(server.url + "/v1/chat/completions", json=body, headers=AUTHORIZED) as response:
            through = await response.read()
        url = f"{house_url(server)}/gptoss/ml/assistant/v1/chat/completions"
        async with session.post(url, json=body, headers={"x-gptoss-gateway-token": "gateway-token"}) as response:
            direct = await response.read()
    assert through == direct


async def test_a_client_that_reads_slowly_gets_every_byte_and_holds_its_engine_back(awake):
    server, application = awake
    application.words = [letter * 100_000 for letter in "abcdefghij" * 20]
    body = {"model": "assistant", "messages": MESSAGES, "stream": True}
    async with aiohttp.ClientSession() as session:
        url = f"{house_url(server)}/gptoss/ml/assistant/v1/chat/completions"
        async with session.post(url, json=body, headers={"x-gptoss-gateway-token": "gateway-token"}) as response:
            direct = await response.read()
        async with session.post(server.url + "/v1/chat/completions", json=body, headers=AUTHORIZED) as response:
            (exchange,) = server.gateway._vigil._exchanges
            await eventually(lambda: exchange.blocked_since is not None)
            assert exchange._request.transport.get_write_buffer_size() < 2**20
            assert await response.read() == direct


async def test_a_client_of_http_1_0_gets_a_stream_that_ends_with_its_connection(awake):
    server, application = awake
    application.paused.clear()
    body = json.dumps({"model": "assistant", "messages": MESSAGES, "stream": True}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"POST /v1/chat/completions HTTP/1.0\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    async with asyncio.timeout(60):
        head = await reader.readuntil(b"\r\n\r\n")
        stream = await reader.readuntil(b"\n\n")
        application.paused.set()
        stream += await reader.read()
    writer.close()
    assert b"chunked" not in head
    assert stream.startswith(b"data: {")
    assert stream.count(b"\n\n") == 3
    assert stream.endswith(b"data: [DONE]\n\n")


async def test_first_event_arrives_before_the_stream_goes_on(awake):
    server, application = awake
    application.paused.clear()
    async with client(server) as api:
        stream = await api.chat.completions.create(model="assistant", messages=MESSAGES, stream=True)
        chunks = aiter(stream)
        first = await asyncio.wait_for(anext(chunks), 60)
        assert first.choices[0].delta.content == "Hello"
        application.paused.set()
        assert [chunk.choices[0].delta.content async for chunk in chunks] == [" world"]


async def test_only_the_model_of_a_body_is_rewritten_and_only_allowed_headers_pass(awake):
    server, application = awake
    raw = b'{ "messages": [{"model": "assistant"}] ,"mod\\u0065l":\t"assistant" , "x": 1.50e1 }'
    headers = {
        **AUTHORIZED,
        "Content-Type": "application/json",
        "x-request-timeout-seconds": "1",
        "x-request-id": "mine",
        "x-gptoss-gateway-token": "guess",
        "Cookie": "a=b",
        "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    }
    url = server.url + "/v1/chat/completions"
    async with aiohttp.ClientSession() as session, session.post(url, data=raw, headers=headers) as response:
        assert response.status == 200
        request_id = response.headers["x-request-id"]
    _, seen, body = application.posts[0]
    engine_id = engine_model_id("ml", "assistant", UID)
    assert body == raw.replace(b'\t"assistant"', f'\t"{engine_id}"'.encode())
    seen = {name.lower(): value for name, value in seen.items()}
    assert set(seen) == {
        "host", "content-type", "content-length", "accept", "accept-encoding", "traceparent", "x-request-id",
        "x-gptoss-gateway-token",
    }  # fmt: skip
    assert seen["x-request-id"] == request_id != "mine"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/tokenize"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/chat/completions/render"),
        ("POST", "/v1/chat/../../tokenize"),
        ("POST", "/v1/chat%2fcompletions"),
        ("POST", "//v1/chat/completions"),
        ("GET", "/v1/chat/completions"),
        ("GET", "/metrics"),
        ("GET", "/v1/responses/resp_1"),
        ("POST", "/scale_elastic_ep"),
        ("DELETE", "/v1/models/assistant"),
        ("OPTIONS", "/v1/models"),
    ],
)
async def test_other_routes_are_404_without_touching_an_engine(awake, house, method, path):
    server, _ = awake
    async with aiohttp.ClientSession() as session:
        url = aiohttp.client.URL(server.url + path, encoded=True)
        async with session.request(method, url, headers=AUTHORIZED, json={"model": "assistant"}) as response:
            assert response.status == 404
            assert (await response.json())["error"]["code"] == "not_found"
    assert house.engines.requests == []


async def test_models_lists_what_the_key_may_see_asleep_or_not(awake, house):
    server, _ = awake
    house.apply(model_object("idle", name="sleeper", namespace="lab", uid="u-2"))
    house.apply(model_object("serving", name="secret", namespace="other", uid="u-3"))
    async with client(server) as api:
        assert [model.id async for model in api.models.list()] == ["assistant", "sleeper"]
        assert (await api.models.retrieve("lab/sleeper")).id == "lab/sleeper"
        with pytest.raises(openai.NotFoundError):
            await api.chat.completions.create(model="other/secret", messages=MESSAGES)
    async with client(server, key=OTHER_KEY) as api:
        assert [model.id async for model in api.models.list()] == ["secret"]


async def test_a_name_claimed_twice_is_404_that_says_so(awake, house):
    server, _application = awake
    house.apply(model_object("serving", name="rival", namespace="lab", uid="u-2") | {})
    house.objects["u-2"]["spec"]["model"]["servedName"] = "assistant"
    house.apply(house.objects["u-2"])
    async with client(server) as api:
        with pytest.raises(openai.NotFoundError, match=r"lab/rival, ml/assistant"):
            await api.chat.completions.create(model="assistant", messages=MESSAGES)
        assert [model.id async for model in api.models.list()] == ["lab/rival", "ml/assistant"]
        answer = await api.chat.completions.create(model="ml/assistant", messages=MESSAGES)
        assert answer.choices[0].message.content == "Hello world"


async def test_without_a_known_key_it_is_401(awake):
    server, application = awake
    async with client(server, key="gptoss-wrong") as api:
        with pytest.raises(openai.AuthenticationError) as caught:
            await api.chat.completions.create(model="assistant", messages=MESSAGES)
    assert caught.value.code == "invalid_api_key"
    assert "gptoss-wrong" not in str(caught.value)
    async with aiohttp.ClientSession() as session, session.get(server.url + "/v1/models") as response:
        assert response.status == 401
    assert application.posts == []


async def test_keys_are_reloaded_and_bad_files_leave_the_last_good_ones(awake, house):
    server, _ = awake
    from tests.contract.gateway.house import hashed

    house.write_keys([{"name": "ml", "keys": [hashed("gptoss-new")], "namespaces": ["ml"]}])
    await server.gateway.refresh()
    async with client(server) as api:
        with pytest.raises(openai.AuthenticationError):
            await api.models.list()
    house.keys_file.write_text("tenants: nonsense\n# longer than before")
    await server.gateway.refresh()
    async with client(server, key="gptoss-new") as api:
        assert [model.id async for model in api.models.list()] == ["assistant"]


async def test_engine_error_in_json_passes_as_it_is(awake):
    server, application = awake
    application.faults.append("json-400")
    async with client(server) as api:
        with pytest.raises(openai.BadRequestError, match="max_tokens too large"):
            await api.chat.completions.create(model="assistant", messages=MESSAGES)
    assert len(application.posts) == 1


async def test_fastapi_detail_becomes_an_openai_error(awake):
    server, application = awake
    application.faults.append("detail-404")
    async with client(server) as api:
        with pytest.raises(openai.NotFoundError) as caught:
            await api.chat.completions.create(model="assistant", messages=MESSAGES)
    assert caught.value.body["message"] == "Not Found"


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_leaves_reaches_the_engine(awake, stream):
    server, application = awake
    application.paused.clear()
    body = {"model": "assistant", "messages": MESSAGES, "stream": stream}
    session = aiohttp.ClientSession()
    post = asyncio.create_task(session.post(server.url + "/v1/chat/completions", json=body, headers=AUTHORIZED))
    await eventually(lambda: bool(application.posts))
    if stream:
        await asyncio.wait_for(application.streaming.wait(), 60)
    post.cancel()
    await asyncio.gather(post, return_exceptions=True)
    await session.close()
    await asyncio.wait_for(application.aborted.wait(), 60)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "JSON object"),
        (b"[]", 400, "JSON object"),
        (b'{"model": "assistant", "model": "assistant"}', 400, "twice"),
        (b'{"model": "assistant", "mod\\u0065l": "b"}', 400, "twice"),
        (b'{"messages": []}', 400, "`model`"),
        (b'{"model": 3}', 400, "`model`"),
        (b'{"model": "assistant", "x": NaN}', 400, "invalid character (byte 28)"),
        (b'{"model": "assistant", "x": "\xff"}', 400, "UTF-8"),
        (b'{"model": "assistant"} {}', 400, "trailing characters"),
        (b'{"model": "assistant", "x": ' + b"[" * 100_000, 400, "JSON object"),
        (b'{"model": "assistant", "x": ' + b"[" * 70 + b"]" * 70 + b"}", 400, "nested"),
        (b'{"model": "assistant", "x": "' + b"a" * 70_000 + b'"}', 413, "65536"),
    ],
)
async def test_bad_bodies_are_refused_before_an_engine_sees_them(house, body, status, says):
    house.apply(model_object("serving"))
    application = house.deploy()
    server = await house.open_gateway(limits={"maxBodyBytes": 65536 if status == 413 else 1 << 20})
    headers = {**AUTHORIZED, "Content-Type": "application/json"}
    url = server.url + "/v1/chat/completions"
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=headers) as response:
        assert response.status == status
        assert says in json.loads(await response.read())["error"]["message"]
    assert application.posts == []


async def test_metrics_count_requests_and_tokens_and_forget_a_deleted_model(awake, house):
    server, _application = awake
    async with client(server) as api:
        await api.chat.completions.create(model="assistant", messages=MESSAGES)
        stream = await api.chat.completions.create(
            model="assistant", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        async for _ in stream:
            pass
        await api.responses.create(model="assistant", input="Hi")
    text = await metrics(server)
    labels = 'model="assistant",namespace="ml"'
    assert f'gptoss_gateway_requests_total{{code="200",{labels},route="/v1/chat/completions"}} 2.0' in text
    assert f'gptoss_gateway_tokens_total{{kind="input",{labels},source="engine",tenant="ml"}} 21.0' in text
    assert f'gptoss_gateway_tokens_total{{kind="reasoning",{labels},source="engine",tenant="ml"}} 1.0' in text
    assert f"gptoss_gateway_in_flight_requests{{{labels}}}" in text.replace('namespace="ml",model="assistant"', labels)
    house.delete()
    text = await metrics(server)
    assert 'model="assistant"' not in text


async def test_readiness_follows_the_catalogue(house):
    server = await house.open_gateway()
    server.gateway.catalogue.synced = False
    async with aiohttp.ClientSession() as session:
        async with session.get(server.admin_url + "/readyz") as response:
            assert response.status == 503
        server.gateway.catalogue.on_synced()
        async with session.get(server.admin_url + "/readyz") as response:
            assert response.status == 200
        async with session.get(server.admin_url + "/healthz") as response:
            assert response.status == 200
        async with session.get(server.url + "/metrics") as response:
            assert response.status == 404


async def metrics(server) -> str:
    async with aiohttp.ClientSession() as session, session.get(server.admin_url + "/metrics") as response:
        return await response.text()


def house_url(server) -> str:
    return server.gateway.settings.ray_clusters[0].serve_url
