"""What trainers send and expect, in their own forms; the sources are named in docs/trainers.md.

Unlike our own messages these let keys pass that they do not know: a trainer sends along what its
own server takes, and a later version more of it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from r2m_service.application.contract import MAX_SAMPLES, Whole

_PROMPT = "<|user|>\nWhich planet has the most moons?</s>\n<|assistant|>\n"
_TEXT = _PROMPT + "Saturn, with 146 that have been confirmed.</s>"

FLOAT32_MAX = 3.4028234663852886e38
"""Rewards are of this type."""

Texts = Annotated[list[str], Field(max_length=MAX_SAMPLES)]
Ids = list[Whole]
"""One text as token ids of the reward model's tokenizer."""


def _config(**example: Any) -> ConfigDict:
    return ConfigDict(
        extra="ignore", protected_namespaces=(), json_schema_extra={"examples": [example]}
    )


def _option(here: str, otherwise: str = "") -> Any:
    """An option of which one value alone, or none, says what happens here anyway."""
    mend = f"leave it out, or {otherwise}" if otherwise else "leave it out"
    return Field(default=None, description=f"{here}: {mend}")


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
        rewards=[0.731],
        scores=[0.731],
        extra_logs={"vanilla_reward": [0.731], "tokens": [24.0], "truncated": [0.0]},
    )

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]] = Field(
        description="vanilla_reward, tokens, and truncated, the tokens that were cut off; of a run "
        "head and omega, too"
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


_RAW = "rewards are raw, and no activation is applied"
_TEXTS_ALONE = "texts and token ids alone are scored"


class EngineOptions(BaseModel):
    """Options of vLLM and SGLang that change a reward, or the numbers of an answer.

    Each takes the value that asks for what happens here anyway; any other is refused, in the words
    of its description.
    """

    use_activation: Literal[False] | None = _option(_RAW, "send false")
    activation: Literal[False] | None = _option(_RAW, "send false")
    softmax: Literal[False] | None = _option(_RAW, "send false")
    normalize: Literal[False] | None = _option(_RAW, "send false")
    dimensions: Literal[1] | None = _option("a reward is one number", "send 1")
    truncate_prompt_tokens: None = _option(
        "a text is cut at the reward model's length, where `truncation` of the run says so"
    )
    padding: Literal["do_not_pad"] | None = _option("texts are not padded", "send do_not_pad")
    add_generation_prompt: Literal[False] | None = _option(
        "the last turn of messages is judged", "send false"
    )
    continue_final_message: Literal[False] | None = _option(
        "the last turn of messages is judged whole", "send false"
    )
    chat_template: None = _option("the reward model's own chat template is used")
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=0)] | None = _option(
        "the chat template gets messages alone", "send {}"
    )
    embed_dtype: Literal["float32"] | None = _option("numbers are float32", "send float32")
    endianness: Literal["native", "little"] | None = _option(
        "base64 is little-endian", "send little"
    )
    lora_path: None = _option("one reward model is served, without adapters")
    embed_overrides: None = _option(_TEXTS_ALONE)
    input_ids: None = _option("token ids are sent as `input`")
    input_embeds: None = _option(_TEXTS_ALONE)
    image_data: None = _option(_TEXTS_ALONE)
    audio_data: None = _option(_TEXTS_ALONE)
    video_data: None = _option(_TEXTS_ALONE)

    @field_validator("*", mode="wrap")
    @classmethod
    def _refused_with_the_mend(
        cls, value: object, handler: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> object:
        option = EngineOptions.model_fields.get(info.field_name or "")
        if option is None:
            return handler(value)
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(option.description) from None


class EngineRequest(EngineOptions):
    """What the calls of vLLM and SGLang have in common."""

    input: str | Texts | Ids | Annotated[list[Ids], Field(max_length=MAX_SAMPLES)] | None = Field(
        default=None, description="texts, or token ids of the reward model's tokenizer"
    )
    messages: list[dict[str, Any]] | None = Field(
        default=None,
        description="in place of input: one conversation, for the chat template; its last turn, "
        "the assistant's, is judged",
    )
    model: str | None = Field(default=None, description="comes back; this server has one")
    add_special_tokens: bool | None = Field(
        default=None,
        description="false: the tokenizer adds none to texts; default: its own, but for a BOS that "
        "a text begins with. A chat template writes them itself: true is refused with messages",
    )


class ClassifyRequest(EngineRequest):
    """vLLM's classify call with `input` or `messages`, or SGLang's with `text`."""

    model_config = _config(model="reward", input=_TEXT, use_activation=False)

    text: str | Texts | None = None


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


class EmbeddingsRequest(EngineRequest):
    """The call by which SGLang gives the rewards of a reward model."""

    model_config = _config(model="reward", input=_TEXT)

    encoding_format: Literal["float", "base64"] = Field(
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


class LlamaFactoryRequest(BaseModel):
    """LLaMA-Factory: prompt and response in one text each, whatever the name of the field."""

    model_config = _config(model="model", messages=[_TEXT])

    messages: Texts = Field(description="texts, decoded from a policy's tokens")
    model: str | None = Field(default=None, description="comes back; this server has one")
    max_length: None = Field(default=None, description="the reward model's: leave it out")


class LlamaFactoryAnswer(BaseModel):
    """One number a text, in their order."""

    model_config = _config(
        id="scoreval-5f0c", object="score.evaluation", model="model", scores=[0.731]
    )

    id: str
    object: Literal["score.evaluation"] = "score.evaluation"
    model: str
    scores: list[float]


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


class VerifiedRollout(BaseModel):
    """Of what /verify answered, NeMo Gym's agent keeps this and numbers of its own."""

    model_config = ConfigDict(extra="ignore")

    reward: float = Field(ge=-FLOAT32_MAX, le=FLOAT32_MAX)
    task: int = Field(default=0, alias="_ng_task_index", description="which task it was of")


class AggregateRequest(BaseModel):
    """NeMo Gym, after its rollouts."""

    model_config = _config(
        verify_responses=[
            {"_ng_task_index": 0, "_ng_rollout_index": 0, "reward": 0.25},
            {"_ng_task_index": 0, "_ng_rollout_index": 1, "reward": 0.75},
        ]
    )

    verify_responses: list[VerifiedRollout]


class AggregateAnswer(BaseModel):
    """Statistics of the rewards, under the names that NeMo Gym's own servers give them.

    Of one rollout alone there is no `std/reward`.
    """

    model_config = _config(
        group_level_metrics=[
            {
                "_ng_task_index": 0,
                "mean/reward": 0.5,
                "max/reward": 0.75,
                "min/reward": 0.25,
                "median/reward": 0.5,
                "std/reward": 0.354,
            }
        ],
        agent_metrics={"mean/reward": 0.5},
        key_metrics={"mean/reward": 0.5},
    )

    group_level_metrics: list[dict[str, int | float]]
    agent_metrics: dict[str, float]
    key_metrics: dict[str, float]


class ModelOut(BaseModel):
    """A model as OpenAI lists it, with its length as vLLM adds it."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="when this server was started, in seconds since 1970")
    owned_by: str = "r2m"
    max_model_len: int = Field(description="tokens that a text may have")


class ModelList(BaseModel):
    """The reward model, in OpenAI's form."""

    model_config = _config(
        object="list",
        data=[
            {
                "id": "reward",
                "object": "model",
                "created": 1745383213,
                "owned_by": "r2m",
                "max_model_len": 4096,
            }
        ],
    )

    object: Literal["list"] = "list"
    data: list[ModelOut]
