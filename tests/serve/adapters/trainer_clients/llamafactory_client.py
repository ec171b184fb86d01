"""Run LLaMA-Factory's get_rewards_from_server: URL, texts → JSON."""

import importlib.util
import json
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

spec = importlib.util.find_spec("llamafactory")
assert spec is not None
assert spec.origin is not None
root = Path(spec.origin).parent
for name in ("llamafactory.train", "llamafactory.train.ppo"):
    package = ModuleType(name)
    package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
    sys.modules[name] = package

from llamafactory.train.ppo.ppo_utils import get_rewards_from_server

rewards = get_rewards_from_server(sys.argv[1], json.loads(sys.argv[2]))
print(json.dumps({"version": version("llamafactory"), "rewards": rewards.tolist()}))
