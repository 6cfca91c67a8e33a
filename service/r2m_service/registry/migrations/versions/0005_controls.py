"""Settings get `controls`; runs made before have none.

Revision ID: 0005
Revises: 0004
Create Date: 2026-11-26
"""

from __future__ import annotations

from typing import Any

from r2m_service.registry.rewriting import rewrite_settings

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    rewrite_settings(_with_controls)


def downgrade() -> None:
    rewrite_settings(_without_controls)


def _with_controls(method: dict[str, Any], *, created: bool) -> dict[str, Any]:
    return {**method, "controls": []}


def _without_controls(method: dict[str, Any], *, created: bool) -> dict[str, Any]:
    return {key: value for key, value in method.items() if key != "controls"}
