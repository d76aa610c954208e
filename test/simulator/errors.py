"""HubSpot's error bodies: {status, message, correlationId, category, errors[], context{}}, every field optional."""

from __future__ import annotations

import json
import uuid
from typing import Any


class ControlError(Exception):
    """A request to the control API that makes no sense."""


class ApiError(Exception):
    """An error answer of the simulated API."""

    def __init__(self, status: int, message: str, category: str | None = "VALIDATION_ERROR", **extra: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(message, category, **extra)


def error_body(message: str, category: str | None, **extra: Any) -> dict[str, Any]:
    """The usual error object; a category of None leaves the field out."""
    body: dict[str, Any] = {"status": "error", "message": message, "correlationId": str(uuid.uuid4())}
    if category is not None:
        body["category"] = category
    body.update(extra)
    return body


def unauthorized() -> ApiError:
    """401 for a missing or wrong token."""
    message = (
        "Authentication credentials not found. This API supports OAuth 2.0 authentication and you can find more "
        "details at https://developers.hubspot.com/docs/methods/auth/oauth-overview"
    )
    return ApiError(401, message, "INVALID_AUTHENTICATION")


def missing_scopes(scope: str) -> ApiError:
    """403 naming the scope the token lacks."""
    detail = {
        "message": "One or more of the following scopes are required.",
        "context": {"requiredGranularScopes": [scope]},
    }
    message = "This app hasn't been granted all required scopes to make this call."
    return ApiError(403, message, "MISSING_SCOPES", errors=[detail])


def not_found(message: str = "resource not found") -> ApiError:
    """404; the category is the documented one, the wording is unverified."""
    return ApiError(404, message, "OBJECT_NOT_FOUND")


def invalid_properties(problems: list[dict[str, str]], portal_id: int) -> ApiError:
    """400 for property values HubSpot refuses; problems are {name, code, message}."""
    listed = [
        {
            "isValid": False,
            "message": problem["message"],
            "error": problem["code"],
            "name": problem["name"],
            "localizedErrorMessage": problem["message"],
            "portalId": portal_id,
        }
        for problem in problems
    ]
    described = json.dumps(listed, ensure_ascii=False, separators=(",", ":"))
    details = [_property_detail(problem["message"], problem["code"], problem["name"]) for problem in problems]
    return ApiError(400, f"Property values were not valid: {described}", errors=details)


def missing_required(message: str, code: str, names: list[str]) -> ApiError:
    """400 for properties that are left without a value they need."""
    details = [_property_detail(f"{name} is required", code, name) for name in names]
    return ApiError(400, message, errors=details)


def _property_detail(message: str, code: str, name: str) -> dict[str, Any]:
    return {"message": message, "code": code, "context": {"propertyName": [name]}}
