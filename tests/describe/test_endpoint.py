"""Misbehaving endpoints: no sample is lost, reasons are counted, and a dead endpoint stops the stage."""

import logging
import pickle
import socket
from collections import Counter

import pytest

from helpers.chat_server import GOOD, BadServer, Reply, completion
from magicseg.backends import DescribeRequest, Description
from magicseg.core.errors import BackendError
from magicseg.installed_backends import find_backend
from magicseg.labels import Label
from magicseg.stages.describe.endpoint import OpenAICaptioner

CAT = Label(id=1, name="cat")
KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Shorten the client's pauses to a thousandth."""
    import openai._base_client as client

    monkeypatch.setattr(client, "INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr(client, "MAX_RETRY_DELAY", 0.01)


def options(url, **more):
    return OpenAICaptioner.Options.model_validate({"base_url": url, "model": "tiny", "retries": 1, **more})


def captioner(server, **more):
    return OpenAICaptioner(None, options(server.url, **more))


def requests(count):
    return [DescribeRequest(index=index, labels=(CAT,), seed=index + 50) for index in range(count)]


def describe(script, count=6, **more):
    with BadServer(script) as server:
        answers = captioner(server, **more).describe(requests(count))
    assert len(answers) == count
    assert all(isinstance(answer, Description) for answer in answers), "no sample is lost"
    return answers, server


def reasons(answers):
    counted = Counter()
    for answer in answers:
        counted.update(filter(None, answer.quality["rejected"].split(",")))
    return counted


def test_the_entry_point_returns_this_back_end():
    assert find_backend("captioners", "openai") is OpenAICaptioner


def test_a_working_endpoint_gets_one_request_per_sample():
    answers, server = describe(lambda number, body: Reply())
    assert {(answer.quality["source"], answer.quality["attempts"]) for answer in answers} == {("model", 1)}
    assert len(server.bodies) == 6
    body = server.bodies[0]
    assert (body["model"], body["max_tokens"], body["temperature"], body["top_p"]) == ("tiny", 192, 0.9, 0.95)
    assert len({body["seed"] for body in server.bodies}) == 6
    assert all(0 <= body["seed"] < 2**31 for body in server.bodies)
    assert '"cat"' in body["messages"][0]["content"]


def test_extra_body_fields_are_sent_with_each_request():
    _, server = describe(
        lambda number, body: Reply(), 1, extra_body={"top_k": 7}, length_field="max_completion_tokens"
    )
    assert server.bodies[0]["top_k"] == 7
    assert server.bodies[0]["max_completion_tokens"] == 192
    assert "max_tokens" not in server.bodies[0]


@pytest.mark.parametrize("limit", [1, 3])
def test_concurrent_requests_are_limited(limit):
    _, server = describe(lambda number, body: Reply(delay=0.05), 9, concurrency=limit)
    assert server.most_at_once == limit


def test_the_client_waits_for_the_rate_limit_that_the_server_names():
    def script(number, body):
        return Reply({"error": "slow down"}, status=429, headers={"Retry-After": "0.4"}) if number == 0 else Reply()

    answers, server = describe(script, 1)
    assert answers[0].quality["rejected"] == ""
    assert server.times[1] - server.times[0] >= 0.4


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply({"error": "busy"}, status=429), "http-429"),
        (Reply(b"<html>bad gateway</html>", status=502), "http-502"),
        (Reply({"error": "oh"}, status=500), "http-500"),
        (Reply(delay=0.6), "timeout"),
        (Reply(hang_up=True), "broken-connection"),
        (Reply(b'{"id": "x", "choices": [{"ind'), "broken-answer"),
        (Reply(b'{"id": "x"', length=500), "broken-connection"),
        (Reply(b""), "broken-answer"),
        (Reply(b"<html>hello</html>", headers={"Content-Type": "text/html"}), "wrong-schema"),
        (Reply({"hello": "world"}), "wrong-schema"),
        (Reply([1, 2]), "wrong-schema"),
        (Reply({"choices": []}), "wrong-schema"),
        (Reply({"choices": [{"message": None}]}), "wrong-schema"),
        (Reply(completion(None)), "wrong-schema"),
        (Reply(completion(["parts"])), "wrong-schema"),
        (Reply(completion(GOOD, "content_filter")), "refused"),
        (Reply({"error": {"code": "content_filter", "message": "no"}}, status=400), "refused"),
        (Reply(completion(GOOD, "length")), "cut-off"),
        (Reply(completion(GOOD[:30])), "not-json"),
        (Reply(completion('{"caption": "a cat"}')), "wrong-keys"),
        (Reply(completion("\u0000")), "not-two-items"),
        (Reply(completion('{"with": "a cat \\ud800 here", "without": "a red sofa"}')), "not-storable"),
    ],
)
def test_a_bad_answer_counts_as_one_attempt(reply, reason):
    """Sample 2 always gets the bad reply first; the others get good answers."""
    from magicseg.stages.describe.writer import WritingOptions, _prompt

    bad = _prompt(requests(6)[2], 0, WritingOptions()).seed % 2**31
    answers, _ = describe(lambda number, body: reply if body["seed"] == bad else Reply(), timeout=0.3)
    assert reasons(answers) == {reason: 1}
    assert (answers[2].quality["source"], answers[2].quality["attempts"]) == ("model", 2)


def test_an_endpoint_that_fails_now_and_then_loses_nothing():
    def script(number, body):
        return [
            Reply(),
            Reply({"error": "oh"}, status=500),
            Reply(completion("not an answer")),
            Reply(b'{"cho'),
            Reply(hang_up=True),
            Reply({"error": "busy"}, status=429, headers={"Retry-After": "0.01"}),
        ][number * 7 % 11 % 6]

    answers, _ = describe(script, 40, concurrency=4, give_up_after=40)
    sources = Counter(answer.quality["source"] for answer in answers)
    assert sources["model"] > 20
    assert reasons(answers)


def test_a_sample_that_the_endpoint_never_answers_falls_back_and_the_others_do_not():
    poison = requests(6)[3]

    def script(number, body):
        return Reply({"error": "oh"}, status=500) if "zebra" in str(body) else Reply()

    batch = requests(6)
    batch[3] = DescribeRequest(index=3, labels=(Label(id=2, name="zebra"),), seed=poison.seed)
    with BadServer(script) as server:
        answers = captioner(server).describe(batch)
    assert [answer.quality["source"] for answer in answers] == ["model"] * 3 + ["template"] + ["model"] * 2
    assert answers[3].quality["rejected"] == "http-500,http-500,http-500"
    assert "zebra" in answers[3].caption


# Unusable endpoints.


def stopped(script, count=6, **more):
    with BadServer(script) as server, pytest.raises(BackendError) as caught:
        captioner(server, **more).describe(requests(count))
    assert caught.value.hint
    return caught.value, server


def test_an_unreachable_endpoint_stops_the_stage():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    with pytest.raises(BackendError, match=r"127\.0\.0\.1.* cannot be reached") as caught:
        OpenAICaptioner(None, options(url)).describe(requests(6))
    assert "is it running" in caught.value.hint


@pytest.mark.parametrize(("status", "hint"), [(401, "api_key_env"), (403, "api_key_env"), (404, "/v1")])
def test_a_refused_key_or_model_stops_the_stage_at_once(status, hint):
    error, server = stopped(lambda number, body: Reply({"error": "no"}, status=status), concurrency=1)
    assert f"answered {status}" in error.message
    assert hint in error.hint
    assert len(server.bodies) == 1


@pytest.mark.parametrize("status", [400, 422])
def test_requests_that_are_refused_from_the_first_stop_the_stage(status):
    error, server = stopped(lambda number, body: Reply({"error": "no"}, status=status))
    assert f"answered {status}" in error.message
    assert "describe.options" in error.hint
    assert len(server.bodies) == 6, "one round, and no retries"


@pytest.mark.parametrize("status", [400, 422])
def test_a_refused_prompt_affects_only_its_sample(status):
    """This holds even for the first prompt, because the others are already being sent."""

    def script(number, body):
        long = "zebra" in str(body)
        return Reply({"error": "context length exceeded"}, status=status) if long else Reply(delay=0.05)

    batch = requests(6)
    batch[0] = DescribeRequest(index=0, labels=(Label(id=2, name="zebra"),), seed=7)
    with BadServer(script) as server:
        answers = captioner(server).describe(batch)
    assert [answer.quality["source"] for answer in answers] == ["template"] + ["model"] * 5
    assert answers[0].quality["rejected"] == ",".join([f"http-{status}"] * 3)


def test_an_endpoint_that_begins_to_refuse_all_requests_stops_the_stage_with_its_message():
    def script(number, body):
        return Reply() if number < 4 else Reply({"error": {"message": "no such sampler"}}, status=400)

    error, server = stopped(script, 30, concurrency=1, give_up_after=5)
    assert "5 requests in a row" in error.message
    assert "no such sampler" in error.message
    assert len(server.bodies) == 9


@pytest.mark.parametrize(
    "reply", [Reply({"error": "oh"}, status=503), Reply(b"{"), Reply({"hello": "world"}), Reply(hang_up=True)]
)
def test_an_endpoint_that_never_answers_stops_the_stage(reply):
    error, _ = stopped(lambda number, body: reply, 3)
    assert "gave no answer" in error.message
    assert "each tried 2 times" in error.message


def test_an_endpoint_that_dies_stops_the_stage_after_give_up_after_requests():
    def script(number, body):
        return Reply() if number < 4 else Reply({"error": "dying"}, status=500)

    error, server = stopped(script, 30, concurrency=1, retries=0, give_up_after=5)
    assert "5 requests in a row" in error.message
    assert len(server.bodies) == 9


def test_an_endpoint_that_has_answered_before_may_fail_at_a_whole_small_batch():
    def script(number, body):
        return Reply() if number < 1 else Reply({"error": "oh"}, status=500)

    with BadServer(script) as server:
        model = captioner(server, attempts=1)
        model.describe(requests(1))
        (answer,) = model.describe(requests(1))
    assert answer.quality["source"] == "template"


# The key.


def test_the_key_comes_from_the_environment_and_is_sent_only_to_the_endpoint(monkeypatch, caplog, capfd):
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with BadServer() as server:
        model = captioner(server, api_key_env="MY_KEY")
        answers = model.describe(requests(2))
    assert server.keys == [f"Bearer {KEY}"] * 2
    seen = [str(answers), str(model._options), str(model.identity(model._options)), caplog.text, *capfd.readouterr()]
    assert KEY not in "".join(seen)
    assert KEY.encode() not in pickle.dumps(model._options)


def test_a_key_that_the_server_quotes_is_masked_in_the_error(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    error, _ = stopped(
        lambda number, body: Reply({"error": {"message": f"bad key {KEY}"}}, status=401), api_key_env="MY_KEY"
    )
    assert KEY not in error.message
    assert "***" in error.message


def test_a_key_that_is_not_set_is_refused_before_the_first_request(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with BadServer() as server, pytest.raises(BackendError, match="MY_KEY") as caught:
        captioner(server, api_key_env="MY_KEY")
    assert caught.value.hint.startswith("export MY_KEY=")
    assert server.bodies == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"api_key_env": KEY}, "NAME of an environment variable"),
        ({"base_url": "http://me:secret@host/v1"}, "neither a password nor a key"),
        ({"base_url": "http://host/v1?key=secret"}, "neither a password nor a key"),
        ({"base_url": "localhost:8000"}, "must begin with http"),
    ],
)
def test_settings_that_would_store_a_key_are_refused(values, words):
    with pytest.raises(ValueError, match=words) as caught:
        options(**{"url": values.pop("base_url", "http://host/v1"), **values})
    assert caught.value.errors()[0]["msg"]
