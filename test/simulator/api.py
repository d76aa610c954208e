"""The simulated API: version, token, limits and scopes are checked here, then the endpoint answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from account_api import AccountApi
from answer import Answer, json_answer
from call import Call
from clock import Clock
from config import MAX_URL, Config
from errors import ApiError, missing_scopes, not_found, unauthorized
from limits import RateLimiter
from objects_api import ObjectsApi
from properties_api import PropertiesApi
from router import Router
from store import Table
from world import World
from writes_api import WritesApi

Route = tuple[str, str, str, Callable[..., Answer]]  # method, path, access, handler
VERSIONS = ("2026-09", "2026-03")
_OLD_OBJECTS = "/crm/v3/objects/"  # the paths of published client libraries; the same endpoints
_URI_TOO_LONG = b"<html>\r\n<head><title>414 Request-URI Too Large</title></head>\r\n</html>\r\n"


class Api:
    """One account behind its endpoints."""

    def __init__(self, world: World, config: Config, clock: Clock) -> None:
        self._world = world
        self._config = config
        self.limiter = RateLimiter(config, clock)
        self._router = Router()
        self._add_object_routes(ObjectsApi(config, clock), WritesApi(world, clock))
        self._add_property_routes(PropertiesApi(config, clock))
        self._add_account_routes(AccountApi(world, config, clock, self.limiter))

    def authorized(self, call: Call) -> bool:
        """Whether the request carries the account's token."""
        return call.headers.get("Authorization", "") == f"Bearer {self._config.token}"

    def answer(self, call: Call) -> Answer:
        """Answer a request as HubSpot would."""
        if len(call.target) > MAX_URL:  # measured; that the body is HTML is unverified
            return Answer(414, _URI_TOO_LONG, content_type="text/html")
        try:
            return self._answer(call)
        except ApiError as error:
            return json_answer(error.body, error.status)

    def _answer(self, call: Call) -> Answer:
        if not self.authorized(call):
            raise unauthorized()
        search = call.path.endswith("/search")
        refusal = self.limiter.admit(search)
        if refusal is not None:
            return refusal
        answer = self._endpoint(call)
        if self._config.limit_headers_wanted and not search:
            answer.headers.update(self.limiter.headers())
        return answer

    def _endpoint(self, call: Call) -> Answer:
        path = call.path.replace(_OLD_OBJECTS, f"/crm/objects/{VERSIONS[0]}/", 1)
        handler, values, known = self._router.find(call.method, path)
        call.version = values.pop("version", VERSIONS[0])
        if call.version not in VERSIONS:
            raise not_found()
        if handler is None:
            raise ApiError(405, "Method Not Allowed", None) if known else not_found()
        answer: Answer = handler(call, **values)
        return answer

    # Routes

    def _add_object_routes(self, objects: ObjectsApi, writes: WritesApi) -> None:
        base = "crm/objects/{version}/{type}"
        routes: list[Route] = [
            ("GET", "", "read", objects.list_page),
            ("POST", "", "write", writes.create),
            ("POST", "/search", "read", objects.search),
            ("POST", "/merge", "write", writes.merge),
            ("POST", "/gdpr-delete", "write", writes.gdpr_delete),
            ("POST", "/batch/read", "read", objects.batch_read),
            ("POST", "/batch/update", "write", writes.batch_update),
            ("POST", "/batch/upsert", "write", writes.batch_upsert),
            ("GET", "/{id}", "read", objects.read),
            ("PATCH", "/{id}", "write", writes.update),
            ("DELETE", "/{id}", "write", writes.archive),
        ]
        for method, path, access, handler in routes:
            self._router.add(method, base + path, self._typed(handler, _record_scope(access)))

    def _add_account_routes(self, account: AccountApi) -> None:
        owner_scope = "crm.objects.owners.read"
        self._router.add("GET", "crm/owners/{version}", self._scoped(account.owners, owner_scope))
        self._router.add("GET", "crm/owners/{version}/{id}", self._scoped(account.owner, owner_scope))
        self._router.add("GET", "account-info/{version}/details", account.details)
        self._router.add("GET", "account-info/{version}/api-usage/daily/private-apps", account.daily_usage)
        self._router.add(
            "GET", "crm-object-schemas/{version}/schemas", self._scoped(account.schemas, "crm.schemas.custom.read")
        )
        # which scope pipelines need is unverified; the records' read scope is assumed
        pipelines: list[Route] = [
            ("GET", "", "read", account.pipelines),
            ("GET", "/{id}", "read", account.pipeline),
            ("GET", "/{id}/stages", "read", account.stages),
        ]
        for method, path, access, handler in pipelines:
            base = "crm/pipelines/{version}/{type}"
            self._router.add(method, base + path, self._typed(handler, _record_scope(access)))

    def _add_property_routes(self, properties: PropertiesApi) -> None:
        base = "crm/properties/{version}/{type}"
        routes: list[Route] = [
            ("GET", "", "read", properties.properties),
            ("POST", "", "write", properties.create_property),
            ("POST", "/batch/create", "write", properties.batch_create),
            ("POST", "/batch/read", "read", properties.batch_read),
            ("POST", "/batch/archive", "write", properties.batch_archive),
            ("GET", "/groups", "read", properties.groups),
            ("POST", "/groups", "write", properties.create_group),
            ("GET", "/{name}", "read", properties.property),
            ("PATCH", "/{name}", "write", properties.update_property),
            ("DELETE", "/{name}", "write", properties.archive_property),
        ]
        for method, path, access, handler in routes:
            self._router.add(method, base + path, self._typed(handler, _schema_scope(access)))

    def _typed(self, handler: Callable[..., Answer], scope_of: Callable[[Table], str]) -> Callable[..., Answer]:
        """Look up the object type and check the scope it needs."""

        def answer(call: Call, type: str, **values: Any) -> Answer:
            table = self._world.table(type)
            if table is None:  # the wording is unverified
                raise ApiError(400, f"Unable to infer object type from: {type}")
            self._require(scope_of(table))
            return handler(call, table, **values)

        return answer

    def _scoped(self, handler: Callable[..., Answer], scope: str) -> Callable[..., Answer]:
        def answer(call: Call, **values: Any) -> Answer:
            self._require(scope)
            return handler(call, **values)

        return answer

    def _require(self, scope: str) -> None:
        granted = self._config.scopes
        if granted is not None and scope not in granted:
            raise missing_scopes(scope)


def _record_scope(access: str) -> Callable[[Table], str]:
    return lambda table: table.kind.scope_for(access)


def _schema_scope(access: str) -> Callable[[Table], str]:
    return lambda table: table.kind.schema_scope_for(access)
