"""What trainers send and expect, in their own forms; the sources are named in docs/trainers.md.

Unlike our own messages these let keys pass that they do not know: a trainer sends along what its
own server takes, and a later version more of it.
"""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field

from r2m_service.application.contract import MAX_SAMPLES, Whole

_PROMPT = "<|user|>\nWhich planet has the most moons?</s>\n<|assistant|>\n"
_TEXT = _PROMPT + "Saturn, with 146 that have been confirmed.</s>"

Texts = Annotated[list[str], Field(max_length=MAX_SAMPLES)]
Ids = list[Whole]
"""One text as token ids of the reward model's tokenizer."""


def _config(**example: Any) -> ConfigDict:
    return ConfigDict(
        extra="ignore", protected_namespaces=(), json_schema_extra={"examples": [example]}
    )


def example_of(model: type[BaseModel]) -> Any:
    """The example that a message carries."""
    extra = cast("dict[str, Any]", model.model_config.get("json_schema_extra"))
    return extra["examples"][0]


class GetRewardRequest(BaseModel):
    """OpenRLHF: prompt and response in one text each."""

    model_config = _config(query=[_TEXT], prompts=[_PROMPT], labels=["Saturn"])

    query: Texts = Field(description="prompt + response; none are answered with none")
    prompts: Texts | None = Field(
        default=None, description="where each query's response starts, and whose group it is"
    )
    labels: Any = Field(default=None, description="of the data set; not looked at")


class GetRewardAnswer(BaseModel):
    """One number a query, in their order, in each list."""

    model_config = _config(
        rewards=[0.731], scores=[0.731], extra_logs={"vanilla_reward": [0.731], "tokens": [24.0]}
    )

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]] = Field(
        description="vanilla_reward and tokens; of a run head and omega, too"
    )


class SlimeRequest(BaseModel):
    """slime: one sample."""

    model_config = _config(
        prompt=_PROMPT, response="Saturn, with 146 that have been confirmed.", label="Saturn"
    )

    prompt: str | list[dict[str, Any]] = Field(
        description="a text, which the response is joined to; or turns, for the chat template"
    )
    response: str
    label: Any = Field(default=None, description="of the data set; not looked at")


class ClassifyRequest(BaseModel):
    """vLLM's classify call with `input`, or SGLang's with `text`."""

    model_config = _config(model="reward", input=_TEXT, use_activation=False)

    input: str | Texts | Ids | Annotated[list[Ids], Field(max_length=MAX_SAMPLES)] | None = Field(
        default=None, description="texts, or token ids of the reward model's tokenizer"
    )
    text: str | Texts | None = None
    model: str | None = Field(default=None, description="comes back; this server has one")
    use_activation: bool | None = Field(
        default=None, description="rewards are raw: true is refused"
    )
    activation: bool | None = Field(default=None, description="its older name")


class ClassOut(BaseModel):
    """One text's reward, as vLLM gives the one class of a reward model."""

    index: int
    label: str = "LABEL_0"
    probs: list[float] = Field(description="the reward; no probability")
    num_classes: int = 1


class UsageOut(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class ClassifyAnswer(BaseModel):
    """As vLLM answers."""

    model_config = _config(
        id="classify-5f0c",
        object="list",
        created=1745383213,
        model="reward",
        data=[{"index": 0, "label": "LABEL_0", "probs": [0.731], "num_classes": 1}],
        usage={"prompt_tokens": 24, "total_tokens": 24, "completion_tokens": 0},
    )

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[ClassOut]
    usage: UsageOut


class EmbeddingsRequest(BaseModel):
    """The call by which SGLang gives the rewards of a reward model."""

    model_config = _config(model="reward", input=_TEXT)

    input: str | Texts | Ids | Annotated[list[Ids], Field(max_length=MAX_SAMPLES)]
    model: str | None = Field(default=None, description="comes back; this server has one")
    encoding_format: str = Field(
        default="float", description="float, or base64: float32, little-endian"
    )


class EmbeddingOut(BaseModel):
    """One text's reward, as the last and only number of a vector."""

    object: str = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsAnswer(BaseModel):
    """As SGLang answers."""

    model_config = _config(
        object="list",
        data=[{"object": "embedding", "index": 0, "embedding": [0.731]}],
        model="reward",
        usage={"prompt_tokens": 24, "total_tokens": 24, "completion_tokens": 0},
    )

    object: str = "list"
    data: list[EmbeddingOut]
    model: str
    usage: UsageOut


class VerifyRequest(BaseModel):
    """NeMo Gym: what was asked and what was answered, in the form of OpenAI's Responses API."""

    model_config = ConfigDict(
        extra="allow",
        protected_namespaces=(),
        json_schema_extra={
            "examples": [
                {
                    "responses_create_params": {
                        "input": [{"role": "user", "content": "Which planet has the most moons?"}]
                    },
                    "response": {
                        "output": [
                            {
                                "type": "message",
                                "role": "assistant",
                                "content": [{"type": "output_text", "text": "Saturn."}],
                            }
                        ]
                    },
                }
            ]
        },
    )

    responses_create_params: dict[str, Any]
    response: dict[str, Any]


class SeedSessionRequest(BaseModel):
    """NeMo Gym, before a rollout: whatever it says, nothing is kept of it."""

    model_config = _config(responses_create_params={"input": "Which planet has the most moons?"})
