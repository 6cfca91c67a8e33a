"""verl's adapters on verl itself, as far as a CPU goes: a real worker, engine and reward loop.

Not a dependency: in an environment of its own, `pip install torch==2.13.0 'verl[verl-core]==0.9.1'
pytest pytest-timeout hypothesis httpx grpcio`, and this file alone. What stands in for a GPU is
`Cpu`, and nothing else of verl is changed. FSDP2 shards over gloo; FSDP1 asks for a GPU.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

try:
    # The version alone: importing verl takes seconds, and warns of what is not installed.
    import importlib.metadata

    VERSION = importlib.metadata.version("verl")
except importlib.metadata.PackageNotFoundError:
    VERSION = "none"

pytestmark = [
    pytest.mark.skipif(
        not VERSION.startswith("0.9."), reason=f"verl 0.9 is not installed ({VERSION})"
    ),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(600),
]

WIDTH = 16
PROMPTS = [[1, 40, 41], [1, 40, 41], [1, 50], [1, 50]]
RESPONSES = [[42, 43], [44, 45, 46, 2], [51], [52, 53, 2]]
ROLLOUTS = [prompt + response for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]


@pytest.fixture(scope="module")
def verl(tmp_path_factory):
    """verl on a CPU, with one process of its group."""
    import torch
    import verl
    from verl.plugin.platform import set_platform
    from verl.plugin.platform.platform_cuda import PlatformCUDA

    class Cpu(PlatformCUDA):
        device_name = "cpu"
        device_module = SimpleNamespace(
            **dict.fromkeys(("max_memory_allocated", "max_memory_reserved"), lambda: 0),
            **dict.fromkeys(("memory_allocated", "memory_reserved"), lambda: 0),
            mem_get_info=lambda: (1, 1),
            empty_cache=lambda: None,
            set_device=lambda index: None,
            synchronize=lambda: None,
            is_available=lambda: False,
            get_device_name=lambda: "cpu",
        )

        def current_device(self):
            return torch.device("cpu")

        def communication_backend_name(self):
            return "gloo"

        def is_available(self):
            return False

    set_platform(Cpu())
    torch.set_num_threads(1)
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=0, world_size=1
    )
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "VERL_ENGINE_DEVICE": "cuda"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (alone | group).items():
            patch.setenv(name, value)
        yield verl
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A folder with a tiny policy and a tokenizer of letters."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("policy")
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=98, num_hidden_layers=2, num_key_value_heads=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, max_position_embeddings=256, **sizes,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words = ["<pad>", "<s>", "</s>", *map(chr, range(32, 127))]
    letters = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, words[0]))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=letters, **special).save_pretrained(folder)
    return folder


def config_of(policy, *overrides):
    """verl's own configuration, as its entry point composes it."""
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose(
            "ppo_trainer",
            overrides=[
                f"actor_rollout_ref.model.path={policy}",
                "actor_rollout_ref.rollout.name=vllm",
                "actor_rollout_ref.actor.strategy=fsdp2",
                "+actor_rollout_ref.model.override_config.attn_implementation=eager",
                "actor_rollout_ref.actor.use_torch_compile=False",
                "actor_rollout_ref.actor.fsdp_config.use_torch_compile=False",
                "+actor_rollout_ref.actor.fsdp_config.mixed_precision={param_dtype:fp32}",
                "actor_rollout_ref.actor.optim.lr=0.05",
                "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
                "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=2",
                "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=10",
                "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=10",
                *overrides,
            ],
        )


def batch(**settings):
    """A rank's rollouts, as verl's TransferQueue gives them to a worker."""
    import torch
    from verl.utils import tensordict_utils

    def jagged(rows, dtype=torch.int64):
        each = [torch.tensor(row, dtype=dtype) for row in rows]
        return torch.nested.as_nested_tensor(each, layout=torch.jagged)

    ones = [[1] * len(row) for row in RESPONSES]
    fields = {
        "prompts": jagged(PROMPTS),
        "responses": jagged(RESPONSES),
        "input_ids": jagged(ROLLOUTS),
        "position_ids": jagged([list(range(len(row))) for row in ROLLOUTS]),
        "response_mask": jagged(ones),
        "loss_mask": jagged(ones),
        "old_log_probs": jagged([[-4.0] * len(row) for row in RESPONSES], torch.float32),
        "advantages": jagged([[1.0] * len(row) for row in RESPONSES], torch.float32),
        "rollout_log_probs": jagged([[-4.0] * len(row) for row in RESPONSES], torch.float32),
        "rm_scores": jagged([[0.0] * len(row) for row in RESPONSES], torch.float32),
        "multi_modal_inputs": [{}] * len(ROLLOUTS),
        "uid": ["a", "a", "b", "b"],
    }
    return tensordict_utils.get_tensordict(fields, {"temperature": 1.0, **settings})


UPDATE = {
    "calculate_entropy": False, "global_batch_size": 4, "mini_batch_size": 4, "epochs": 1,
    "seed": 1, "dataloader_kwargs": {"shuffle": True},
}  # fmt: skip


@pytest.fixture
def fake():
    """A server whose rewards are the responses' lengths."""
    from r2m_client.testing import FakeServer

    def length(sample, head):
        return float(len(sample.response or sample.messages[-1]["content"]))

    server = FakeServer(length)
    with server.client() as client:
        client.create_run("run", policy_hidden_size=WIDTH, method={"width": 8})
    return server


def states_of(model, tokens):
    """By transformers' own forward: the last hidden states of one sequence alone."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[-1][0]


def policy_now(policy, worker):
    """transformers' model with the weights that verl's engine has, whole."""
    import torch
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(policy, dtype=torch.float32)
    options = StateDictOptions(full_state_dict=True)
    model.load_state_dict(get_model_state_dict(worker.actor.engine.module, options=options))
    return model


@pytest.mark.parametrize(
    ("packed", "dynamic"), [(True, True), (True, False), (False, False)],
    ids=["packed, dynamic batches", "packed", "padded"],
)  # fmt: skip
def test_verl_s_worker_scores_and_aligns_with_its_policy_s_states(
    verl, policy, fake, packed, dynamic
):
    import torch

    from r2m_client.integrations import verl_worker
    from r2m_client.integrations._ranks import Alone
    from r2m_client.integrations._rollouts import RunFeedback, name_of

    seen = {}

    class Watched(RunFeedback):
        def align(self, rollouts):
            seen.update(self._states)
            return super().align(rollouts)

    config = config_of(
        policy,
        f"actor_rollout_ref.model.use_remove_padding={packed}",
        f"actor_rollout_ref.actor.use_dynamic_bsz={dynamic}",
    )
    worker = verl_worker.FeedbackWorker(config.actor_rollout_ref, role="actor")
    worker.init_model()
    feedback = Watched(fake.client(retries=0), "run", Alone())
    worker.r2m_open = lambda: feedback
    before = policy_now(policy, worker)

    output = worker.compute_log_prob(batch(calculate_entropy=True, compute_loss=False))
    assert {"log_probs", "entropy", "rm_scores"} <= set(output.keys())
    (call,) = [one for one in fake.calls if one.method == "score"][:1]
    rewards = [float(len(one["response"])) for one in call.request["samples"]]
    assert [row.tolist() for row in output["rm_scores"].unbind()] == [
        [0.0] * (len(one) - 1) + [reward] for one, reward in zip(RESPONSES, rewards, strict=True)
    ]
    for tokens in ROLLOUTS:
        kept = feedback._states[name_of(tokens)]
        torch.testing.assert_close(kept, states_of(before, tokens), atol=1e-5, rtol=1e-5)

    metrics = worker.update_actor(batch(**UPDATE))["metrics"]
    assert (metrics["r2m/head"], metrics["r2m/groups"]) == (1.0, 2.0)
    assert "grad_norm" in metrics
    after = policy_now(policy, worker)
    for tokens in ROLLOUTS:
        new, old = states_of(after, tokens), states_of(before, tokens)
        assert (new - old).abs().max() > 0.01, "the policy has learned"
        torch.testing.assert_close(seen[name_of(tokens)], new, atol=1e-5, rtol=1e-5)
    assert feedback._states == {}


QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]
FUNCTION = (
    "reward.custom_reward_function.path=pkg://r2m_client.integrations.verl",
    "reward.custom_reward_function.name=compute_score",
    "+reward.custom_reward_function.reward_kwargs.url=http://one",
    "+reward.custom_reward_function.reward_kwargs.run=texts",
)
MANAGER = (
    "reward.reward_manager.source=importlib",
    "reward.reward_manager.module.path=pkg://r2m_client.integrations.verl",
    "reward.reward_manager.name=RewardManager",
)


@pytest.fixture
def texts(fake, monkeypatch):
    """A run for texts alone, on a server that verl's functions know by its address."""
    from r2m_client.integrations import verl as functions

    with fake.client() as client:
        client.create_run("texts", feedback="backbone", method={"width": 8})
    opens = fake.async_client
    monkeypatch.setattr(functions.clients, "opens", lambda address: opens(retries=0))
    monkeypatch.setenv("R2M_URL", "http://one")
    monkeypatch.setenv("R2M_RUN", "texts")
    return fake


def scored(config, outputs, **rollout):
    """What verl's agent loop makes of a rollout's outputs, by its reward loop's worker."""
    from verl.experimental.agent_loop.agent_loop import (
        AgentLoopMetrics,
        AgentLoopOutput,
        AgentLoopWorker,
    )
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    async def score():
        worker = RewardLoopWorker(config)
        handle = SimpleNamespace(compute_score=SimpleNamespace(remote=worker.compute_score))
        loop = object.__new__(AgentLoopWorker)
        loop.__dict__.update(
            processor=None, reward_loop_worker_handles=[handle], mm_processor_kwargs={}
        )
        each = [
            AgentLoopOutput(
                prompt_ids=prompt, response_ids=response, response_mask=[1] * len(response),
                metrics=AgentLoopMetrics(), num_turns=2,
            )
            for prompt, response in outputs
        ]  # fmt: skip
        kwargs = {
            "raw_prompt": QUESTION, "data_source": "sums", "reward_model": {"ground_truth": "4"},
            "extra_info": {"question": "What is 2 + 2?"}, "uid": "a", **rollout,
        }  # fmt: skip
        await AgentLoopWorker._compute_score(loop, each, kwargs=kwargs)
        return each[-1]

    return asyncio.run(score())


@pytest.mark.parametrize("how", [FUNCTION, MANAGER], ids=["function", "manager"])
def test_verl_s_reward_loop_gets_a_reward_and_numbers_for_its_logs(verl, policy, texts, how):
    output = scored(config_of(policy, *how), [([1, 40, 41], [42, 43, 2])])
    (call,) = [one for one in texts.calls if one.method == "score"]
    (sample,) = call.request["samples"]
    assert call.request["run"] == "texts"
    asked = sample["messages"] if sample.get("messages") else sample
    assert "What is 2 + 2?" in str(asked)
    assert isinstance(output.reward_score, float)
    numbers = output.extra_fields["reward_extra_info"]
    assert {"vanilla_reward", "tokens", "head", "omega"} <= set(numbers)
    assert all(isinstance(value, float) for value in numbers.values())


def test_verl_s_last_output_of_several_is_read_whole_and_alone(verl, policy, texts):
    # Its batch pads prompt and response together: the mask does not say where responses end.
    outputs = [([1, 40, 41, 42, 43], [50, 51, 52]), ([1, *range(40, 49)], [60, 61])]
    scored(config_of(policy, *MANAGER), outputs)
    sample = texts.calls[-1].request["samples"][0]
    assert sample["messages"][-1]["content"].split() == [chr(60 + 29), chr(61 + 29)]
    scored(config_of(policy, *MANAGER), list(reversed(outputs)))
    sample = texts.calls[-1].request["samples"][0]
    assert sample["messages"][-1]["content"].split() == [chr(one + 29) for one in (50, 51, 52)]


@pytest.mark.parametrize("how", [FUNCTION, MANAGER], ids=["function", "manager"])
def test_a_reward_that_cannot_be_had_raises_through_verl_s_reward_loop(verl, policy, texts, how):
    from r2m_client import R2MError

    texts.fail_next("text_too_long", times=2)
    with pytest.raises(R2MError, match="text_too_long"):
        scored(config_of(policy, *how), [([1, 40, 41], [42, 43, 2])])


@pytest.fixture
def queue(verl, monkeypatch):
    """verl's TransferQueue, on a Ray of its own."""
    import ray
    import transfer_queue

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    # Its actors ask for a logical CPU each, and wait where there is none.
    ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False)
    transfer_queue.init()
    yield transfer_queue
    transfer_queue.close()
    ray.shutdown()


def test_verl_s_trainer_takes_advantages_of_the_run_s_rewards(verl, policy, fake, queue):
    from transfer_queue import KVBatchMeta
    from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size

    from r2m_client.integrations import verl_worker
    from r2m_client.integrations._ranks import Alone
    from r2m_client.integrations._rollouts import RunFeedback

    config = config_of(
        policy,
        "actor_rollout_ref.model.use_remove_padding=True",
        "actor_rollout_ref.actor.ppo_mini_batch_size=1",
        "actor_rollout_ref.rollout.n=2",
        "algorithm.adv_estimator=grpo",
        "algorithm.norm_adv_by_std_in_grpo=False",
    )
    worker = verl_worker.FeedbackWorker(config.actor_rollout_ref, role="actor")
    worker.init_model()
    worker.r2m_open = lambda: RunFeedback(fake.client(retries=0), "run", Alone())
    trainer = object.__new__(verl_worker.FeedbackTrainer)
    trainer.config, trainer.actor_rollout_wg = config, worker

    keys = ["a_0_0", "a_1_0", "b_0_0", "b_1_0"]
    tags = [{"seq_len": len(one)} for one in ROLLOUTS]
    rollouts = batch().exclude("old_log_probs", "advantages", "temperature")
    queue.kv_batch_put(keys=keys, partition_id="train", fields=rollouts, tags=tags)
    given = KVBatchMeta(keys=keys, tags=tags, partition_id="train")
    # As its trainer fills a batch up: with two samples that are no rollouts.
    given, metrics = upsample_batch_to_divisible_size(given, 6, eos_token_id=2), {}
    given = trainer._compute_old_log_prob(given, metrics)
    given = trainer._compute_advantage(given, metrics)
    trainer._update_actor(given, metrics)

    sent = next(one for one in fake.calls if one.method == "score").request["samples"]
    first, second, third, fourth = (len(one["response"]) for one in sent)
    half, other = (first - second) / 2, (third - fourth) / 2
    data = queue.kv_batch_get(keys=keys, partition_id="train", select_fields=["advantages"])
    starts = [row[0].item() for row in data["advantages"].unbind()]
    assert starts == pytest.approx([half, -half, other, -other])
    assert metrics["actor/r2m/head"] == 1.0
    assert metrics["actor/r2m/groups"] == 2.0
