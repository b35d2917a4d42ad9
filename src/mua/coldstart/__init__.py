"""Verified conversations to learn from. Here: who plays them, so that a configuration can be read without
anything heavy."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from ..endpoint import EndpointSettings


class TeacherEndpoint(EndpointSettings):
    """An endpoint that plays a side: its attempts at one task should differ."""

    temperature: float | None = Field(default=0.7, ge=0, description="null leaves it to the server.")


class TeacherSettings(BaseModel):
    """Models behind endpoints that play the cold start's conversations."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    agent: TeacherEndpoint = Field(description="Who plays the agent.")
    user: TeacherEndpoint | None = Field(
        default=None, description="Who plays the user; null: the domain's agenda user."
    )
    judge: EndpointSettings | None = Field(
        default=None, description="Who reads what passed verification, and may veto it; null: nobody."
    )
    attempts: int = Field(
        default=3, ge=1, description="Conversations played of one task, until one of them is kept."
    )
    tasks: int | None = Field(
        default=None, ge=1, description="Most tasks tried of one domain; null: all, until enough is kept."
    )
    concurrency: int = Field(default=16, ge=1, description="Most conversations at once.")
