"""Run LLaMA-Factory's own get_rewards_from_server: URL, texts → JSON."""

import importlib.util
import json
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

found = importlib.util.find_spec("llamafactory")
assert found is not None
assert found.origin is not None
root = Path(found.origin).parent
for name in ("llamafactory.train", "llamafactory.train.ppo"):
    package = ModuleType(name)
    package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
    sys.modules[name] = package

from llamafactory.train.ppo.ppo_utils import get_rewards_from_server

rewards = get_rewards_from_server(sys.argv[1], json.loads(sys.argv[2]))
print(json.dumps({"version": version("llamafactory"), "rewards": rewards.tolist()}))
