"""Owners of the account: users and queues, some of them archived."""

from __future__ import annotations

from typing import Any

from clock import iso_instant
from errors import ControlError


class OwnerBook:
    """All owners by id; records keep pointing at archived ones."""

    def __init__(self) -> None:
        self._owners: dict[int, dict[str, Any]] = {}

    def ids(self) -> list[str]:
        """Ids of all owners."""
        return [str(owner_id) for owner_id in sorted(self._owners)]

    def all(self, archived: bool | None) -> list[dict[str, Any]]:
        """All owners by id, or those that are archived or not."""
        owners = [self._owners[owner_id] for owner_id in sorted(self._owners)]
        return [owner for owner in owners if archived is None or owner["archived"] == archived]

    def page(self, archived: bool, email: str | None, start: int, count: int) -> list[dict[str, Any]]:
        """Up to count owners from an id on, by id."""
        chosen = [
            owner
            for owner_id, owner in sorted(self._owners.items())
            if owner_id >= start
            and owner["archived"] == archived
            and (email is None or owner["email"].lower() == email.lower())
        ]
        return chosen[:count]

    def get(self, owner_id: str) -> dict[str, Any] | None:
        """One owner."""
        return self._owners.get(int(owner_id)) if owner_id.isdigit() else None

    def counts(self) -> dict[str, int]:
        """Live and archived owners."""
        archived = sum(owner["archived"] for owner in self._owners.values())
        return {"live": len(self._owners) - archived, "archived": archived}

    def add(self, fields: dict[str, Any], now_ms: int) -> str:
        """Add an owner; what is not given is made up."""
        owner_id = int(fields.get("id") or max(self._owners, default=41_629_000) + 779)
        if owner_id in self._owners:
            raise ControlError(f"id {owner_id} is taken")
        user_id = fields.get("userId", owner_id % 9_000_000 + 1_000_000)
        owner = {
            "id": str(owner_id),
            "email": f"owner{owner_id}@school.example",
            "type": "PERSON",
            "firstName": "",
            "lastName": "",
            "userId": user_id,
            "userIdIncludingInactive": user_id,
            "createdAt": iso_instant(now_ms),
            "updatedAt": iso_instant(now_ms),
            "archived": False,
        }
        self._owners[owner_id] = {**owner, **fields, "id": str(owner_id)}
        if self._owners[owner_id]["archived"]:
            self.set_archived(str(owner_id), True, now_ms)
        return str(owner_id)

    def change(self, owner_id: str, fields: dict[str, Any], now_ms: int) -> None:
        """Set fields of an owner."""
        self._known(owner_id).update(fields, updatedAt=iso_instant(now_ms), id=owner_id)

    def set_archived(self, owner_id: str, archived: bool, now_ms: int) -> None:
        """Archive or restore; an archived owner has no userId."""
        owner = self._known(owner_id)
        owner["archived"] = archived
        owner["userId"] = None if archived else owner["userIdIncludingInactive"]
        owner["updatedAt"] = iso_instant(now_ms)

    def _known(self, owner_id: str) -> dict[str, Any]:
        owner = self.get(owner_id)
        if owner is None:
            raise ControlError(f"no owner {owner_id}")
        return owner
