"""Requests and errors in the shape of OpenAI's API.

Source: https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

ONE_OR_MORE = BeforeValidator(lambda value: [value] if isinstance(value, str) else value,
                              json_schema_input_type=str | list[str])
"""Makes a list of a single string, so that an error names one type."""


class TextFormat(BaseModel):
    """The one format of answers: text."""

    type: Literal["text"]


class Options(BaseModel):
    """Sampling parameters of a request; unknown fields, which clients send, are ignored."""

    model_config = ConfigDict(allow_inf_nan=False)
    model: str = Field(max_length=256)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.8, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(50, ge=1)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    stop: Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=4), ONE_OR_MORE] = []
    seed: int | None = None
    n: int = Field(1, ge=1, le=8)
    stream: bool = False
    stream_options: dict[str, bool] | None = None
    # What can't be honoured may come with the value that asks for nothing.
    presence_penalty: float | None = Field(None, ge=0, le=0)
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    logit_bias: dict[str, float] | None = Field(None, max_length=0)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, fields: Any) -> Any:
        """A null, which clients send for None, stands for the field's default; that of top_k keeps all tokens."""
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None or name == "top_k"}


class CompletionRequest(Options):
    """Text to continue."""

    prompt: Annotated[list[str], Field(min_length=1), ONE_OR_MORE]
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: None = None
    logprobs: None = None    # a number, and 0 asks for those of the text


class Part(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    @property
    def plain(self) -> dict[str, str]:
        """Role and text."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(Options):
    """A conversation to answer."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[Any] | None = Field(None, max_length=0)
    functions: list[Any] | None = Field(None, max_length=0)
    response_format: TextFormat | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=0)


class Failure(Exception):
    """An error in the API's own shape."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The API's error object; a lone surrogate, which UTF-8 can't write, becomes a question mark."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        message = self.message.encode("utf-8", "replace").decode()
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> Response:
        """The error as a response."""
        headers = {503: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(self.status)
        return JSONResponse(self.body, self.status, headers)
