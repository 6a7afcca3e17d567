"""The captioner that asks an OpenAI-compatible endpoint: vLLM, llama.cpp, a hosted service.

When the endpoint misbehaves. The official client tries each request again (408, 409, 429, 5xx, timeouts, broken
connections), after the time that Retry-After names (up to two minutes) or with growing pauses. What still has no
answer then counts as one of its sample's attempts, with the reason. The stage stops with an error, and nothing of
the open shard is committed, when going on would only fill the data set with templates:

- at once, if no connection can be made, or the endpoint refuses the key or the model (401, 403, 404);
- after ``give_up_after`` requests in a row without an answer;
- at the end of a batch's first round, if nothing at all has been answered since the back end started.

A refused request (400, 422) is one without an answer: either the options are wrong, and then none is answered, or a
single prompt does not suit the server, as one that is too long for it.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from magicseg.backends import DescribeRequest, Description, Rejection
from magicseg.core.errors import BackendError
from magicseg.core.text import printable
from magicseg.stages.describe.writer import RECIPES, Ask, Failed, WritingOptions, write_descriptions

if TYPE_CHECKING:
    import openai

RECIPE = 1  # goes up whenever the same prompts are sent in another way

_SEED_BITS = 31  # what all servers take
_REFUSALS = {
    401: "the key is wrong or missing: see describe.options.api_key_env",
    403: "the key does not allow this: see describe.options.api_key_env",
    404: "mend describe.options.base_url (it mostly ends in /v1) or describe.options.model",
}
_REFUSED_REQUESTS = (400, 422)


class OpenAIOptions(WritingOptions):
    """Which endpoint and model, and how patiently they are asked."""

    # The server's address and our patience; the model's name is not among them.
    NEUTRAL: ClassVar[frozenset[str]] = frozenset(
        {"base_url", "api_key_env", "concurrency", "timeout", "retries", "give_up_after"}
    )

    base_url: str = Field(description="as http://127.0.0.1:8000/v1")
    model: str = Field(min_length=1, description="as the endpoint calls it; name weights that do not change")
    api_key_env: str | None = Field(None, description="the environment variable that holds the key, if one is needed")
    concurrency: int = Field(8, ge=1, le=256, description="requests at a time, of each worker")
    timeout: float = Field(120.0, gt=0, le=3600, description="seconds that one request may take, to its last byte")
    retries: int = Field(5, ge=0, le=50, description="of one request, with growing pauses")
    give_up_after: int = Field(8, ge=1, description="requests in a row without an answer: the endpoint is dead")
    length_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="what the endpoint calls max_new_tokens; some hosted models take the second only"
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict,
        description="more fields of each request's JSON; null leaves a field out, such as {temperature: null}",
    )

    @field_validator("base_url")
    @classmethod
    def _is_plain(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("begins with http:// or https://")
        if "@" in value or "?" in value:
            raise ValueError("must hold neither a password nor a key: it is stored; use api_key_env")
        return value.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        if value is not None and not (value.isidentifier() and value == value.upper()):
            raise ValueError("is the NAME of an environment variable in capitals, never the key itself")
        return value


class OpenAICaptioner:
    """Back end of the describe stage. The fingerprint holds the model's name: what it stands for is the server's."""

    Options = OpenAIOptions
    LIBRARIES = ("openai",)

    @classmethod
    def identity(cls, options: OpenAIOptions) -> Mapping[str, str | int]:
        """The numbers of all recipes; the weights are out of reach."""
        return {"endpoint": RECIPE, **RECIPES}

    def __init__(self, settings: object, options: OpenAIOptions) -> None:
        self._options = options
        self._key = _key(options)
        self._health = _Health(options, secret=self._key)

    def describe(self, requests: Sequence[DescribeRequest]) -> list[Description | Rejection]:
        """One description per request."""
        return write_descriptions(requests, self._options, self._complete)

    def _complete(self, asks: Sequence[Ask]) -> list[str | Failed]:
        answers = asyncio.run(self._answers(asks))
        self._health.refuse_silence()
        return answers

    async def _answers(self, asks: Sequence[Ask]) -> list[str | Failed]:
        import openai

        from magicseg.stages.describe.bounded import BoundedClient

        options = self._options
        turns = asyncio.Semaphore(options.concurrency)
        async with openai.AsyncOpenAI(
            base_url=options.base_url,
            api_key=self._key or "none",  # the client wants one, and local servers ignore it
            timeout=options.timeout,
            max_retries=options.retries,
            http_client=BoundedClient(options.timeout),
        ) as client:

            async def in_turn(ask: Ask) -> str | Failed:
                async with turns:
                    return await self._answer(client, ask)

            return await asyncio.gather(*map(in_turn, asks))

    def _body(self, ask: Ask) -> dict[str, Any]:
        """Return a request's fields but model and messages, without those that ``extra_body`` sets to null."""
        fields = {
            "temperature": self._options.temperature,
            "top_p": self._options.top_p,
            "seed": ask.seed % 2**_SEED_BITS,
            self._options.length_field: self._options.max_new_tokens,
            **self._options.extra_body,
        }
        return {name: value for name, value in fields.items() if value is not None}

    async def _answer(self, client: "openai.AsyncOpenAI", ask: Ask) -> str | Failed:
        import openai

        if self._health.dead:  # requests that wait for their turn need not be made
            return Failed("endpoint-dead")
        try:
            completion = await client.chat.completions.create(
                model=self._options.model,
                messages=[{"role": "user", "content": ask.prompt}],
                extra_body=self._body(ask),
            )
        except openai.APIStatusError as error:
            if error.code == "content_filter":
                self._health.answered()
                return Failed("refused")
            if error.status_code in _REFUSED_REQUESTS:
                return self._health.refused(error.status_code, error.message)
            if error.status_code in _REFUSALS:
                self._health.died(f"answered {error.status_code}: {error.message}", _REFUSALS[error.status_code])
            return self._health.unanswered(f"http-{error.status_code}")
        except openai.APITimeoutError:
            return self._health.unanswered("timeout")
        except openai.APIConnectionError as error:
            if _never_connected(error):
                self._health.died(
                    f"cannot be reached: {error.__cause__ or error}", "is it running, and the address right?"
                )
            return self._health.unanswered("broken-connection")
        except (openai.OpenAIError, ValueError):  # a body that is no JSON, or not of a completion
            return self._health.unanswered("broken-answer")
        return self._text_of(completion)

    def _text_of(self, completion: Any) -> str | Failed:
        """What the model said. The client does not check an answer's shape: anything may be in it."""
        try:
            choice = completion.choices[0]
            text, ended = choice.message.content, choice.finish_reason
        except (AttributeError, IndexError, TypeError, KeyError):
            return self._health.unanswered("wrong-schema")
        if ended == "content_filter" or (text is None and getattr(choice.message, "refusal", None)):
            self._health.answered()
            return Failed("refused")
        if not isinstance(text, str):
            return self._health.unanswered("wrong-schema")
        self._health.answered()
        return Failed("cut-off") if ended == "length" else text


class _Health:
    """Track over all requests whether the endpoint is alive."""

    def __init__(self, options: OpenAIOptions, *, secret: str) -> None:
        self._options = options
        self._secret = secret
        self._answered = 0
        self._silent_in_a_row = 0
        self._last_reason = ""
        self._refusal = ""
        self._error: BackendError | None = None

    @property
    def dead(self) -> bool:
        """Whether there is no use in asking on."""
        return self._error is not None

    def answered(self) -> None:
        """Note an answer, of whatever worth."""
        self._answered += 1
        self._silent_in_a_row = 0
        self._refusal = ""

    def refused(self, status: int, message: str) -> Failed:
        """Note a request that the endpoint does not take."""
        self._refusal = f"answered {status}: {message}"
        return self.unanswered(f"http-{status}")

    def unanswered(self, reason: str) -> Failed:
        """Note a request that came to nothing, with all its retries."""
        self._silent_in_a_row += 1
        self._last_reason = reason
        if self._silent_in_a_row >= self._options.give_up_after:
            self._give_up(f"{self._options.give_up_after} requests in a row")
        return Failed(reason)

    def died(self, what: str, hint: str) -> None:
        """Note that the endpoint is of no use as it is."""
        if self._secret:  # a server may quote it
            what = what.replace(self._secret, "***")
        self._error = self._error or BackendError(f"{self._options.base_url} {printable(what, 500)}", hint=hint)

    def refuse_silence(self) -> None:
        """Raises: BackendError if the endpoint is dead, or has never answered."""
        if not self._answered and not self.dead:
            self._give_up("any request")
        if self._error is not None:
            raise self._error

    def _give_up(self, whom: str) -> None:
        if self._refusal:
            self.died(
                f"took none of {whom}; it {self._refusal}",
                "mend describe.options, if the endpoint does not take one of them; extra_body={temperature: null} "
                "among them leaves that field out; if single prompts are too long for it, raise its context length, "
                "or describe.options.give_up_after",
            )
            return
        self.died(
            f"gave no answer to {whom}, each tried {self._options.retries + 1} times: {self._last_reason}",
            "look after the endpoint, then run the same command again: what is committed stays "
            "(describe.options: timeout, retries, give_up_after)",
        )


def _key(options: OpenAIOptions) -> str:
    """The key, from the environment; "" if none is named. Raises: BackendError if the variable is not set."""
    if options.api_key_env is None:
        return ""
    key = os.environ.get(options.api_key_env, "")
    if not key.strip():
        raise BackendError(
            f"the environment variable {options.api_key_env} (describe.options.api_key_env) is not set",
            hint=f"export {options.api_key_env}=...   # where the stage runs",
        )
    return key.strip()


def _never_connected(error: "openai.APIConnectionError") -> bool:
    """Whether no connection came about at all: nobody there, no such host, no way to it."""
    return type(error.__cause__).__name__ == "ConnectError"
