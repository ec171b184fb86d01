"""From a plan and settings to a run: the data, the policy, and rewards from here or from a server."""

from contextlib import AbstractContextManager
from pathlib import Path

from app.align import loop, metrics, reward_hacking, reward_scoring
from app.align.artifacts import JsonRow
from app.align.config import AlignmentConfig
from app.align.loop import Parts, Refresh
from app.align.policy import model as policy
from app.align.reward_scoring import Scorer
from app.backbone.model_sources import Progress
from app.data import pairs
from app.errors import DataError
from app.offline.local import open_local_scorer
from app.offline.remote import open_remote_scorer
from app.offline.scorers import RowScorer, ScoringRequest
from app.settings import Settings


def run(
    plan: AlignmentConfig,
    folder: Path,
    settings: Settings,
    report: Progress,
    *,
    refresh: Refresh,
    url: str | None = None,
    key: str | None = None,
) -> JsonRow:
    """Align a policy, or go on with it, in a folder."""
    parts = _parts(plan, settings, report, refresh=refresh, url=url, key=key)
    facts = plan.model_dump() | {
        "data": [pairs.source_sha256(source) for source in (plan.prompts, plan.test)],
        "reward from": "a server" if url else "this process",
    }
    return loop.Loop(plan, parts, folder, report).run(facts)


def scorers(
    plan: AlignmentConfig, settings: Settings, report: Progress, url: str | None, key: str | None
) -> dict[str, Scorer]:
    """The reward that is optimised, and the one that only watches if there is one."""

    def scorer(model: str) -> Scorer:
        question = ScoringRequest(model, top_k=0)

        def call() -> AbstractContextManager[RowScorer]:
            return (
                open_remote_scorer(question, url, key)
                if url
                else open_local_scorer(question, settings, report)
            )

        return reward_scoring.scorer(call)

    named = {reward_hacking.REWARD: plan.model, reward_hacking.HELD_OUT: plan.held_out}
    return {name: scorer(model) for name, model in named.items() if model}


def _parts(
    plan: AlignmentConfig,
    settings: Settings,
    report: Progress,
    *,
    refresh: Refresh,
    url: str | None,
    key: str | None,
) -> Parts:
    test = pairs.read_pairs(plan.test)
    exam = metrics.exam(test, plan.compared, plan.answered)
    known = {pair.messages for pair in test}
    taught = pairs.read_pairs(plan.prompts) if plan.labels == "data" else []
    prompts = [turns for turns in pairs.read_prompts(plan.prompts) if turns not in known]
    if not prompts:
        raise DataError(f"{plan.prompts} holds no prompt that {plan.test} does not hold, too")
    found = scorers(plan, settings, report, url, key)
    start = policy.load_policy(plan.policy, settings, plan.max_tokens, report)
    return Parts(start, prompts, taught, exam, loop.filtering(found[reward_hacking.REWARD]), found, refresh)
