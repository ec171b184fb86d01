"""Run OpenRLHF's reward client and its merging of samples: URL, policy folder, prompts → JSON."""

import asyncio
import json
import sys
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

from tests.serve.adapters.trainer_clients.stub_modules import install_stub_modules

install_stub_modules("pylatexenc", "ray", "vllm")

from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator
from openrlhf.utils.agent import SingleTurnAgentExecutor
from transformers import AutoTokenizer


class ConstantPolicy:
    """Gives the same response to every prompt, in vLLM's format."""

    def __init__(self, ids: list[int]) -> None:
        self._completion = SimpleNamespace(token_ids=ids, finish_reason="stop", logprobs=None, text="")

    async def generate(self, _ids: list[int], _params: Any, **_: Any) -> Any:
        return SimpleNamespace(outputs=[self._completion])


async def main(url: str, folder: str, prompts: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    executor = SingleTurnAgentExecutor(url)
    params = SimpleNamespace(max_tokens=16, logprobs=None)
    policy = ConstantPolicy(tokenizer("quiet stone<|im_end|>", add_special_tokens=False)["input_ids"])
    outputs = await asyncio.gather(
        *(executor.execute(prompt, None, params, 256, tokenizer, policy) for prompt in prompts)
    )
    samples = [
        SamplesGenerator._process_response_into_experience(None, output, max_len=256) for output in outputs
    ]
    merged = Experience.concat_experiences(samples, pad_token_id=0)
    info = {name: value.flatten().tolist() for name, value in merged.info.items()}
    print(
        json.dumps(
            {
                "version": version("openrlhf"),
                "rewards": [output["reward"] for output in outputs],
                "info": info,
            }
        )
    )


asyncio.run(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
