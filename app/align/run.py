"""Sets up and runs an alignment: reads the data, loads the policy, and opens the reward models."""

from contextlib import AbstractContextManager
from pathlib import Path

from app.align import metrics, reward_functions, reward_hacking
from app.align.artifacts import JsonRow
from app.align.config import AlignmentConfig
from app.align.loop import AlignmentInputs, AlignmentLoop, RoundCallback, make_margin_function
from app.align.policy.model import load_policy
from app.align.reward_functions import RewardFunction
from app.data import pairs
from app.errors import DataError
from app.offline.local import open_local_scorer
from app.offline.remote import open_remote_scorer
from app.offline.scorers import RowScorer, ScoringRequest
from app.settings import Settings
from app.types import Progress


def run_alignment(
    config: AlignmentConfig,
    folder: Path,
    settings: Settings,
    progress: Progress,
    *,
    on_round_end: RoundCallback,
    url: str | None = None,
    key: str | None = None,
) -> JsonRow:
    """Align a policy, or resume the run in the folder; return the report.

    Rewards come from the server at `url`, or from an engine in this process without one.
    """
    inputs = _load_inputs(config, settings, progress, on_round_end=on_round_end, url=url, key=key)
    recorded = config.model_dump() | {
        "data": [pairs.source_sha256(source) for source in (config.prompts, config.test)],
        "reward from": "a server" if url else "this process",
    }
    return AlignmentLoop(config, inputs, folder, progress).run(recorded)


def make_reward_functions(
    config: AlignmentConfig, settings: Settings, progress: Progress, url: str | None, key: str | None
) -> dict[str, RewardFunction]:
    """Return the optimised reward and, if configured, the held-out one, by their names in the metrics."""

    def make(model: str) -> RewardFunction:
        request = ScoringRequest(model, top_k=0)

        def open_scorer() -> AbstractContextManager[RowScorer]:
            if url:
                return open_remote_scorer(request, url, key)
            return open_local_scorer(request, settings, progress)

        return reward_functions.make_reward_function(open_scorer)

    models = {reward_hacking.REWARD: config.model, reward_hacking.HELD_OUT: config.held_out}
    return {name: make(model) for name, model in models.items() if model}


def _load_inputs(
    config: AlignmentConfig,
    settings: Settings,
    progress: Progress,
    *,
    on_round_end: RoundCallback,
    url: str | None,
    key: str | None,
) -> AlignmentInputs:
    test_pairs = pairs.read_pairs(config.test)
    test_prompts = {pair.messages for pair in test_pairs}
    prompts = [prompt for prompt in pairs.read_prompts(config.prompts) if prompt not in test_prompts]
    if not prompts:
        raise DataError(f"every prompt of {config.prompts} is also in {config.test}; use other test pairs")
    rewards = make_reward_functions(config, settings, progress, url, key)
    return AlignmentInputs(
        initial_policy=load_policy(config.policy, settings, config.max_tokens, progress),
        prompts=prompts,
        pairs=pairs.read_pairs(config.prompts) if config.labels == "data" else [],
        evaluation=metrics.build_evaluation_set(test_pairs, config.compared, config.answered),
        compute_margins=make_margin_function(rewards[reward_hacking.REWARD]),
        reward_functions=rewards,
        on_round_end=on_round_end,
    )
