"""Tests of the simulator's property definitions and groups, by the API and by control. See harness.py."""

from __future__ import annotations

from typing import Any

import harness
from harness import CONTACTS, Reply, SimulatorCase, wait_until

setUpModule, tearDownModule = harness.start, harness.stop

BASE = "/crm/properties/2026-09/contacts"
STATES = [{"label": "Open", "value": "open"}, {"label": "Done", "value": "done"}]


def definition(name: str = "total_xp", type: str = "number", field: str = "number", **more: Any) -> dict[str, Any]:
    """The body that creates a property."""
    return {
        "name": name, "label": name.title(), "type": type, "fieldType": field, "groupName": "contactinformation", **more
    }  # fmt: skip


class DefinitionCase(SimulatorCase):
    def make(self, name: str = "total_xp", *more: str, base: str = BASE, **fields: Any) -> Reply:
        """Create a property."""
        return self.call("POST", base, definition(name, *more, **fields))

    def names(self, query: str = "") -> set[str]:
        """Names of the listed definitions."""
        return {prop["name"] for prop in self.get(BASE + query)["results"]}


class CreateTest(DefinitionCase):
    def test_shape(self) -> None:
        reply = self.make("status", "enumeration", "select", options=STATES, description="D")
        self.assertEqual(reply.status, 201)
        made = reply.json()
        self.assertEqual(self.get(f"{BASE}/status"), made)
        self.assertEqual(self.get("/crm/properties/2026-03/contacts/status"), made)
        self.assertEqual((made["type"], made["fieldType"], made["description"]), ("enumeration", "select", "D"))
        self.assertEqual([option["value"] for option in made["options"]], ["open", "done"])
        self.assertEqual([option["displayOrder"] for option in made["options"]], [0, 1])
        self.assertEqual((made["hubspotDefined"], made["modificationMetadata"]["archivable"]), (False, True))
        self.assertEqual((made["hasUniqueValue"], made["calculated"], made["archived"]), (False, False, False))

    def test_names(self) -> None:
        for name, status in (
            ("a", 201), ("a1_b2", 201), ("x" * 99, 201), ("x" * 100, 400), ("1a", 400), ("_a", 400), ("A", 400),
            ("a-b", 400), ("a.b", 400), ("ä", 400), ("a b", 400), ("a\n", 400), ("", 400),
        ):  # fmt: skip
            with self.subTest(name):
                self.assertEqual(self.make(name).status, status)

    def test_type_pairs(self) -> None:
        bools = [{"label": "Yes", "value": "true"}, {"label": "No", "value": "false"}]
        good = {
            "string": ("text", "textarea", "html", "file", "phonenumber"), "number": ("number",),
            "bool": ("booleancheckbox",), "enumeration": ("select", "radio", "checkbox", "booleancheckbox"),
            "date": ("date",), "datetime": ("date",), "phone_number": ("phonenumber",),
        }  # fmt: skip
        fields = {field for pair in good.values() for field in pair}
        for kind in (*good, "json"):
            options = bools if kind == "bool" else STATES
            for field in fields:
                with self.subTest(kind=kind, field=field):
                    reply = self.make(f"p_{kind}_{field}", kind, field, options=options)
                    self.assertEqual(reply.status, 201 if field in good.get(kind, ()) else 400)

    def test_refused(self) -> None:
        for change in (
            {"label": ""}, {"label": None}, {"groupName": "nowhere"}, {"groupName": None}, {"type": None},
            {"type": "enumeration", "fieldType": "select"},
            {"type": "enumeration", "fieldType": "select", "options": [{"label": "A"}]},
            {"type": "enumeration", "fieldType": "select", "options": [STATES[0], STATES[0]]},
            {"type": "bool", "fieldType": "booleancheckbox"},
        ):  # fmt: skip
            with self.subTest(change):
                self.assert_error(self.call("POST", BASE, {**definition(), **change}), 400)
        self.assertNotIn("total_xp", self.names())

    def test_existing(self) -> None:
        self.make(label="First")
        error = self.assert_error(self.make(label="Second"), 409, "OBJECT_ALREADY_EXISTS")
        self.assertEqual(error["subCategory"], "Properties.PROPERTY_WITH_NAME_EXISTS")
        self.assertEqual(self.get(f"{BASE}/total_xp")["label"], "First")
        self.assert_error(self.make("email"), 409, "OBJECT_ALREADY_EXISTS")

    def test_archived_is_restored(self) -> None:
        self.make(label="First")
        path = f"{CONTACTS}/{self.ids()[0]}"
        self.call("PATCH", path, {"properties": {"total_xp": "5"}})
        self.assertEqual(self.call("DELETE", f"{BASE}/total_xp").status, 204)
        self.assert_error(self.call("GET", f"{BASE}/total_xp"), 404, "OBJECT_NOT_FOUND")
        self.assert_error(self.call("DELETE", f"{BASE}/total_xp"), 404, "OBJECT_NOT_FOUND")
        self.assertTrue(self.get(f"{BASE}/total_xp?archived=true")["archived"])
        self.assertEqual(self.names("?archived=true"), {"total_xp"})
        self.assertNotIn("total_xp", self.get(f"{path}?properties=total_xp")["properties"])
        self.assertEqual(self.call("PATCH", path, {"properties": {"total_xp": "6"}}).status, 400)
        reply = self.make(label="Second")
        self.assertEqual((reply.status, reply.json()["label"]), (201, "First"))
        self.assertEqual(self.get(f"{BASE}/total_xp"), reply.json())
        self.assertEqual(self.get(f"{path}?properties=total_xp")["properties"]["total_xp"], "5")
        self.assertEqual(self.names("?archived=true"), set())

    def test_limit(self) -> None:
        self.config(max_custom_properties=2)
        self.assertEqual([self.make(name).status for name in ("a", "b", "c")], [201, 201, 400])
        self.call("DELETE", f"{BASE}/a")
        self.assertEqual([self.make(name).status for name in ("c", "a")], [201, 400])
        self.assertEqual(self.names("?archived=true"), {"a"})
        reply = self.make("c", base="/crm/properties/2026-09/deals", groupName="dealinformation")
        self.assertEqual(reply.status, 201)

    def test_unique_limit(self) -> None:
        status = [self.make(f"u{n}", "string", "text", hasUniqueValue=True).status for n in range(10)]
        self.assertEqual(status, [201] * 9 + [400])  # the e-mail is one too

    def test_scopes(self) -> None:
        self.config(scopes=["crm.objects.contacts.write", "crm.schemas.contacts.read"])
        self.get(BASE)
        for method, path in (
            ("POST", ""), ("PATCH", "/city"), ("DELETE", "/city"), ("POST", "/batch/create"), ("POST", "/batch/archive"),
            ("POST", "/groups"),
        ):  # fmt: skip
            with self.subTest(method + path):
                error = self.assert_error(self.call(method, BASE + path, {}), 403, "MISSING_SCOPES")
                self.assertEqual(error["errors"][0]["context"]["requiredGranularScopes"], ["crm.schemas.contacts.write"])


class ChangeTest(DefinitionCase):
    def patch_property(self, name: str, /, **fields: Any) -> Reply:
        """Change a property by the API."""
        return self.call("PATCH", f"{BASE}/{name}", fields)

    def test_label_and_options(self) -> None:
        before = self.make("status", "enumeration", "select", options=STATES).json()
        created = self.now_ms()
        self.assertTrue(wait_until(lambda: self.now_ms() > created))
        new = [{"label": "Late", "value": "late"}]
        after = self.patch_property("status", label="State", options=new, name="other", whatever=1).json()
        self.assertEqual((after["name"], after["label"], after["createdAt"]), ("status", "State", before["createdAt"]))
        self.assertEqual([option["value"] for option in after["options"]], ["late"])
        self.assertGreater(after["updatedAt"], before["updatedAt"])
        self.assertEqual(self.get(f"{BASE}/status"), after)

    def test_refused(self) -> None:
        self.make("status", "enumeration", "select", options=STATES)
        for change in (
            {"label": ""}, {"label": 1}, {"groupName": "nowhere"}, {"fieldType": "text"}, {"options": []},
            {"options": "x"}, {"type": "number"},
        ):  # fmt: skip
            with self.subTest(change):
                self.assert_error(self.patch_property("status", **change), 400)
        self.assert_error(self.patch_property("none", label="X"), 404, "OBJECT_NOT_FOUND")
        self.assert_error(self.patch_property("email", label="X"), 400)
        self.assert_error(self.call("DELETE", f"{BASE}/email"), 400)
        self.assertEqual(self.get(f"{BASE}/status")["label"], "Status")


class BatchTest(DefinitionCase):
    def batch(self, kind: str, *inputs: dict[str, Any], **more: Any) -> Reply:
        """A batch request."""
        return self.call("POST", f"{BASE}/batch/{kind}", {"inputs": inputs, **more})

    def test_create(self) -> None:
        reply = self.batch("create", definition("a"), definition("b"))
        self.assertEqual((reply.status, reply.json()["status"]), (201, "COMPLETE"))
        self.assertEqual([prop["name"] for prop in reply.json()["results"]], ["a", "b"])
        reply = self.batch("create", definition("a"), definition("c"), definition("D"))
        self.assertEqual((reply.status, reply.json()["numErrors"]), (207, 2))
        self.assertEqual([prop["name"] for prop in reply.json()["results"]], ["c"])
        first, second = reply.json()["errors"]
        self.assertEqual((first["category"], first["context"]), ("OBJECT_ALREADY_EXISTS", {"name": ["a"]}))
        self.assertEqual(first["subCategory"], "Properties.PROPERTY_WITH_NAME_EXISTS")
        self.assertEqual((second["category"], second["context"]), ("VALIDATION_ERROR", {"name": ["D"]}))
        self.assertLessEqual({"a", "b", "c"}, self.names())
        self.assert_error(self.batch("create", *(definition(f"n{n}") for n in range(101))), 400)

    def test_read(self) -> None:
        self.make("a")
        reply = self.batch("read", {"name": "a"}, {"name": "email"})
        self.assertEqual((reply.status, reply.json()["results"][0]), (200, self.get(f"{BASE}/a")))
        reply = self.batch("read", {"name": "a"}, {"name": "none"})
        self.assertEqual((reply.status, len(reply.json()["results"])), (207, 1))
        self.assertEqual(reply.json()["errors"][0]["category"], "OBJECT_NOT_FOUND")
        self.call("DELETE", f"{BASE}/a")
        self.assertEqual(self.batch("read", {"name": "a"}).status, 207)
        self.assertEqual(len(self.batch("read", {"name": "a"}, archived=True).json()["results"]), 1)

    def test_archive(self) -> None:
        self.make("a")
        self.make("b")
        self.assertEqual(self.batch("archive", {"name": "a"}, {"name": "none"}, {"name": "b"}).status, 204)
        self.assertEqual(self.names("?archived=true"), {"a", "b"})
        self.assert_error(self.batch("archive", {"name": "email"}), 400)


class GroupTest(DefinitionCase):
    def test_groups(self) -> None:
        body = {"name": "level_progress", "label": "Level Progress"}
        reply = self.call("POST", f"{BASE}/groups", body)
        self.assertEqual((reply.status, reply.json()["label"]), (201, "Level Progress"))
        self.assertIn(reply.json(), self.get(f"{BASE}/groups")["results"])
        self.assert_error(self.call("POST", f"{BASE}/groups", {**body, "label": "X"}), 409, "OBJECT_ALREADY_EXISTS")
        self.assertIn(reply.json(), self.get(f"{BASE}/groups")["results"])
        for bad in ({"name": "x"}, {"label": "x"}, {"name": "X y", "label": "x"}, {"name": "x", "label": ""}):
            self.assert_error(self.call("POST", f"{BASE}/groups", bad), 400)
        self.assertEqual(self.make("mine", groupName="level_progress").status, 201)
        self.assertEqual(self.call("POST", "/crm/properties/2026-09/deals/groups", body).status, 201)


class ControlTest(DefinitionCase):
    def test_properties(self) -> None:
        self.control("POST", "properties/contacts", properties=[{"name": "mine", "type": "number"}])
        record_id = self.create(mine="1")
        self.control("POST", "properties/contacts/mine/archive")
        self.assertEqual(self.names("?archived=true"), {"mine"})
        listed = {prop["name"]: prop["archived"] for prop in self.control("GET", "properties/contacts")}
        self.assertEqual((listed["mine"], listed["email"]), (True, False))
        self.control("POST", "properties/contacts/mine/restore")
        self.assertEqual(self.control("GET", f"objects/contacts/{record_id}")["properties"]["mine"], "1")
        self.control("DELETE", "properties/contacts/mine")
        self.assertNotIn("mine", self.names() | self.names("?archived=true"))
        for method, path in (("DELETE", "mine"), ("POST", "mine/archive"), ("POST", "mine/restore")):
            self.assertEqual(self.call(method, f"/_control/properties/contacts/{path}", {}).status, 400)
        self.assertEqual(self.make("mine").status, 201)

    def test_groups(self) -> None:
        groups = [{"name": "progress", "label": "P"}, {"name": "plain"}]
        self.assertEqual(self.control("POST", "groups/contacts", groups=groups)["names"], ["progress", "plain"])
        self.assertEqual(self.control("GET", "groups/contacts"), self.get(f"{BASE}/groups")["results"])
        self.assertEqual(self.make("mine", groupName="progress").status, 201)
        self.control("DELETE", "groups/contacts/progress")
        self.assert_error(self.make("other", groupName="progress"), 400)
        self.assertEqual(self.call("DELETE", "/_control/groups/contacts/progress").status, 400)
        self.assertEqual(self.call("POST", "/_control/groups/contacts", {}).status, 400)

    def test_definitions_in_scripts(self) -> None:
        steps: list[dict[str, Any]] = [
            {"op": "define_groups", "groups": [{"name": "progress"}]},
            {"op": "define_properties", "properties": [{"name": "mine", "groupName": "progress"}, {"name": "gone"}]},
            {"op": "remove_property", "name": "gone"},
            {"op": "remove_group", "name": "progress"},
            {"op": "require", "require": ["mine"]},
            {"op": "unrequire"},
            {"op": "remove_property", "name": "gone"},
        ]
        self.control("POST", "script", do=[{"type": "contacts", **step} for step in steps])
        self.assertIn("mine", self.names())
        self.assertNotIn("gone", self.names())
        self.assertNotIn("progress", [group["name"] for group in self.get(f"{BASE}/groups")["results"]])
        self.assertEqual(len(self.control("GET", "state")["script_errors"]), 1)

    def test_record_by_unique_property(self) -> None:
        record_id = self.create(email="a@example.com", hs_additional_emails="b@example.com")
        self.control("POST", f"objects/contacts/{record_id}/archive")
        for email in ("A@example.com", "b@example.com"):
            self.assertEqual(self.control("GET", f"objects/contacts/{email}?idProperty=email")["id"], record_id)
        self.assertEqual(self.call("GET", "/_control/objects/contacts/x?idProperty=email").status, 400)
        self.assertEqual(self.call("GET", "/_control/objects/contacts/x?idProperty=city").status, 400)
