"""POST /verify and /seed_session of a NeMo-Gym resources server."""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from app.errors import InvalidInput, SparseRMError
from app.serve.adapters.chat_markup import EMPTY_RESPONSE
from app.serve.adapters.common import AdapterResult, make_adapter_route_class, score_items
from app.serve.api.error_handlers import build_error_body
from app.types import Item, Message

ROLE_ALIASES = {"developer": "system"}


class NemoGymPolicyInput(BaseModel):
    """The policy's input: text, or messages in OpenAI's Responses format."""

    model_config = ConfigDict(extra="allow")
    input: str | Annotated[list[dict[str, Any]], Field(min_length=1)]


class NemoGymPolicyOutput(BaseModel):
    """The policy's output items. Only messages are scored."""

    model_config = ConfigDict(extra="allow")
    output: list[dict[str, Any]]


class NemoGymVerifyRequest(BaseModel):
    """Request with a rollout; the response repeats all of its fields beside the reward."""

    model_config = ConfigDict(extra="allow")
    responses_create_params: NemoGymPolicyInput
    response: NemoGymPolicyOutput


def parse_request(_: Request, body: NemoGymVerifyRequest) -> list[Item]:
    """Return the item of the input's messages and of all text in the output's messages."""
    policy_input = body.responses_create_params.input
    turns = [{"role": "user", "content": policy_input}] if isinstance(policy_input, str) else policy_input
    messages = [Message(_message_role(turn), _message_text(turn)) for turn in turns if "content" in turn]
    if not messages:
        raise InvalidInput("there is no message in it", "responses_create_params.input", "empty")
    texts = [_message_text(output) for output in body.response.output if output.get("type") == "message"]
    return [Item(tuple(messages), "\n".join(texts) or EMPTY_RESPONSE)]


def build_response(body: NemoGymVerifyRequest, result: AdapterResult) -> dict[str, Any]:
    """Return the request's fields, the reward, and the reward by model."""
    [reward] = result.rewards
    return {**body.model_dump(), "reward": reward, "reward_components": {result.model: reward}}


def build_error(error: SparseRMError, _: Any) -> tuple[int, Any]:
    """Return an error in OpenAI's format, without a reward."""
    return error.status, build_error_body(error)


def _message_role(message: dict[str, Any]) -> str:
    role = str(message.get("role", "user"))
    return ROLE_ALIASES.get(role, role)


def _message_text(message: dict[str, Any]) -> str:
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content or ""}]
    return "".join(str(part["text"]) for part in parts if isinstance(part, dict) and "text" in part)


router = APIRouter(route_class=make_adapter_route_class(build_error), tags=["NeMo-Gym"])


@router.post("/verify", response_model=dict[str, Any], operation_id="nemo_gym_verify")
async def verify(body: NemoGymVerifyRequest, request: Request) -> Response:
    """Return the reward of one rollout."""
    result = await score_items(request, parse_request(request, body), None)
    return JSONResponse(build_response(body, result))


@router.post("/seed_session", operation_id="nemo_gym_seed_session")
async def seed_session() -> dict[str, Any]:
    """Do nothing: sessions have no state."""
    return {}
