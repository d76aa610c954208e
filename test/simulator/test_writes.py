"""Tests of the simulator's writes: values, batches, rules, and the faults they can meet. See harness.py."""

from __future__ import annotations

import http.client
import json
from typing import Any

import harness
from harness import CONTACTS, OBJECTS, Reply, SimulatorCase, where

setUpModule, tearDownModule = harness.start, harness.stop

OLD_CONTACTS = "/crm/objects/2026-03/contacts"


def touch(record_id: str, trace: str | None = None, **properties: Any) -> dict[str, Any]:
    """An input of a batch update."""
    fields: dict[str, Any] = {"id": record_id, "properties": properties}
    return fields if trace is None else {**fields, "objectWriteTraceId": trace}


class WriteCase(SimulatorCase):
    """Contacts a, b and c, and short ways to write."""

    def setUp(self) -> None:
        super().setUp()
        self.a, self.b, self.c = (self.create(email=f"{name}@example.com", firstname="old") for name in "abc")

    def batch(self, *inputs: dict[str, Any], kind: str = "update", contacts: str = CONTACTS) -> Reply:
        """A batch write."""
        return self.call("POST", f"{contacts}/batch/{kind}", {"inputs": inputs})

    def written(self, reply: Reply, status: int = 200) -> list[str]:
        """The ids among the results of a batch, sorted."""
        self.assertEqual(reply.status, status, reply.body)
        return sorted((record["id"] for record in reply.json()["results"]), key=int)

    def value(self, record_id: str, name: str = "firstname") -> Any:
        """What a contact truly has."""
        return self.control("GET", f"objects/contacts/{record_id}")["properties"][name]

    def values(self) -> list[Any]:
        """The first names of a, b and c."""
        return [self.value(record_id) for record_id in (self.a, self.b, self.c)]

    def upserted(self, *inputs: dict[str, Any], **more: Any) -> Reply:
        """A batch upsert by e-mail."""
        return self.batch(*({"idProperty": "email", **item} for item in inputs), kind="upsert", **more)


class BatchReadByEmailTest(WriteCase):
    def emails(self, *emails: str) -> Reply:
        """A batch read by e-mail."""
        return self.batch_read(list(emails), idProperty="email", properties=["email", "hs_additional_emails"])

    def found(self, *emails: str) -> list[str]:  # type: ignore[override]
        """Ids found by e-mail."""
        return [record["id"] for record in self.emails(*emails).json()["results"]]

    def test_missing_ones_as_sent_in_one_error(self) -> None:
        reply = self.emails("A@Example.com", "No.Body@example.com", "b@example.com", "X")
        self.assertEqual(self.written(reply, 207), sorted([self.a, self.b], key=int))
        (error,) = reply.json()["errors"]
        self.assertEqual(error["category"], "OBJECT_NOT_FOUND")
        self.assertEqual(error["context"], {"ids": ["No.Body@example.com", "X"]})

    def test_two_inputs_for_one_contact(self) -> None:
        self.patch(self.a, hs_additional_emails="A.Old@example.com;older@example.com")
        reply = self.emails("a@example.com", "a.old@EXAMPLE.com", "A@EXAMPLE.COM", "older@example.com")
        self.assertEqual(self.written(reply), [self.a])
        shown = reply.json()["results"][0]["properties"]
        self.assertEqual(shown["hs_additional_emails"], "A.Old@example.com;older@example.com")

    def test_order_is_not_the_one_asked_for(self) -> None:
        emails = [f"{name}@example.com" for name in "abc"]
        self.assertNotEqual(self.found(*emails), [self.a, self.b, self.c])
        self.assertEqual(sorted(self.found(*emails), key=int), sorted([self.a, self.b, self.c], key=int))

    def test_the_index_follows_every_change(self) -> None:
        self.assertEqual(self.found("a@example.com"), [self.a])
        self.patch(self.a, email="new@example.com", hs_additional_emails="x@example.com")
        self.assertEqual((self.found("a@example.com"), self.found("X@example.com")), ([], [self.a]))
        self.patch(self.a, hs_additional_emails="")
        self.assertEqual((self.found("x@example.com"), self.found("new@example.com")), ([], [self.a]))
        self.call("PATCH", f"{CONTACTS}/{self.a}", {"properties": {"email": "Api@example.com"}})
        self.assertEqual((self.found("new@example.com"), self.found("api@example.com")), ([], [self.a]))
        self.batch(touch(self.a, email="batch@example.com"))
        self.assertEqual((self.found("api@example.com"), self.found("batch@example.com")), ([], [self.a]))
        self.control("POST", "touch/contacts", ids=[self.a], properties={"email": "touched@example.com"})
        self.assertEqual((self.found("batch@example.com"), self.found("touched@example.com")), ([], [self.a]))
        self.control("POST", f"objects/contacts/{self.a}/archive")
        self.assertEqual(self.found("touched@example.com"), [])
        self.control("POST", f"objects/contacts/{self.a}/restore")
        self.assertEqual(self.found("touched@example.com"), [self.a])
        survivor = self.control("POST", f"objects/contacts/{self.b}/merge/{self.a}", new_id=True)["id"]
        self.assertEqual(self.found("touched@example.com", "b@example.com"), [survivor])
        self.control("POST", f"objects/contacts/{survivor}/purge")
        self.assertEqual(self.found("touched@example.com", "b@example.com"), [])
        self.assertEqual(self.found(self.create_by_upsert()), [self.ids()[-1]])

    def create_by_upsert(self) -> str:
        """A new contact's e-mail."""
        self.assertEqual(self.upserted(touch("up@example.com")).status, 200)
        return "up@example.com"

    def test_an_email_of_several_contacts(self) -> None:
        self.assertEqual(self.found("a@example.com"), [self.a])
        twin = self.create(email="A@example.com")
        self.assertEqual(self.found("a@example.com"), [self.a])
        self.control("POST", f"objects/contacts/{self.a}/purge")
        self.assertEqual(self.found("a@example.com"), [twin])
        self.patch(twin, email="other@example.com")
        self.assertEqual(self.found("a@example.com"), [])
        third = self.create(email="b@example.com")
        self.patch(third, email="third@example.com")
        self.patch(self.b, email="second@example.com")
        self.assertEqual(self.found("b@example.com"), [])

    def test_hidden_contacts_are_not_found(self) -> None:
        self.control("POST", "hide/contacts", ids=[self.a])
        self.assertEqual(self.found("a@example.com", "b@example.com"), [self.b])

    def test_another_unique_property(self) -> None:
        self.control("POST", "properties/contacts", properties=[{"name": "school_id", "hasUniqueValue": True}])
        self.patch(self.b, school_id="S-1")
        reply = self.batch_read(["s-1", "S-2"], idProperty="school_id")
        self.assertEqual(self.written(reply, 207), [self.b])
        self.assertEqual(self.get(f"{CONTACTS}/S-1?idProperty=school_id")["id"], self.b)
        self.control("POST", "properties/contacts/school_id/archive")
        self.assert_error(self.batch_read(["s-1"], idProperty="school_id"), 400)


class BatchUpdateTest(WriteCase):
    def test_results(self) -> None:
        self.control("POST", "touch/contacts", ids=[self.a], at_ms=1000)
        before = self.get(f"{CONTACTS}/{self.a}")
        reply = self.batch(touch(self.a, "t1", firstname="A", annualrevenue="7.50"), touch(self.b, lastname="B"))
        body = reply.json()
        self.assertEqual((reply.status, body["status"]), (200, "COMPLETE"))
        self.assertNotIn("errors", body)
        by_id = {record["id"]: record for record in body["results"]}
        record = by_id[self.a]
        self.assertEqual(record["objectWriteTraceId"], "t1")
        self.assertNotIn("objectWriteTraceId", by_id[self.b])
        self.assertEqual((record["properties"]["firstname"], record["properties"]["annualrevenue"]), ("A", "7.50"))
        self.assertEqual(record["properties"]["lastmodifieddate"], record["updatedAt"])
        self.assertEqual((record["createdAt"], record["archived"]), (before["createdAt"], False))
        self.assertGreater(record["updatedAt"], before["updatedAt"])
        self.assertNotIn("new", record)
        self.assertEqual(self.get(f"{CONTACTS}/{self.a}")["updatedAt"], record["updatedAt"])

    def test_both_versions_and_other_types(self) -> None:
        self.assertEqual(self.written(self.batch(touch(self.a, firstname="A"), contacts=OLD_CONTACTS)), [self.a])
        deal = self.create("deals", dealname="D")
        reply = self.batch(touch(deal, dealname="E"), contacts=f"{OBJECTS}/deals")
        self.assertIn("hs_lastmodifieddate", reply.json()["results"][0]["properties"])
        self.assertEqual(self.get(f"{OBJECTS}/deals/{deal}")["properties"]["dealname"], "E")

    def test_order_is_not_the_one_sent(self) -> None:
        ids = self.ids()[:20]
        results = [record["id"] for record in self.batch(*(touch(i, city="Ulm") for i in ids)).json()["results"]]
        self.assertEqual(sorted(results), sorted(ids))
        self.assertNotEqual(results, ids)

    def test_history_and_search(self) -> None:
        self.control("POST", "touch/contacts", ids=[self.c], at_ms=1000)
        since = self.now_ms()
        self.batch(touch(self.a, firstname="A", lastname="L"), touch(self.b, firstname="old"))
        old, new = self.history("firstname")[self.a]
        self.assertEqual((old["value"], new["value"], new["sourceType"]), ("old", "A", "INTEGRATION"))
        self.assertGreaterEqual(new["timestamp"], since)
        self.assertEqual(len(self.history("firstname")[self.b]), 1)
        changed = self.found(where("lastmodifieddate", "GTE", str(since)))
        self.assertEqual(changed, sorted([self.a, self.b], key=int))

    def test_limits_and_malformed_inputs(self) -> None:
        self.assertEqual(self.batch(*(touch(str(n)) for n in range(100))).status, 207)
        self.assert_error(self.batch(*(touch(str(n)) for n in range(101))), 400)
        self.assert_error(self.batch(), 400)
        for bad in ({"properties": {}}, {"id": self.a}, {"id": [1], "properties": {}}, {"id": self.a, "properties": []},
                    {**touch(self.a), "objectWriteTraceId": 1}, {**touch(self.a), "idProperty": 1},
                    {**touch("x"), "idProperty": "phone"}):  # fmt: skip
            with self.subTest(bad):
                self.assert_error(self.batch(bad), 400)

    def test_one_bad_value_without_trace_ids_rejects_all(self) -> None:
        for traces in ((None, None, None), ("t1", "t2", None), ("t1", "t1", "t3")):
            values = ({"firstname": "A"}, {"nope": "1"}, {"firstname": "C"})
            inputs = [touch(i, t, **v) for i, t, v in zip((self.a, self.b, self.c), traces, values)]
            error = self.assert_error(self.batch(*inputs), 400)
            self.assertEqual(error["errors"][0]["code"], "PROPERTY_DOESNT_EXIST")
            self.assertEqual(error["errors"][0]["context"], {"propertyName": ["nope"]})
            self.assertEqual(self.values(), ["old", "old", "old"])

    def test_one_bad_value_with_trace_ids(self) -> None:
        reply = self.batch(
            touch(self.a, "t1", firstname="A"), touch(self.b, "t2", firstname="B", lifecyclestage="nope"),
            touch(self.c, "t3", firstname="C"),
        )  # fmt: skip
        self.assertEqual(self.written(reply, 207), sorted([self.a, self.c], key=int))
        body = reply.json()
        (error,) = body["errors"]
        self.assertEqual(body["numErrors"], 1)
        self.assertEqual((error["status"], error["category"]), ("error", "VALIDATION_ERROR"))
        self.assertEqual(error["context"], {"objectWriteTraceId": ["t2"]})
        self.assertEqual(error["errors"][0]["code"], "INVALID_OPTION")
        self.assertEqual(error["errors"][0]["context"], {"propertyName": ["lifecyclestage"]})
        self.assertIn("Property values were not valid", error["message"])
        self.assertEqual(self.values(), ["A", "old", "C"])

    def test_missing_ids(self) -> None:
        reply = self.batch(touch(self.a, firstname="A"), touch("998"), touch("x"))
        self.assertEqual(self.written(reply, 207), [self.a])
        self.assertEqual([error["context"] for error in reply.json()["errors"]], [{"ids": ["998", "x"]}])
        self.assertEqual(reply.json()["errors"][0]["category"], "OBJECT_NOT_FOUND")
        reply = self.batch(touch("998", "t1"), touch(self.b, "t2", firstname="B"), touch("999", "t3"))
        self.assertEqual(self.written(reply, 207), [self.b])
        contexts = [error["context"] for error in reply.json()["errors"]]
        self.assertEqual(
            contexts,
            [{"ids": ["998"], "objectWriteTraceId": ["t1"]}, {"ids": ["999"], "objectWriteTraceId": ["t3"]}],
        )

    def test_archived_and_hidden_count_as_missing(self) -> None:
        self.control("POST", f"objects/contacts/{self.a}/archive")
        self.control("POST", "hide/contacts", ids=[self.b])
        reply = self.batch(*(touch(i, firstname="new") for i in (self.a, self.b, self.c)))
        self.assertEqual(self.written(reply, 207), [self.c])
        self.assertEqual(reply.json()["errors"][0]["context"]["ids"], [self.a, self.b])
        self.assertEqual(self.values(), ["old", "old", "new"])

    def test_merged_away_is_silently_missing(self) -> None:
        self.control("POST", f"objects/contacts/{self.a}/merge/{self.b}")
        reply = self.batch(touch(self.b, "t1", firstname="B"), touch(self.c, "t2", firstname="C"))
        self.assertEqual(self.written(reply), [self.c])
        self.assertNotIn("errors", reply.json())
        self.assertEqual(self.value(self.a), "old")

    def test_duplicate_ids_reject_all(self) -> None:
        inputs = [touch(self.a, "t1", firstname="1"), touch(self.b, "t2"), touch(self.a, "t3", firstname="2")]
        error = self.assert_error(self.batch(*inputs), 400)
        self.assertEqual(error["message"], f"Duplicate IDs found in batch input: [{self.a}]. IDs must be unique")
        self.assertEqual(error["context"], {"ids": [self.a]})
        self.assertEqual(self.value(self.a), "old")

    def test_by_email(self) -> None:
        reply = self.batch({**touch("A@example.com", firstname="A"), "idProperty": "email"})
        self.assertEqual(self.written(reply), [self.a])
        inputs = [{**touch(email), "idProperty": "email"} for email in ("a@example.com", "A@example.com")]
        self.assert_error(self.batch(*inputs), 400)

    def test_taken_emails(self) -> None:
        self.assert_error(self.batch(touch(self.a, email="B@example.com")), 409, "CONFLICT")
        inputs = [
            touch(self.a, "t1", email="c@example.com"), touch(self.b, "t2", email="n@example.com"),
            touch(self.c, "t3", email="N@example.com"),
        ]  # fmt: skip
        reply = self.batch(*inputs)
        self.assertEqual(self.written(reply, 207), [self.b])
        errors = {error["context"]["objectWriteTraceId"][0]: error["category"] for error in reply.json()["errors"]}
        self.assertEqual(errors, {"t1": "CONFLICT", "t3": "CONFLICT"})
        self.assertEqual(self.value(self.c, "email"), "c@example.com")
        own = self.batch(touch(self.a, email="A@example.com"))
        self.assertEqual(self.written(own), [self.a])

    def test_scope(self) -> None:
        self.config(scopes=["crm.objects.contacts.read", "crm.schemas.contacts.write"])
        for kind in ("update", "upsert"):
            error = self.assert_error(self.batch(touch(self.a), kind=kind), 403, "MISSING_SCOPES")
            self.assertEqual(error["errors"][0]["context"]["requiredGranularScopes"], ["crm.objects.contacts.write"])


class BatchUpsertTest(WriteCase):
    def test_new_and_known(self) -> None:
        reply = self.upserted(touch("A@Example.com", "t1", firstname="A"), touch("N@example.com", "t2", firstname="N"))
        self.assertEqual(reply.status, 200)
        by_trace = {record["objectWriteTraceId"]: record for record in reply.json()["results"]}
        self.assertEqual((by_trace["t1"]["id"], by_trace["t1"]["new"]), (self.a, False))
        self.assertEqual((by_trace["t2"]["new"], by_trace["t2"]["properties"]["email"]), (True, "n@example.com"))
        self.assertEqual(self.value(self.a), "A")
        self.assertEqual(self.value(by_trace["t2"]["id"]), "N")
        (entry,) = self.history("firstname")[by_trace["t2"]["id"]]
        self.assertEqual(entry["sourceType"], "INTEGRATION")

    def test_refused_keys(self) -> None:
        emails = ("a@example.com", "A@EXAMPLE.com")
        error = self.assert_error(self.upserted(*(touch(e, e, firstname="x") for e in emails)), 400)
        self.assertEqual(error["context"], {"ids": ["a@example.com"]})
        error = self.assert_error(self.upserted({**touch("1"), "idProperty": "phone"}), 400)
        self.assertIn("non-unique phone", error["message"])
        self.assert_error(self.batch(touch(self.a), kind="upsert"), 400)
        self.assertEqual(self.values(), ["old", "old", "old"])

    def test_bad_values(self) -> None:
        count = len(self.ids())
        good, bad = touch("n@example.com", "t1", firstname="N"), touch("nonsense", "t2", firstname="X")
        self.assert_error(self.upserted({**good, "objectWriteTraceId": "t2"}, bad), 400)
        self.assertEqual(len(self.ids()), count)
        reply = self.upserted(good, bad, touch("b@example.com", "t3", annualrevenue="x"))
        self.assertEqual(len(self.written(reply, 207)), 1)
        codes = {e["context"]["objectWriteTraceId"][0]: e["errors"][0]["code"] for e in reply.json()["errors"]}
        self.assertEqual(codes, {"t2": "INVALID_EMAIL", "t3": "INVALID_INTEGER"})
        self.assertEqual(len(self.ids()), count + 1)

    def test_by_a_unique_property(self) -> None:
        self.control("POST", "properties/contacts", properties=[{"name": "school_id", "hasUniqueValue": True}])
        item = {**touch("S-1", firstname="S"), "idProperty": "school_id"}
        first, second = self.batch(item, kind="upsert").json(), self.batch(item, kind="upsert").json()
        self.assertEqual([first["results"][0]["new"], second["results"][0]["new"]], [True, False])
        self.assertEqual(first["results"][0]["id"], second["results"][0]["id"])


class SingleWriteTest(WriteCase):
    def update(self, key: str, contacts: str = CONTACTS, **properties: Any) -> Reply:
        """A single update."""
        return self.call("PATCH", f"{contacts}/{key}", {"properties": properties})

    def test_keys(self) -> None:
        record = self.update("A%40Example.com?idProperty=email", lastname="L", city="Ulm").json()
        self.assertEqual((record["id"], record["properties"]["city"]), (self.a, "Ulm"))
        self.assertEqual(record["properties"]["lastmodifieddate"], record["updatedAt"])
        self.control("POST", f"objects/contacts/{self.b}/merge/{self.a}")
        self.assertEqual(self.update(self.a, firstname="B").json()["id"], self.b)
        self.assertEqual(self.value(self.b), "B")
        self.assert_error(self.update("x?idProperty=phone", city="Ulm"), 400)
        self.assert_error(self.update("999", city="Ulm"), 404, "OBJECT_NOT_FOUND")

    def test_taken_email(self) -> None:
        error = self.assert_error(self.update(self.a, email="B@example.com"), 409, "CONFLICT")
        self.assertIn(self.b, error["message"])
        self.assertEqual(self.value(self.a, "email"), "a@example.com")
        self.patch(self.b, hs_additional_emails="second@example.com")
        self.assert_error(self.update(self.a, email="second@example.com"), 409, "CONFLICT")
        self.assertEqual(self.update(self.a, email="A@EXAMPLE.com").status, 200)
        self.control("POST", f"objects/contacts/{self.b}/archive")
        self.assertEqual(self.update(self.a, email="b@example.com").status, 200)

    def test_create(self) -> None:
        error = self.assert_error(self.call("POST", CONTACTS, {"properties": {"email": "A@example.com"}}), 409, "CONFLICT")
        self.assertEqual(error["message"], f"Contact already exists. Existing ID: {self.a}")
        error = self.assert_error(self.call("POST", CONTACTS, {"properties": {"city": "Ulm"}}), 400)
        self.assertEqual(error["errors"][0]["code"], "MISSING_REQUIRED_PROPERTY")


class ValueTest(WriteCase):
    def setUp(self) -> None:
        super().setUp()
        options = [{"label": value.upper(), "value": value} for value in ("one", "two", "three")]
        self.control("POST", "properties/contacts", properties=[
            {"name": "p_text"}, {"name": "p_number", "type": "number"}, {"name": "p_bool", "type": "bool"},
            {"name": "p_date", "type": "date"}, {"name": "p_datetime", "type": "datetime"},
            {"name": "p_select", "type": "enumeration", "options": options},
            {"name": "p_boxes", "type": "enumeration", "fieldType": "checkbox", "options": options},
            {"name": "p_calculated", "type": "number", "calculated": True},
        ])  # fmt: skip

    def code(self, name: str, value: Any) -> str | None:
        """The code a value is refused with, or None."""
        reply = self.batch(touch(self.a, "t", **{name: value}))
        return reply.json()["errors"][0]["errors"][0]["code"] if reply.status == 207 else None

    def stored(self, name: str, value: Any) -> Any:
        """What a value that has to be accepted becomes."""
        reply = self.batch(touch(self.a, **{name: value}))
        self.assertEqual(reply.status, 200, reply.body)
        truth = self.value(self.a, name)
        self.assertEqual(reply.json()["results"][0]["properties"][name], truth)
        return truth

    def test_refused(self) -> None:
        for name, code, values in (
            ("p_number", "INVALID_FLOAT", ("1,000.5", "1.2.3", ".", "1e3.")),
            ("p_number", "INVALID_INTEGER", ("x", "1 0", "--1", "1e3", "١", "NaN")),
            ("p_bool", "INVALID_OPTION", ("yes", "1", "TRUE")),
            ("p_select", "INVALID_OPTION", ("ONE", "four", "one;two", ";one")),
            ("p_boxes", "INVALID_OPTION", ("one;four", "one,two", ";four", "one;;two")),
            ("p_date", "INVALID_DATE", ("2026-13-01", "01.02.2026", "1583000000001", "2026-01-01T00:00:00Z", "soon")),
            ("p_datetime", "INVALID_DATE", ("soon", "2026-01-01T25:00:00Z", "9" * 30)),
            ("p_text", "INVALID_VALUE", (None, ["a"], {})),
            ("p_text", "VALUE_TOO_LONG", ("x" * 65_537,)),
            ("p_calculated", "READ_ONLY_VALUE", ("1", "")),
            ("lastmodifieddate", "READ_ONLY_VALUE", ("2026-01-01T00:00:00Z",)),
            ("email", "INVALID_EMAIL", ("x", "a@b", "a b@example.com", "a@example.com,b@example.com")),
            ("p_none", "PROPERTY_DOESNT_EXIST", ("x", "")),
        ):
            for value in values:
                for _ in range(2):  # the second time from memory
                    with self.subTest(name=name, value=str(value)[:40]):
                        self.assertEqual(self.code(name, value), code)

    def test_stored(self) -> None:
        for name, value, expected in (
            ("p_number", "-1.50", "-1.50"), ("p_number", "+7", "+7"), ("p_number", 12, "12"), ("p_number", 0.5, "0.5"),
            ("p_bool", True, "true"), ("p_select", "two", "two"), ("p_boxes", "one;three", "one;three"),
            ("p_date", "2026-02-28", "2026-02-28"), ("p_date", "1772236800000", "2026-02-28"),
            ("p_datetime", "2026-02-28T10:00:00+02:00", "2026-02-28T08:00:00.000Z"),
            ("p_datetime", "1772236800001", "2026-02-28T00:00:00.001Z"),
            ("p_text", "x" * 65_536, "x" * 65_536), ("p_text", "\u0000\"\\ü🎓", "\u0000\"\\ü🎓"),
            ("email", "NEW@Example.COM", "new@example.com"),
        ):  # fmt: skip
            for _ in range(2):
                with self.subTest(name=name, value=str(value)[:40]):
                    self.assertEqual(self.stored(name, value), expected)

    def test_empty_clears(self) -> None:
        for name, value in (("p_number", "1"), ("p_select", "one"), ("p_date", "2026-02-28"), ("hubspot_owner_id", None)):
            if value is not None:
                self.stored(name, value)
            self.assertEqual(self.stored(name, ""), "")

    def test_leading_semicolon_appends(self) -> None:
        self.stored("p_boxes", "one")
        self.assertEqual(self.stored("p_boxes", ";two"), "one;two")
        self.assertEqual(self.stored("p_boxes", ";two;three"), "one;two;three")
        self.assertEqual(self.batch(touch(self.b, p_boxes=";two")).json()["results"][0]["properties"]["p_boxes"], "two")

    def test_changed_definitions_count_at_once(self) -> None:
        self.assertEqual((self.code("p_select", "four"), self.code("p_select", "one")), ("INVALID_OPTION", None))
        fields = {"name": "p_select", "options": [{"label": "F", "value": "four"}]}
        self.control("POST", "properties/contacts", properties=[fields])
        self.assertEqual((self.code("p_select", "four"), self.code("p_select", "one")), (None, "INVALID_OPTION"))
        self.control("POST", "properties/contacts/p_select/archive")
        self.assertEqual(self.code("p_select", "four"), "PROPERTY_DOESNT_EXIST")

    def test_options_kept_elsewhere_are_looked_up_each_time(self) -> None:
        self.assertEqual(self.code("hubspot_owner_id", "4711"), "INVALID_OPTION")
        self.control("POST", "owners", owners=[{"id": "4711", "email": "o@example.com"}])
        self.assertIsNone(self.code("hubspot_owner_id", "4711"))
        deal = self.create("deals", dealname="D")
        to_won = lambda: self.batch(touch(deal, dealstage="closedwon"), contacts=f"{OBJECTS}/deals").status
        self.assertEqual(to_won(), 200)
        self.control("POST", "pipelines/deals", pipelines=[])
        self.assertEqual(to_won(), 400)

    def test_message_is_json(self) -> None:
        body = {"properties": {'no"such': "1", "p_select": 'a"b\\c'}}
        error = self.assert_error(self.call("PATCH", f"{CONTACTS}/{self.a}", body), 400)
        head, _, listed = error["message"].partition(": ")
        self.assertEqual(head, "Property values were not valid")
        problems = json.loads(listed)
        self.assertEqual([problem["name"] for problem in problems], ['no"such', "p_select"])
        self.assertEqual([problem["error"] for problem in problems], [e["code"] for e in error["errors"]])
        self.assertEqual({problem["isValid"] for problem in problems}, {False})
        self.assertEqual(set(problems[0]), {"isValid", "message", "error", "name", "localizedErrorMessage", "portalId"})


class RuleTest(WriteCase):
    CODE = "MISSING_CONDITIONAL_REQUIRED_PROPERTY"

    def setUp(self) -> None:
        super().setUp()
        self.control("POST", "rules/contacts", when={"city": "Ulm"}, require=["zip"])

    def test_only_in_the_new_version(self) -> None:
        error = self.assert_error(self.batch(touch(self.a, city="Ulm"), touch(self.b, firstname="B")), 400)
        self.assertEqual(error["errors"][0]["code"], self.CODE)
        self.assertEqual(error["errors"][0]["context"], {"propertyName": ["zip"]})
        self.assertEqual(self.values(), ["old", "old", "old"])
        reply = self.batch(touch(self.a, "t1", city="Ulm"), touch(self.b, "t2", firstname="B"))
        self.assertEqual(self.written(reply, 207), [self.b])
        entry = reply.json()["errors"][0]
        self.assertEqual((entry["context"], entry["errors"][0]["code"]), ({"objectWriteTraceId": ["t1"]}, self.CODE))
        self.assertEqual(self.written(self.batch(touch(self.a, city="Ulm"), contacts=OLD_CONTACTS)), [self.a])

    def test_what_fulfils_it(self) -> None:
        path = f"{CONTACTS}/{self.a}"
        for properties, status in (
            ({"city": "Bonn"}, 200), ({"city": "Ulm"}, 400), ({"city": "Ulm", "zip": "89073"}, 200),
            ({"zip": ""}, 400), ({"firstname": "A"}, 200), ({"city": "Bonn", "zip": ""}, 200),
        ):  # fmt: skip
            with self.subTest(properties):
                self.assertEqual(self.call("PATCH", path, {"properties": properties}).status, status)

    def test_writes_of_other_properties_are_not_held_to_it(self) -> None:
        self.patch(self.a, city="Ulm")
        self.assertEqual(self.written(self.batch(touch(self.a, firstname="A"))), [self.a])

    def test_unconditional(self) -> None:
        self.control("DELETE", "rules/contacts")
        self.assertEqual(self.control("GET", "rules/contacts"), [])
        self.control("POST", "rules/contacts", require=["zip"])
        self.assertEqual(self.control("GET", "rules/contacts"), [{"when": {}, "require": ["zip"]}])
        self.assert_error(self.batch(touch(self.a, firstname="A")), 400)
        new = {"properties": {"email": "n@example.com"}}
        self.assert_error(self.call("POST", CONTACTS, new), 400)
        self.assertEqual(self.call("POST", OLD_CONTACTS, new).status, 201)
        self.assertEqual(self.call("POST", "/_control/rules/contacts", {"require": "zip"}).status, 400)


class WriteFaultTest(WriteCase):
    UPDATE = {"path": "/batch/update"}

    def update(self, traced: bool = True) -> Reply:
        """A batch update of a, b and c."""
        inputs = zip((self.a, self.b, self.c), ("t1", "t2", "t3"))
        return self.batch(*(touch(i, trace if traced else None, firstname="new") for i, trace in inputs))

    def test_error_for_the_nth_request(self) -> None:
        self.fault("error", action={"status": 423, "message": "locked"}, nth=2, **self.UPDATE)
        self.assertEqual([self.update().status for _ in range(3)], [200, 423, 200])
        self.fault("error", action={"status": 409}, **self.UPDATE)
        self.assert_error(self.update(), 409, "CONFLICT")
        more = {"context": {"ids": [self.b]}, "correlationId": None}
        self.fault("error", action={"status": 400, "message": "no", "more": more}, **self.UPDATE)
        body = self.update().json()
        self.assertEqual((body["message"], body["context"]), ("no", {"ids": [self.b]}))
        self.assertEqual((body["category"], "correlationId" in body), ("VALIDATION_ERROR", False))
        self.assertEqual(self.call("POST", "/_control/faults", {"action": {"kind": "error"}}).status, 400)

    def test_nothing_is_written_unless_it_applies(self) -> None:
        self.fault("error", action={"status": 423}, **self.UPDATE)
        self.update()
        self.assertEqual(self.values(), ["old", "old", "old"])
        self.fault("error", action={"status": 500, "apply": True}, **self.UPDATE)
        self.update()
        self.assertEqual(self.values(), ["new", "new", "new"])

    def test_lost_answers_of_writes_that_were_carried_out(self) -> None:
        for kind, expected in (("reset", ConnectionResetError), ("hang", TimeoutError), ("html", None)):
            self.control("POST", "touch/contacts", ids=[self.a], properties={"firstname": "old"})
            self.fault(kind, action={"apply": True}, **self.UPDATE)
            if expected is None:
                self.assertEqual(self.update().status, 502)
            else:
                self.connection.close()
                self.connection = http.client.HTTPConnection("127.0.0.1", harness.running.port, timeout=0.5)
                self.addCleanup(self.connection.close)
                self.assertRaises(expected, self.update)
                self.connection.close()
            self.assertEqual(self.value(self.a), "new")

    def test_fault_by_body(self) -> None:
        self.fault("error", action={"status": 400}, body=f'"{self.b}"', times=0, **self.UPDATE)
        self.assertEqual(self.update().status, 400)
        self.assertEqual(self.written(self.batch(touch(self.a), touch(self.c))), sorted([self.a, self.c], key=int))
        self.control("DELETE", "faults")
        self.fault("error", action={"status": 400}, body_regex=r'"firstname":\s*"x+"', times=0)
        self.assertEqual([self.batch(touch(self.a, firstname=n)).status for n in ("y", "xx")], [200, 400])
        self.assertEqual(self.call("POST", "/_control/faults", {"body_regex": "("}).status, 400)

    def test_edit_errors_without_context(self) -> None:
        self.fault("edit", action={"remove": ["errors.*.context", "numErrors"]}, **self.UPDATE)
        reply = self.batch(touch(self.a, "t1", firstname="A"), touch("999", "t2"))
        self.assertEqual(self.written(reply, 207), [self.a])
        self.assertNotIn("context", reply.json()["errors"][0])
        self.assertNotIn("numErrors", reply.json())
        self.assertEqual(reply.json()["errors"][0]["category"], "OBJECT_NOT_FOUND")

    def test_edit_results(self) -> None:
        self.fault("edit", action={"remove": ["results.*.objectWriteTraceId", "results.-1", "results.7"]}, **self.UPDATE)
        results = self.update().json()["results"]
        self.assertEqual(len(results), 2)
        self.assertFalse(any("objectWriteTraceId" in record for record in results))
        self.assertEqual(self.values(), ["new", "new", "new"])
        action = {"status": 200, "replace": {"results": [], "errors": [], "links.self": "x", "status": "PENDING"}}
        self.fault("edit", action=action, **self.UPDATE)
        reply = self.batch(touch("999", "t1"))
        self.assertEqual((reply.status, reply.json()["results"], reply.json()["errors"]), (200, [], []))
        self.assertEqual((reply.json()["status"], "links" in reply.json()), ("PENDING", False))

    def test_edit_replaces_in_every_item(self) -> None:
        self.fault("edit", action={"replace": {"results.*.id": "1", "results.0.archived": True}}, path="?limit=2")
        first, second = self.get(f"{CONTACTS}?limit=2")["results"]
        self.assertEqual((first["id"], second["id"], first["archived"], second["archived"]), ("1", "1", True, False))

    def test_edit_removes_every_item(self) -> None:
        self.fault("edit", action={"remove": ["results.*", "paging"]}, path="?limit=3")
        self.assertEqual(self.get(f"{CONTACTS}?limit=3"), {"results": []})

    def test_edit_leaves_an_empty_answer_alone(self) -> None:
        self.fault("edit", action={"remove": ["results"]})
        self.assertEqual(self.call("DELETE", f"{CONTACTS}/{self.a}").status, 204)

    def test_dropped_inputs_are_neither_written_nor_reported(self) -> None:
        self.fault("edit", action={"drop_inputs": [0, -1]}, **self.UPDATE)
        reply = self.update()
        self.assertEqual(self.written(reply), [self.b])
        self.assertNotIn("errors", reply.json())
        self.assertEqual(self.values(), ["old", "new", "old"])

    def test_property_deleted_in_mid_run(self) -> None:
        self.control("POST", "properties/contacts", properties=[{"name": "mine"}])
        steps = [{"op": "archive_property", "type": "contacts", "name": "mine"}]
        self.control("POST", "script", path="/batch/update", nth=2, do=steps)
        self.assertEqual([self.batch(touch(self.a, mine="x")).status for _ in range(3)], [200, 400, 400])
        steps = [{"op": "restore_property", "type": "contacts", "name": "mine"}]
        self.control("POST", "script", path="/batch/update", when="after", do=steps)
        self.assertEqual([self.batch(touch(self.a, mine="y")).status for _ in range(2)], [400, 200])
        self.assertEqual(self.value(self.a, "mine"), "y")


class CountTest(WriteCase):
    def test_inputs_are_counted(self) -> None:
        self.control("DELETE", "journal")
        self.fault("error", action={"status": 500}, nth=3, path="/batch/update")
        for count in (3, 1, 2):
            self.batch(*(touch(i) for i in (self.a, self.b, self.c)[:count]))
        self.batch_read([self.a, self.b])
        self.call("POST", f"{CONTACTS}/batch/update", b"not json")
        self.assertEqual([entry["inputs"] for entry in self.control("GET", "journal")], [3, 1, 2, 2, 0])
        counts = {(row["path"].rsplit("/", 1)[1], row["status"]): row for row in self.control("GET", "journal/summary")}
        shown = {key: (row["count"], row["inputs"]) for key, row in counts.items()}
        self.assertEqual(
            shown, {("update", 200): (2, 4), ("update", 500): (1, 2), ("read", 200): (1, 2), ("update", 400): (1, 0)}
        )

    def test_bodies_on_demand(self) -> None:
        self.control("DELETE", "journal")
        self.batch(touch(self.a, firstname="A"))
        (entry,) = self.control("GET", "journal")
        self.assertEqual(entry["body"]["inputs"][0]["properties"], {"firstname": "A"})
        (entry,) = self.control("GET", "journal?bodies=false")
        self.assertNotIn("body", entry)
        self.config(journal_bodies=False)
        self.batch(touch(self.a, firstname="A"), touch(self.b))
        entry = self.control("GET", "journal")[1]
        self.assertEqual((entry["body"], entry["inputs"]), (None, 2))
