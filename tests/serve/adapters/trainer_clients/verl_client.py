"""Load and call our reward function as verl does: URL, prompt, responses → JSON."""

import json
import sys
from importlib.metadata import version
from types import SimpleNamespace

from tests.serve.adapters.trainer_clients.stub_modules import install_stub_modules

install_stub_modules("ray", "tensordict", "omegaconf")

from verl.trainer.ppo.reward import get_custom_reward_fn

config = {
    "path": "pkg://sparserm_client.trainers",
    "name": "compute_score",
    "reward_kwargs": {"url": sys.argv[1]},
}
compute = get_custom_reward_fn(SimpleNamespace(reward={"custom_reward_function": config}))
scores = [
    compute(data_source="x", solution_str=response, ground_truth="", extra_info={"prompt": sys.argv[2]})
    for response in json.loads(sys.argv[3])
]
print(json.dumps({"version": version("verl"), "rewards": [score["score"] for score in scores]}))
