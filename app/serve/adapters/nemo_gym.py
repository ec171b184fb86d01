"""NeMo-Gym's resources server: POST /verify and /seed_session."""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from app.errors import InvalidInput, SparseRMError
from app.serve.adapters.chat_markup import EMPTY_RESPONSE
from app.serve.adapters.common import AdapterResult, adapter_route_class, score_items
from app.serve.api.error_handlers import error_body
from app.types import Item, Message

ROLE_ALIASES = {"developer": "system"}


class NemoGymPolicyInput(BaseModel):
    """What the policy was asked: text, or turns in OpenAI's Responses format."""

    model_config = ConfigDict(extra="allow")
    input: str | Annotated[list[dict[str, Any]], Field(min_length=1)]


class NemoGymPolicyOutput(BaseModel):
    """What it answered: items, of which the messages count."""

    model_config = ConfigDict(extra="allow")
    output: list[dict[str, Any]]


class NemoGymVerifyRequest(BaseModel):
    """A rollout; everything in it is sent back beside the reward."""

    model_config = ConfigDict(extra="allow")
    responses_create_params: NemoGymPolicyInput
    response: NemoGymPolicyOutput


def parse_request(body: NemoGymVerifyRequest) -> Item:
    """The turns that were asked, and all text of the answer."""
    asked = body.responses_create_params.input
    turns = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    messages = [Message(_role(turn), _text(turn)) for turn in turns if "content" in turn]
    if not messages:
        raise InvalidInput("no message in it", "responses_create_params.input", "empty")
    said = [_text(item) for item in body.response.output if item.get("type") == "message"]
    return Item(tuple(messages), "\n".join(said) or EMPTY_RESPONSE)


def build_response(body: NemoGymVerifyRequest, heard: AdapterResult) -> dict[str, Any]:
    """The request, the reward and, for each model, its part."""
    [reward] = heard.rewards
    return {**body.model_dump(), "reward": reward, "reward_components": {heard.model: reward}}


def error_response(error: SparseRMError, _body: Any) -> tuple[int, Any]:
    """An error that nobody can take for a reward."""
    return error.status, error_body(error)


def _role(turn: dict[str, Any]) -> str:
    role = str(turn.get("role", "user"))
    return ROLE_ALIASES.get(role, role)


def _text(turn: dict[str, Any]) -> str:
    content = turn.get("content")
    parts = content if isinstance(content, list) else [{"text": content or ""}]
    return "".join(str(part["text"]) for part in parts if isinstance(part, dict) and "text" in part)


router = APIRouter(route_class=adapter_route_class(error_response), tags=["NeMo-Gym"])


@router.post("/verify", response_model=dict[str, Any], operation_id="nemo_gym_verify")
async def verify(body: NemoGymVerifyRequest, request: Request) -> Response:
    """The reward of one rollout."""
    return JSONResponse(build_response(body, await score_items(request, [parse_request(body)], None)))


@router.post("/seed_session", operation_id="nemo_gym_seed_session")
async def seed_session() -> dict[str, Any]:
    """Nothing to prepare."""
    return {}
