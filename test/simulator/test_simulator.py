"""Tests of the HubSpot simulator: reading, single writes, faults, control, transport. See harness.py."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import unittest
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import harness
from harness import CONTACTS, OBJECTS, PROGRAM, PYTHON, Reply, Running, SimulatorCase, wait_until, where

DAY_MS = 86_400_000

setUpModule, tearDownModule = harness.start, harness.stop


class ListTest(SimulatorCase):
    def test_versions(self) -> None:
        for version, status in (("2026-09", 200), ("2026-03", 200), ("2025-03", 404), ("v3", 404)):
            self.assertEqual(self.call("GET", f"/crm/objects/{version}/contacts").status, status)

    def test_types_by_name_and_id(self) -> None:
        self.assertEqual(self.ids(), self.ids(f"{OBJECTS}/0-1?limit=100"))
        self.assert_error(self.call("GET", f"{OBJECTS}/unicorns"), 400)

    def test_custom_type(self) -> None:
        made = self.control("POST", "types", name="courses", properties=["title"])
        self.create("courses", title="A1")
        record = self.get(f"{OBJECTS}/{made['objectTypeId']}?properties=title")["results"][0]
        self.assertEqual(record["properties"]["title"], "A1")
        self.assertIn("hs_createdate", record["properties"])
        self.assertEqual(self.get("/crm-object-schemas/2026-09/schemas")["results"][0]["name"], "courses")

    def test_paging(self) -> None:
        self.assertEqual(len(self.get(CONTACTS)["results"]), 10)
        first = self.get(f"{CONTACTS}?limit=20&properties=email")
        after = first["paging"]["next"]["after"]
        self.assertIn(f"limit=20&properties=email&after={after}", first["paging"]["next"]["link"])
        second = self.get(f"{CONTACTS}?limit=20&after={after}")
        self.assertEqual(second["results"][0]["id"], after)
        self.assertNotIn("paging", second)
        self.assertEqual([r["id"] for r in first["results"] + second["results"]], self.ids())

    def test_ids_ascend_as_numbers_and_some_are_large(self) -> None:
        ids = self.ids()
        self.assertEqual(ids, sorted(ids, key=int))
        self.assertGreater(int(ids[-1]), 2**53)
        self.assertNotEqual(ids, sorted(ids))

    def test_limits_of_parameters(self) -> None:
        for query in ("limit=101", "limit=0", "limit=x", "after=x", "limit=51&propertiesWithHistory=email"):
            self.assert_error(self.call("GET", f"{CONTACTS}?{query}"), 400)

    def test_properties(self) -> None:
        default = {"createdate", "email", "firstname", "lastname", "hs_object_id", "lastmodifieddate"}
        self.assertEqual(set(self.get(CONTACTS)["results"][0]["properties"]), default)
        record_id = self.create(firstname="", lastname="X")
        record = self.get(f"{CONTACTS}/{record_id}?properties=firstname,phone,no_such")["properties"]
        self.assertEqual(record["firstname"], "")
        self.assertIsNone(record["phone"])
        self.assertNotIn("no_such", record)

    def test_record_shape(self) -> None:
        record = self.get(f"{CONTACTS}?properties=num_notes")["results"][0]
        self.assertIsInstance(record["id"], str)
        self.assertEqual(record["createdAt"], record["properties"]["createdate"])
        self.assertEqual(record["updatedAt"], record["properties"]["lastmodifieddate"])
        self.assertRegex(record["createdAt"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertIs(record["archived"], False)
        self.assertNotIn("archivedAt", record)
        self.assertIsInstance(record["properties"]["num_notes"], str)

    def test_too_long_url(self) -> None:
        self.assertEqual(self.call("GET", f"{CONTACTS}?properties={'x' * 16_000}").status, 200)
        self.assertEqual(self.call("GET", f"{CONTACTS}?properties={'x' * 16_400}").status, 414)

    def test_unknown_paths_and_methods(self) -> None:
        self.assertEqual(self.call("GET", "/no/such/path").status, 404)
        self.assertEqual(self.call("PUT", CONTACTS).status, 405)


class ReadTest(SimulatorCase):
    def test_single(self) -> None:
        record = self.get(f"{CONTACTS}?limit=1&properties=email")["results"][0]
        self.assertEqual(self.get(f"{CONTACTS}/{record['id']}")["id"], record["id"])
        email = quote(record["properties"]["email"].upper())
        self.assertEqual(self.get(f"{CONTACTS}/{email}?idProperty=email")["id"], record["id"])
        self.assert_error(self.call("GET", f"{CONTACTS}/999"), 404, "OBJECT_NOT_FOUND")
        self.assert_error(self.call("GET", f"{CONTACTS}/x?idProperty=phone"), 400)

    def test_archived_needs_the_parameter(self) -> None:
        record_id = self.ids()[0]
        self.control("POST", f"objects/contacts/{record_id}/archive")
        self.assertEqual(self.call("GET", f"{CONTACTS}/{record_id}").status, 404)
        self.assertTrue(self.get(f"{CONTACTS}/{record_id}?archived=true")["archived"])

    def test_batch_read_order_and_missing(self) -> None:
        ids = self.ids()[:20]
        reply = self.batch_read(ids, properties=["email"])
        self.assertEqual(reply.status, 200)
        results = [record["id"] for record in reply.json()["results"]]
        self.assertEqual(sorted(results), sorted(ids))
        self.assertNotEqual(results, ids)
        reply = self.batch_read([*ids[:2], "998", "999"])
        self.assertEqual(reply.status, 207)
        body = reply.json()
        self.assertEqual((len(body["results"]), body["numErrors"], body["status"]), (2, 1, "COMPLETE"))
        self.assertEqual(body["errors"][0]["category"], "OBJECT_NOT_FOUND")
        self.assertEqual(body["errors"][0]["context"]["ids"], ["998", "999"])
        self.assertIn("CONTACT", body["errors"][0]["message"])

    def test_batch_read_limits(self) -> None:
        self.assertEqual(self.batch_read([str(n) for n in range(100)]).status, 207)
        self.assert_error(self.batch_read([str(n) for n in range(101)]), 400)
        self.assert_error(self.batch_read([]), 400)

    def test_batch_read_by_email(self) -> None:
        record_id = self.create(email="main@example.com", hs_additional_emails="old@example.com;older@example.com")
        for email in ("MAIN@example.com", "older@example.com"):
            results = self.batch_read([email], idProperty="email").json()["results"]
            self.assertEqual([record["id"] for record in results], [record_id])
        self.assertEqual(self.batch_read(["nobody@example.com"], idProperty="email").status, 207)
        self.assert_error(self.batch_read(["x"], idProperty="phone"), 400)

    def test_batch_read_archived(self) -> None:
        first, second = self.ids()[:2]
        self.control("POST", f"objects/contacts/{first}/archive")
        self.assertEqual([r["id"] for r in self.batch_read([first, second]).json()["results"]], [second])
        archived = self.batch_read([first, second], "?archived=true").json()
        self.assertEqual([r["id"] for r in archived["results"]], [first])


class SearchTest(SimulatorCase):
    def test_total_and_paging(self) -> None:
        body = self.search(limit=10).json()
        self.assertEqual((body["total"], len(body["results"]), body["paging"]["next"]["after"]), (30, 10, "10"))
        last = self.search(limit=10, after="20").json()
        self.assertNotIn("paging", last)
        self.assertEqual(len(self.call("POST", f"{CONTACTS}/search", {}).json()["results"]), 10)

    def test_keyset_query(self) -> None:
        """The query a synchronisation uses: modified since, id above the last one, ordered by id."""
        seen: list[str] = []
        filters = [where("lastmodifieddate", "GTE", "0")]
        while True:
            above = where("hs_object_id", "GT", seen[-1] if seen else "0")
            page = self.found(*filters, above, sorts=["hs_object_id"], limit=7)
            if not page:
                break
            seen += page
        self.assertEqual(seen, self.ids())

    def test_downwards(self) -> None:
        """From the highest id down to a bound, as if the answers were not kept."""
        ids = self.ids()
        by_id = {"propertyName": "hs_object_id", "direction": "DESCENDING"}
        above, below = where("hs_object_id", "GT", ids[4]), where("hs_object_id", "LT", ids[20])
        for _ in range(2):
            body = self.search(above, below, sorts=[by_id], limit=6).json()
            self.assertEqual([record["id"] for record in body["results"]], ids[14:20][::-1])
            self.assertEqual((body["total"], body["paging"]["next"]["after"]), (15, "6"))
            body = self.search(above, below, sorts=[by_id], limit=6, after="12").json()
            self.assertEqual([record["id"] for record in body["results"]], ids[5:8][::-1])
            self.assertNotIn("paging", body)
            self.assertEqual(self.found(above, where("hs_object_id", "LT", ids[5]), sorts=[by_id]), [])
        self.config(search_lag_ms=60_000)
        self.patch(ids[19], city="Ulm")
        shown = self.search(above, below, sorts=[by_id], limit=1, properties=["city"]).json()["results"][0]
        self.assertNotEqual(shown["properties"]["city"], "Ulm")
        self.config(search_lag_ms=0)
        shown = self.search(above, below, sorts=[by_id], limit=1, properties=["city"]).json()["results"][0]
        self.assertEqual(shown["properties"]["city"], "Ulm")

    def test_modified_since(self) -> None:
        since = self.now_ms()
        changed = self.ids()[3]
        self.control("PATCH", f"objects/contacts/{changed}", properties={"firstname": "New"})
        self.assertEqual(self.found(where("lastmodifieddate", "GTE", str(since))), [changed])
        self.assertNotIn(changed, self.found(where("lastmodifieddate", "LT", str(since))))
        self.assertEqual(len(self.found(where("lastmodifieddate", "BETWEEN", "0", highValue=str(since - 1)))), 29)

    def test_wrong_modified_property_finds_nothing(self) -> None:
        self.assertEqual(self.found(where("hs_lastmodifieddate", "GTE", "0")), [])
        self.assertEqual(len(self.found(where("hs_lastmodifieddate", "GTE", "0"), type="deals")), 12)

    def test_dates_are_epoch_milliseconds(self) -> None:
        for value in ("2020-11-15", "2020-11-15T00:00:00Z"):
            self.assert_error(self.search(where("createdate", "GTE", value)), 400)

    def test_operators(self) -> None:
        a = self.create(firstname="Ärzte Grün", num_notes="5", lifecyclestage="lead")
        b = self.create(firstname="blue", num_notes="10", lifecyclestage="customer")
        own = where("hs_object_id", "IN", values=[a, b])
        for item, expected in (
            (where("num_notes", "LT", "10"), [a]),
            (where("num_notes", "LTE", "10"), [a, b]),
            (where("num_notes", "GT", "5"), [b]),
            (where("num_notes", "GTE", "5"), [a, b]),
            (where("num_notes", "EQ", "10"), [b]),
            (where("num_notes", "NEQ", "10"), [a]),
            (where("num_notes", "BETWEEN", "4", highValue="6"), [a]),
            (where("firstname", "EQ", "BLUE"), [b]),
            (where("firstname", "IN", values=["blue"]), [b]),
            (where("firstname", "IN", values=["Blue"]), []),
            (where("firstname", "NOT_IN", values=["blue"]), [a]),
            (where("lifecyclestage", "EQ", "lead"), [a]),
            (where("lifecyclestage", "EQ", "Lead"), []),
            (where("lastname", "HAS_PROPERTY"), []),
            (where("lastname", "NOT_HAS_PROPERTY"), [a, b]),
            (where("firstname", "CONTAINS_TOKEN", "grün"), [a]),
            (where("firstname", "CONTAINS_TOKEN", "gr*"), [a]),
            (where("firstname", "NOT_CONTAINS_TOKEN", "grün"), [b]),
        ):
            with self.subTest(item):
                self.assertEqual(self.found(own, item), expected)

    def test_groups_are_alternatives(self) -> None:
        ids = self.ids()
        groups = [{"filters": [where("hs_object_id", "EQ", ids[n])]} for n in (1, 4)]
        self.assertEqual(self.found(filterGroups=groups, sorts=["hs_object_id"]), [ids[1], ids[4]])

    def test_sorts(self) -> None:
        ids = self.ids()
        self.assertEqual(self.found(sorts=["-hs_object_id"]), ids[::-1])
        for direction, expected in (("ASCENDING", ids), ("DESCENDING", ids[::-1])):
            self.assertEqual(self.found(sorts=[{"propertyName": "hs_object_id", "direction": direction}]), expected)
        by_name = [r["properties"]["lastname"] for r in self.search(sorts=["lastname"]).json()["results"]]
        self.assertEqual(by_name, sorted(by_name, key=str.lower))
        self.assert_error(self.search(sorts=["email", "phone"]), 400)

    def test_text_query(self) -> None:
        record_id = self.create(firstname="Xaver", email="xaver@example.com")
        self.assertEqual(self.found(query="xav"), [record_id])

    def test_limits(self) -> None:
        one = where("email", "HAS_PROPERTY")
        self.assertEqual(self.search(limit=200).status, 200)
        self.assert_error(self.search(limit=201), 400)
        self.assert_error(self.search(after="x"), 400)
        self.assert_error(self.search(filterGroups=[{"filters": [one]}] * 6), 400)
        self.assert_error(self.search(filterGroups=[{"filters": [one] * 7}]), 400)
        self.assertEqual(self.search(filterGroups=[{"filters": [one] * 6}] * 3).status, 200)
        self.assert_error(self.search(filterGroups=[{"filters": [one] * 5}] * 4), 400)
        self.assert_error(self.search(where("email", "LIKE", "x")), 400)
        self.assert_error(self.search(where("email", "IN", "x")), 400)
        self.assert_error(self.search(properties=["x" * 3000]), 400)

    def test_ten_thousand(self) -> None:
        self.control("POST", "reset", contacts=10_050)
        last = self.search(limit=200, after="9800").json()
        self.assertEqual((last["total"], last["paging"]["next"]["after"]), (10_050, "10000"))
        self.assert_error(self.search(limit=200, after="10000"), 400)

    def test_malformed_bodies(self) -> None:
        for body in ({"properties": "email"}, {"filterGroups": [1]}, {"filterGroups": {}}, {"sorts": [1]}):
            self.assert_error(self.call("POST", f"{CONTACTS}/search", body), 400)
        self.assert_error(self.call("POST", f"{CONTACTS}/batch/read", {"inputs": ["1"]}), 400)
        self.assert_error(self.call("POST", CONTACTS, {"properties": [1]}), 400)

    def test_body_has_to_be_json(self) -> None:
        self.assert_error(self.call("POST", f"{CONTACTS}/search", b"{"), 400)
        self.assertEqual(self.call("POST", f"{CONTACTS}/search", b"{}", Content_Type="text/plain").status, 415)

    def test_archived_never_appear(self) -> None:
        record_id = self.ids()[0]
        self.control("POST", f"objects/contacts/{record_id}/archive")
        self.assertNotIn(record_id, self.found())

    def test_index_lag(self) -> None:
        old, gone = self.ids()[:2]
        before = self.get(f"{CONTACTS}/{old}")
        self.config(search_lag_ms=60_000)
        self.control("PATCH", f"objects/contacts/{old}", properties={"firstname": "New"})
        self.control("POST", f"objects/contacts/{gone}/archive")
        created = self.create(firstname="Just created")
        stale = {record["id"]: record for record in self.search().json()["results"]}
        self.assertEqual(stale[old], before)
        self.assertIn(gone, stale)
        self.assertNotIn(created, stale)
        self.assertIn(created, self.ids())
        self.config(clock_offset_ms=60_000)  # by HubSpot's clock, not by ours
        self.assertTrue(wait_until(lambda: created in self.found()))
        self.assertNotIn(gone, self.found())
        self.assertEqual(self.found(where("firstname", "EQ", "new")), [old])


class WriteTest(SimulatorCase):
    def test_create_update_archive(self) -> None:
        made = self.call("POST", CONTACTS, {"properties": {"email": "NEW@Example.com", "firstname": "Ñ"}})
        self.assertEqual(made.status, 201)
        record = made.json()
        self.assertEqual(record["properties"]["email"], "new@example.com")
        path = f"{CONTACTS}/{record['id']}"
        changed = self.call("PATCH", path, {"properties": {"firstname": ""}})
        self.assertEqual((changed.status, changed.json()["properties"]["firstname"]), (200, ""))
        self.assertGreaterEqual(changed.json()["updatedAt"], record["updatedAt"])
        self.assertEqual(self.call("DELETE", path).status, 204)
        self.assertEqual(self.call("GET", path).status, 404)

    def test_existing_contact(self) -> None:
        self.create(email="twice@example.com")
        reply = self.call("POST", CONTACTS, {"properties": {"email": "twice@example.com"}})
        self.assertIn("Existing ID:", self.assert_error(reply, 409, "CONFLICT")["message"])

    def test_required_properties(self) -> None:
        self.assert_error(self.call("POST", CONTACTS, {"properties": {"phone": "1"}}), 400)

    def test_invalid_values(self) -> None:
        path = f"{CONTACTS}/{self.ids()[0]}"
        for name, value, code in (
            ("no_such", "x", "PROPERTY_DOESNT_EXIST"),
            ("email", "nonsense", "INVALID_EMAIL"),
            ("lifecyclestage", "Lead", "INVALID_OPTION"),
            ("hubspot_owner_id", "1", "INVALID_OPTION"),
            ("annualrevenue", "1,000.00", "INVALID_FLOAT"),
            ("date_of_birth", "1583000000001", "INVALID_DATE"),
            ("hs_object_id", "1", "READ_ONLY_VALUE"),
            ("firstname", None, "INVALID_VALUE"),
        ):
            with self.subTest(name):
                body = self.assert_error(self.call("PATCH", path, {"properties": {name: value}}), 400)
                self.assertIn("Property values were not valid", body["message"])
                self.assertEqual(body["errors"][0]["code"], code)
                self.assertEqual(body["errors"][0]["context"]["propertyName"], [name])

    def test_normal_forms(self) -> None:
        path = f"{CONTACTS}/{self.ids()[0]}"
        self.call("PATCH", path, {"properties": {"date_of_birth": str(DAY_MS), "hs_email_optout": True}})
        stored = self.get(f"{path}?properties=date_of_birth,hs_email_optout")["properties"]
        self.assertEqual((stored["date_of_birth"], stored["hs_email_optout"]), ("1970-01-02", "true"))

    def test_lifecycle_stage_moves_forward_only(self) -> None:
        record_id = self.create(lifecyclestage="customer")
        path = f"{CONTACTS}/{record_id}?properties=lifecyclestage"
        for stage, stored in (("lead", "customer"), ("", ""), ("lead", "lead")):
            self.call("PATCH", path, {"properties": {"lifecyclestage": stage}})
            self.assertEqual(self.get(path)["properties"]["lifecyclestage"], stored)

    def test_deal_stage_meaning(self) -> None:
        deal = self.create("deals", dealname="D", dealstage="closedwon")
        names = "hs_is_closed,hs_is_closed_won,hs_deal_stage_probability"
        path = f"{OBJECTS}/deals/{deal}?properties={names}"
        self.assertEqual([self.get(path)["properties"][n] for n in names.split(",")], ["true", "true", "1.0"])
        self.call("PATCH", path, {"properties": {"dealstage": "closedlost"}})
        self.assertEqual([self.get(path)["properties"][n] for n in names.split(",")], ["true", "false", "0.0"])


class LifeTest(SimulatorCase):
    def test_archive_and_restore(self) -> None:
        record_id = self.ids()[0]
        modified = self.get(f"{CONTACTS}/{record_id}")["updatedAt"]
        self.control("POST", f"objects/contacts/{record_id}/archive")
        self.assertNotIn(record_id, self.ids())
        archived = self.get(f"{CONTACTS}?archived=true")["results"]
        self.assertEqual([record["id"] for record in archived], [record_id])
        self.assertIn("archivedAt", archived[0])
        self.assertEqual(archived[0]["updatedAt"], modified)
        self.control("POST", f"objects/contacts/{record_id}/restore")
        self.assertIn(record_id, self.ids())
        self.assertEqual(self.get(f"{CONTACTS}?archived=true")["results"], [])

    def test_restore_and_the_modified_date(self) -> None:
        path = f"{CONTACTS}/{self.ids()[0]}"
        for moves in (False, True):
            self.config(restore_moves_modified=moves)
            before, since = self.get(path), self.now_ms()
            for step in ("archive", "restore"):
                self.control("POST", f"objects/contacts/{before['id']}/{step}")
            after = self.get(path)
            self.assertEqual(before["updatedAt"] == after["updatedAt"], not moves)
            found = self.found(where("lastmodifieddate", "GTE", str(since)))
            self.assertEqual(found, [before["id"]] if moves else [])

    def test_merged_ids_are_nowhere(self) -> None:
        for new_id in (False, True):
            with self.subTest(new_id=new_id):
                primary, other, third = (self.create(firstname=name) for name in "abc")
                self.control("POST", f"objects/contacts/{other}/merge/{third}")
                survivor = self.control("POST", f"objects/contacts/{primary}/merge/{other}", new_id=new_id)["id"]
                gone = {other, third, *([primary] if new_id else [])}
                truth = self.call("GET", "/_control/objects/contacts").body.splitlines()
                archived = self.ids(f"{CONTACTS}?archived=true&limit=100")
                for ids in (self.ids(), archived, self.found(), [json.loads(line)["id"] for line in truth]):
                    self.assertFalse(gone & set(ids))
                self.assertIn(survivor, self.ids())
                self.assertEqual({self.get(f"{CONTACTS}/{old}")["id"] for old in gone}, {survivor})
                self.control("POST", f"objects/contacts/{survivor}/archive")
                self.assertEqual(self.call("GET", f"{CONTACTS}/{other}").status, 404)
                self.assertEqual(self.get(f"{CONTACTS}/{other}?archived=true")["id"], survivor)
                self.control("POST", f"objects/contacts/{survivor}/purge")
                self.assertEqual(self.call("GET", f"{CONTACTS}/{other}?archived=true").status, 404)

    def test_batch_read_of_merged_ids(self) -> None:
        a, b = self.create(email="a@example.com"), self.create(email="b@example.com")
        survivor = self.control("POST", f"objects/contacts/{a}/merge/{b}", new_id=True)["id"]
        for more in ({}, {"idProperty": "hs_object_id"}):
            body = self.batch_read([a, b, survivor], **more).json()
            self.assertEqual([record["id"] for record in body["results"]], [survivor])
            self.assertEqual(body["errors"][0]["context"]["ids"], [a, b])
        self.assertEqual(self.batch_read(["b@example.com"], idProperty="email").json()["results"][0]["id"], survivor)
        self.config(batch_read_resolves_merged=True)
        reply = self.batch_read([a, b, survivor])
        self.assertEqual((reply.status, [record["id"] for record in reply.json()["results"]]), (200, [survivor]))
        self.control("POST", f"objects/contacts/{survivor}/purge")
        self.assertEqual(self.batch_read([a, b]).json()["errors"][0]["context"]["ids"], [a, b])

    def test_too_many_merges(self) -> None:
        full = self.create(hs_merged_object_ids=";".join(str(n) for n in range(249)))
        body = {"primaryObjectId": full, "objectIdToMerge": self.create(firstname="One more")}
        self.assert_error(self.call("POST", f"{CONTACTS}/merge", body), 414)

    def test_merge(self) -> None:
        primary = self.create(email="a@example.com")
        other = self.create(email="b@example.com", firstname="B")
        self.control("POST", f"objects/contacts/{primary}/merge/{other}")
        path = f"{CONTACTS}/{other}?properties=hs_merged_object_ids,hs_additional_emails,firstname"
        survivor = self.get(path)
        self.assertEqual(survivor["id"], primary)
        self.assertEqual(survivor["properties"]["hs_merged_object_ids"], other)
        self.assertEqual(survivor["properties"]["hs_additional_emails"], "b@example.com")
        self.assertEqual(survivor["properties"]["firstname"], "B")
        self.assertNotIn(other, self.ids())
        self.assertEqual(self.get(f"{CONTACTS}?archived=true")["results"], [])
        self.assertEqual(self.batch_read([other]).json()["errors"][0]["context"]["ids"], [other])
        self.config(batch_read_resolves_merged=True)
        self.assertEqual(self.batch_read([other]).json()["results"][0]["id"], primary)

    def test_merge_endpoint_and_chains(self) -> None:
        a, b, c = (self.create(email=f"{name}@example.com") for name in "abc")
        for primary, other in ((b, c), (a, b)):
            body = {"primaryObjectId": primary, "objectIdToMerge": other}
            self.assertEqual(self.call("POST", f"{CONTACTS}/merge", body).status, 200)
        survivor = self.get(f"{CONTACTS}/{c}?properties=hs_merged_object_ids")
        self.assertEqual(survivor["id"], a)
        self.assertEqual(set(survivor["properties"]["hs_merged_object_ids"].split(";")), {b, c})

    def test_merge_into_a_new_id(self) -> None:
        a, b = self.create(email="a@example.com"), self.create(email="b@example.com")
        survivor = self.control("POST", f"objects/contacts/{a}/merge/{b}", new_id=True)["id"]
        self.assertNotIn(survivor, (a, b))
        self.assertEqual({self.get(f"{CONTACTS}/{old}")["id"] for old in (a, b)}, {survivor})

    def test_purge_and_gdpr_delete(self) -> None:
        first, second = self.ids()[:2]
        self.control("POST", f"objects/contacts/{first}/purge")
        self.assertEqual(self.call("POST", f"{CONTACTS}/gdpr-delete", {"objectId": second}).status, 204)
        self.control("POST", f"objects/contacts/{self.ids()[0]}/archive")
        bin_path = f"{CONTACTS}?archived=true"
        self.call("POST", f"{CONTACTS}/gdpr-delete", {"objectId": self.ids(bin_path)[0]})
        self.assertEqual(self.ids(bin_path), [])
        self.assertEqual(len(self.ids()), 27)
        self.assertEqual(self.get(f"{CONTACTS}?archived=true")["results"], [])
        self.assertEqual(self.call("GET", f"{CONTACTS}/{first}").status, 404)


class HistoryTest(SimulatorCase):
    def test_shape(self) -> None:
        before = self.now_ms()
        made = self.call("POST", CONTACTS, {"properties": {"email": "h@example.com", "firstname": "A"}}).json()["id"]
        self.patch(made, firstname="B")
        record = self.get(f"{CONTACTS}/{made}?propertiesWithHistory=firstname,lastname,no_such&properties=email")
        self.assertEqual(set(record["propertiesWithHistory"]), {"firstname", "lastname"})
        self.assertEqual(record["propertiesWithHistory"]["lastname"], [])
        self.assertEqual(record["properties"]["email"], "h@example.com")
        newest, oldest = record["propertiesWithHistory"]["firstname"]
        self.assertEqual((newest["value"], oldest["value"]), ("B", "A"))
        self.assertEqual((newest["sourceType"], oldest["sourceType"]), ("CRM_UI", "INTEGRATION"))
        self.assertIsInstance(newest["updatedByUserId"], int)
        self.assertNotIn("updatedByUserId", oldest)
        self.assertEqual(oldest["timestamp"], record["createdAt"])
        self.assertRegex(newest["timestamp"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        true = self.history("firstname")[made]
        self.assertEqual([entry["value"] for entry in true], ["A", "B"])
        self.assertLessEqual(before, true[0]["timestamp"])
        self.assertLess(true[0]["timestamp"], true[1]["timestamp"])

    def test_endpoints_agree(self) -> None:
        record_id = self.ids()[4]
        self.patch(record_id, city="Ulm")
        query = "propertiesWithHistory=city,hubspot_owner_id&limit=50"
        listed = self.get(f"{CONTACTS}?{query}")["results"]
        body = {"properties": [], "propertiesWithHistory": ["hubspot_owner_id", "city"]}
        read = self.batch_read([record["id"] for record in listed], **body).json()["results"]
        self.assertEqual(sorted(read, key=lambda record: int(record["id"])), listed)
        self.assertEqual(self.get(f"{CONTACTS}/{record_id}?{query}"), listed[4])
        self.assertEqual(listed[4]["propertiesWithHistory"]["city"][0]["value"], "Ulm")
        self.assertNotIn("city", listed[4]["properties"])
        self.assertNotIn("propertiesWithHistory", self.search(propertiesWithHistory=["city"]).json()["results"][0])

    def test_limits(self) -> None:
        ids = [str(number) for number in range(51)]
        self.assertEqual(self.batch_read(ids[:50], propertiesWithHistory=["email"]).status, 207)
        self.assertEqual(self.batch_read(ids, propertiesWithHistory=[]).status, 207)
        self.assert_error(self.batch_read(ids, propertiesWithHistory=["email"]), 400)
        self.assert_error(self.batch_read(ids[:1], propertiesWithHistory="email"), 400)

    def test_seeded_records(self) -> None:
        self.control("POST", "reset", contacts=200)
        self.control("POST", f"objects/contacts/{self.ids()[0]}/archive")
        created = {}
        for record in map(json.loads, self.call("GET", "/_control/objects/contacts").body.splitlines()):
            created[record["id"]] = record
        owners, names = self.history("hubspot_owner_id"), self.history("firstname")
        self.assertEqual(list(owners), list(created))
        for record_id, record in created.items():
            for name, entries in (("hubspot_owner_id", owners[record_id]), ("firstname", names[record_id])):
                value = record["properties"][name]
                self.assertEqual([entry["value"] for entry in entries][-1:], [] if value is None else [value])
        self.assertEqual({len(entries) for entries in names.values()}, {0, 1})
        self.assertLessEqual({1, 2, 3}, {len(entries) for entries in owners.values()})
        for entries in owners.values():
            values = [entry["value"] for entry in entries]
            self.assertFalse(any(a == b for a, b in zip(values, values[1:])))
            self.assertEqual(entries, sorted(entries, key=lambda entry: entry["timestamp"]))
        self.control("POST", "reset", contacts=200)
        self.assertEqual(self.history("hubspot_owner_id"), owners)

    def test_changes_keep_what_was_before(self) -> None:
        changed = max(self.history("hubspot_owner_id").items(), key=lambda item: len(item[1]))[0]
        before = self.history("hubspot_owner_id")[changed]
        for value in ("1", "1", "", "2"):
            self.patch(changed, hubspot_owner_id=value)
        after = self.history("hubspot_owner_id")
        self.assertEqual(after[changed][: len(before)], before)
        self.assertEqual([entry["value"] for entry in after[changed][len(before) :]], ["1", "", "2"])
        stamps = [entry["timestamp"] for entry in after[changed]]
        self.assertEqual(stamps, sorted(set(stamps)))

    def test_what_adds_an_entry(self) -> None:
        record_id = self.ids()[2]
        self.control("POST", f"objects/contacts/{record_id}/archive")
        self.control("POST", f"objects/contacts/{record_id}/restore")
        self.control("POST", "touch/contacts", count=5)
        self.assertEqual(len(self.history("country")[record_id]), 1)
        stamp = self.now_ms() - 5
        self.control("POST", "touch/contacts", count=5, at_ms=stamp, properties={"country": "Malta"})
        first, last = self.history("country")[record_id]
        self.assertEqual((last["value"], last["timestamp"]), ("Malta", stamp))
        self.control("POST", "touch/contacts", ids=[record_id], at_ms=1, properties={"country": None})
        cleared = self.history("country")[record_id][-1]
        self.assertEqual((cleared["value"], cleared["timestamp"]), ("", stamp + 1))
        self.assertLess(first["timestamp"], stamp)

    def test_dates_and_ids(self) -> None:
        record_id = self.ids()[0]
        self.patch(record_id, city="Ulm")
        record = self.get(f"{CONTACTS}/{record_id}?propertiesWithHistory=hs_object_id,createdate,lastmodifieddate")
        for name, stamp in (("hs_object_id", "createdAt"), ("createdate", "createdAt"), ("lastmodifieddate", "updatedAt")):
            (entry,) = record["propertiesWithHistory"][name]
            self.assertEqual((entry["value"], entry["timestamp"]), (record["properties"][name], record[stamp]))

    def test_merge(self) -> None:
        for new_id in (False, True):
            primary = self.create(firstname="A", city="Ulm")
            self.patch(primary, city="Bonn")
            other = self.create(firstname="B", city="Rom", phone="1")
            survivor = self.control("POST", f"objects/contacts/{primary}/merge/{other}", new_id=new_id)["id"]
            self.assertNotIn(other, self.history("phone"))
            self.assertEqual([entry["value"] for entry in self.history("city")[survivor]], ["Ulm", "Bonn"])
            (phone,) = self.history("phone")[survivor]
            self.assertEqual((phone["value"], phone["sourceType"]), ("1", "MERGE_OBJECTS"))

    def test_merge_of_seeded_records_into_a_new_id(self) -> None:
        names = ("hubspot_owner_id", "firstname")
        before = [self.history(name) for name in names]
        primary = max(before[0].items(), key=lambda item: len(item[1]))[0]
        other = next(record_id for record_id in self.ids() if record_id != primary)
        survivor = self.control("POST", f"objects/contacts/{primary}/merge/{other}", new_id=True)["id"]
        for name, old in zip(names, before):
            entries = self.history(name)
            self.assertEqual(entries[survivor][: len(old[primary])], old[primary])
            self.assertNotIn(primary, entries)

    def test_an_id_used_again_has_no_past(self) -> None:
        record_id = self.create(firstname="A")
        self.patch(record_id, firstname="B")
        self.control("POST", f"objects/contacts/{record_id}/purge")
        self.control("POST", "objects/contacts", records=[{"id": record_id, "properties": {"firstname": "C"}}])
        self.assertEqual([entry["value"] for entry in self.history("firstname")[record_id]], ["C"])

    def test_switched_off(self) -> None:
        path = f"{CONTACTS}?propertiesWithHistory=email&limit=2"
        with_history = self.call("GET", path, Accept_Encoding="gzip").body
        self.config(property_history=False)
        for record in json.loads(gzip.decompress(self.call("GET", path, Accept_Encoding="gzip").body))["results"]:
            self.assertNotIn("propertiesWithHistory", record)
            self.assertNotIn("propertiesWithHistory", self.get(f"{CONTACTS}/{record['id']}?propertiesWithHistory=email"))
            read = self.batch_read([record["id"]], propertiesWithHistory=["email"]).json()["results"][0]
            self.assertNotIn("propertiesWithHistory", read)
        self.config(property_history=True)
        self.assertEqual(self.call("GET", path, Accept_Encoding="gzip").body, with_history)

    def test_unknown_property(self) -> None:
        self.assertEqual(self.call("GET", "/_control/history/contacts/no_such").status, 400)


class HiddenTest(SimulatorCase):
    def test_hidden_everywhere_but_in_the_truth(self) -> None:
        ids = self.ids()
        live, archived = ids[3], ids[5]
        self.control("POST", f"objects/contacts/{archived}/archive")
        truth = self.call("GET", "/_control/objects/contacts").body
        counts = self.control("GET", "state")["objects"]["contacts"]
        self.assertEqual(self.control("POST", "hide/contacts", ids=[live, archived, live]), {"hidden": 2})
        self.assertEqual(self.control("GET", "hide/contacts"), {"ids": [live, archived]})
        self.assertEqual(self.ids(), [i for i in ids if i not in (live, archived)])
        self.assertEqual(self.ids(f"{CONTACTS}?archived=true"), [])
        self.assertNotIn(live, self.found())
        self.assertEqual(self.found(where("hs_object_id", "EQ", live)), [])
        reply = self.batch_read([live, ids[0]])
        self.assertEqual((reply.status, reply.json()["errors"][0]["context"]["ids"]), (207, [live]))
        self.assertEqual(self.batch_read([archived], "?archived=true").json()["results"], [])
        self.assert_error(self.call("GET", f"{CONTACTS}/{live}"), 404, "OBJECT_NOT_FOUND")
        self.assertEqual(self.call("GET", f"{CONTACTS}/{archived}?archived=true").status, 404)
        self.assertEqual(self.call("DELETE", f"{CONTACTS}/{live}").status, 404)
        self.assertEqual(self.call("GET", "/_control/objects/contacts").body, truth)
        self.assertEqual(self.control("GET", "state")["objects"]["contacts"], counts)
        self.assertIn(live, self.history("email"))
        self.control("DELETE", "hide/contacts")
        self.assertEqual(self.ids(), [i for i in ids if i != archived])
        self.assertEqual(self.ids(f"{CONTACTS}?archived=true"), [archived])
        self.assertIn(live, self.found(where("lastmodifieddate", "GTE", "0")))

    def test_every(self) -> None:
        ids = self.ids()
        self.assertEqual(self.control("POST", "hide/contacts", every=7), {"hidden": 4})
        self.assertEqual(self.control("GET", "hide/contacts")["ids"], ids[6::7])
        self.assertEqual(self.ids(), [i for i in ids if i not in ids[6::7]])
        self.assertIn(self.create(firstname="New"), self.ids())
        for body in ({}, {"every": 0}, {"every": True}, {"ids": "12"}, {"ids": ["999"]}):
            self.assertEqual(self.call("POST", "/_control/hide/contacts", body).status, 400)

    def test_changes_of_hidden_records_stay_hidden(self) -> None:
        ids = self.ids()
        self.control("POST", "hide/contacts", ids=ids[:4])
        since = self.now_ms()
        self.patch(ids[0], city="Ulm")
        self.control("POST", "touch/contacts", ids=ids[:2])
        self.control("POST", f"objects/contacts/{ids[1]}/archive")
        survivor = self.control("POST", f"objects/contacts/{ids[2]}/merge/{ids[4]}", new_id=True)["id"]
        self.control("POST", f"objects/contacts/{ids[3]}/purge")
        self.assertEqual(self.found(where("lastmodifieddate", "GTE", str(since))), [])
        self.assertEqual(self.ids(), ids[5:])
        self.assertEqual(self.ids(f"{CONTACTS}?archived=true"), [])
        self.assertEqual(set(self.control("GET", "hide/contacts")["ids"]), {ids[0], ids[1], survivor})
        self.control("DELETE", "hide/contacts")
        self.assertEqual(set(self.ids()), {ids[0], survivor, *ids[5:]})
        self.assertEqual(self.ids(f"{CONTACTS}?archived=true"), [ids[1]])
        self.assertEqual(set(self.found(where("lastmodifieddate", "GTE", str(since)))), {ids[0], survivor})

    def test_search_lag_shows_nothing_hidden(self) -> None:
        record_id = self.ids()[0]
        self.config(search_lag_ms=60_000)
        self.patch(record_id, city="Ulm")
        self.control("POST", "hide/contacts", ids=[record_id])
        self.assertNotIn(record_id, self.found())

    def test_in_a_script(self) -> None:
        steps = [{"op": "hide", "type": "contacts", "every": 2}]
        self.control("POST", "script", path="/contacts", nth=2, do=steps)
        self.control("POST", "script", path="/contacts", nth=3, do=[{"op": "unhide", "type": "contacts"}])
        self.assertEqual([len(self.ids()) for _ in range(3)], [30, 15, 30])


class AccessTest(SimulatorCase):
    def test_token(self) -> None:
        self.assert_error(self.call("GET", CONTACTS, token="wrong"), 401, "INVALID_AUTHENTICATION")
        self.config(token="other")
        self.assertEqual(self.call("GET", CONTACTS, token="other").status, 200)

    def test_scopes(self) -> None:
        self.config(scopes=["crm.objects.contacts.read"])
        self.assertEqual(self.call("GET", CONTACTS).status, 200)
        self.assertEqual(self.call("GET", f"{OBJECTS}/calls").status, 200)
        self.assertEqual(self.call("GET", "/account-info/2026-09/details").status, 200)
        for method, path, scope in (
            ("GET", f"{OBJECTS}/deals", "crm.objects.deals.read"),
            ("GET", f"{OBJECTS}/tickets", "tickets"),
            ("POST", CONTACTS, "crm.objects.contacts.write"),
            ("GET", "/crm/owners/2026-09", "crm.objects.owners.read"),
            ("POST", "/crm/properties/2026-09/contacts", "crm.schemas.contacts.write"),
        ):
            with self.subTest(path):
                reply = self.call(method, path, {} if method == "POST" else None)
                body = self.assert_error(reply, 403, "MISSING_SCOPES")
                self.assertEqual(body["errors"][0]["context"]["requiredGranularScopes"], [scope])


class LimitsTest(SimulatorCase):
    def test_no_headers_when_off(self) -> None:
        self.assertFalse([name for name in self.call("GET", CONTACTS).headers if "ratelimit" in name.lower()])
        self.config(send_limit_headers=True)
        self.assertEqual(self.call("GET", CONTACTS).headers["X-HubSpot-RateLimit-Max"], "190")

    def test_burst(self) -> None:
        self.config(limits=True, burst_max=3)
        replies = [self.call("GET", CONTACTS) for _ in range(4)]
        self.assertEqual([reply.status for reply in replies], [200, 200, 200, 429])
        self.assertEqual(replies[0].headers["X-HubSpot-RateLimit-Remaining"], "2")
        self.assertEqual(replies[0].headers["X-HubSpot-RateLimit-Interval-Milliseconds"], "10000")
        body = self.assert_error(replies[3], 429, None)
        self.assertEqual((body["errorType"], body["policyName"]), ("RATE_LIMIT", "TEN_SECONDLY_ROLLING"))
        self.assertNotIn("Retry-After", replies[3].headers)
        self.config(burst_interval_ms=50)
        self.assertTrue(wait_until(lambda: self.call("GET", CONTACTS).status == 200))

    def test_search(self) -> None:
        self.config(limits=True, burst_max=1, retry_after=7)
        replies = [self.search() for _ in range(6)]
        self.assertEqual([reply.status for reply in replies], [200] * 5 + [429])
        self.assertFalse([name for name in replies[0].headers if "ratelimit" in name.lower()])
        self.assertIn("secondly", self.assert_error(replies[5], 429, "RATE_LIMITS")["message"])
        self.assertEqual(replies[5].headers["Retry-After"], "7")
        self.assertTrue(wait_until(lambda: self.search().status == 200))

    def test_daily(self) -> None:
        self.config(limits=True, daily_max=2)
        self.assertEqual(self.call("GET", CONTACTS).headers["X-HubSpot-RateLimit-Daily-Remaining"], "1")
        self.call("GET", CONTACTS)
        self.assertEqual(self.assert_error(self.call("GET", CONTACTS), 429, None)["policyName"], "DAILY")
        self.config(daily_max=10)
        usage = self.get("/account-info/2026-09/api-usage/daily/private-apps")["results"][0]
        self.assertEqual((usage["usageLimit"], usage["currentUsage"]), (10, 3))
        self.config(daily_max=3, clock_offset_ms=DAY_MS)
        self.assertEqual(self.call("GET", CONTACTS).status, 200)


class FaultTest(SimulatorCase):
    def test_nth_times_and_matching(self) -> None:
        self.fault("status", action={"status": 503}, path="/contacts", method="GET", nth=2, times=2)
        self.call("POST", f"{CONTACTS}/search", {})
        self.assertEqual([self.call("GET", CONTACTS).status for _ in range(4)], [200, 503, 503, 200])
        self.assertEqual(self.control("GET", "faults")[0]["seen"], 4)
        self.control("DELETE", "faults")
        self.fault("status", action={"status": 500}, path_regex=r"limit=1(&|$)", times=0)
        self.assertEqual([self.call("GET", f"{CONTACTS}?limit={n}").status for n in (10, 1, 1)], [200, 500, 500])

    def test_unknown_kind(self) -> None:
        self.assertEqual(self.call("POST", "/_control/faults", {"action": {"kind": "x"}}).status, 400)
        self.assertEqual(self.call("POST", "/_control/faults", {"action": {"kind": "slow"}}).status, 400)

    def faulty(self, kind: str, **action: Any) -> Reply:
        """A list request that meets a fault."""
        self.fault(kind, action=action)
        return self.call("GET", f"{CONTACTS}?limit=5")

    def test_replaced_answers(self) -> None:
        reply = self.faulty("status", status=477, json={"a": 1}, headers={"Retry-After": "3"})
        self.assertEqual((reply.status, reply.json(), reply.headers["Retry-After"]), (477, {"a": 1}, "3"))
        reply = self.faulty("html", status=521)
        self.assertEqual((reply.status, reply.headers.get_content_type()), (521, "text/html"))
        self.assertEqual(self.faulty("empty_body").body, b"")
        reply = self.faulty("redirect", location="http://127.0.0.1:1/")
        self.assertEqual((reply.status, reply.headers["Location"]), (302, "http://127.0.0.1:1/"))
        reply = self.faulty("body", raw_base64=base64.b64encode(b"\xff\x00").decode(), content_type="x/y", status=201)
        self.assertEqual((reply.status, reply.body, reply.headers["Content-Type"]), (201, b"\xff\x00", "x/y"))

    def test_rate_limit_shapes(self) -> None:
        for policy in ("TEN_SECONDLY_ROLLING", "DAILY"):
            self.assertEqual(self.faulty("rate_limit", policy=policy).json()["policyName"], policy)
        reply = self.faulty("rate_limit", policy="SECONDLY", retry_after=2)
        self.assertEqual((reply.status, reply.json()["category"]), (429, "RATE_LIMITS"))
        self.assertEqual(reply.headers["Retry-After"], "2")

    def test_spoiled_answers(self) -> None:
        self.assertRaises(ValueError, self.faulty("truncated_json").json)
        self.assertEqual(self.faulty("wrong_content_type").headers["Content-Type"], "text/plain")
        self.assertEqual(self.faulty("replace_page", results="null").json()["results"], None)
        ids = [record["id"] for record in self.faulty("duplicate_record").json()["results"]]
        self.assertEqual((len(ids), ids[0]), (6, ids[-1]))

    def test_reset(self) -> None:
        with self.assertRaises(ConnectionResetError):
            self.faulty("reset")

    def test_owners_are_told_without_the_api(self) -> None:
        self.fault("hang", times=0)
        owners = [json.loads(line) for line in self.call("GET", "/_control/objects/owners").body.splitlines()]
        archived = self.call("GET", "/_control/objects/owners?archived=true").body.splitlines()
        self.assertEqual([len(owners), len(archived)], [12, sum(owner["archived"] for owner in owners)])

    def test_refuse(self) -> None:
        simulator = Running("--contacts", "12", "--control-port", "0")
        self.addCleanup(simulator.stop)
        port, control = map(int, re.findall(r":(\d+)", simulator.line))
        self.connection = http.client.HTTPConnection("127.0.0.1", control, timeout=5)
        self.addCleanup(self.connection.close)
        self.fault("refuse", action={"ms": 300})
        other = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with self.assertRaises(ConnectionResetError):
            other.request("GET", CONTACTS, headers={"Authorization": "Bearer test-token"})
            other.getresponse()
        self.assertTrue(refused(port))
        self.assertEqual(self.control("GET", "faults")[0]["hits"], 1)
        self.assertTrue(wait_until(lambda: not refused(port)))

    @unittest.skipUnless(shutil.which("openssl"), "needs openssl to make a certificate")
    def test_other_certificate(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file, key = certificate(folder, "own")
            other, other_key = map(Path, certificate(folder, "other"))
            other.write_text(other.read_text() + other_key.read_text())
            simulator = Running("--certificate", file, "--key", key, "--other-certificate", str(other),
                                "--contacts", "12", "--control-port", "0")  # fmt: skip
            self.addCleanup(simulator.stop)
            trusted = ssl.create_default_context(cafile=file)
        port, control = map(int, re.findall(r":(\d+)", simulator.line))
        self.connection = http.client.HTTPConnection("127.0.0.1", control, timeout=5)
        self.addCleanup(self.connection.close)
        self.fault("other_certificate", action={"connections": 2})

        def ask(context: ssl.SSLContext = trusted) -> int:
            connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=5)
            self.addCleanup(connection.close)
            connection.request("GET", CONTACTS, headers={"Authorization": "Bearer test-token"})
            return connection.getresponse().status

        self.assertRaises(ConnectionResetError, ask)
        self.assertRaises(ssl.SSLCertVerificationError, ask)
        self.assertRaises(ssl.SSLCertVerificationError, ask)
        self.assertEqual(ask(), 200)
        self.assertEqual(self.control("GET", "state")["connections"], 1)
        self.assertEqual(ask(), 200)
        self.assertEqual([entry["connections"] for entry in self.control("GET", "journal")[-2:]], [1, 2])
        self.fault("other_certificate", action={"connections": 9})
        self.assertRaises(ConnectionResetError, ask)
        self.assertEqual(self.control("GET", "state")["requests_to_other"], 0)
        self.assertEqual(ask(ssl._create_unverified_context()), 200)
        self.assertEqual(self.control("GET", "state")["requests_to_other"], 1)
        self.control("DELETE", "faults")
        self.assertEqual(ask(), 200)
        self.assertEqual(self.control("GET", "state")["requests_to_other"], 1)

    def test_repeat_previous(self) -> None:
        self.fault("repeat_previous", nth=2, times=0)
        first = self.get(f"{CONTACTS}?limit=5")
        self.assertEqual(self.get(f"{CONTACTS}?limit=5&after={first['paging']['next']['after']}"), first)
        self.assertNotEqual(self.get(f"{CONTACTS}?limit=4"), first)
        self.assertEqual(self.control("GET", "faults")[0]["hits"], 2)

    def test_reset_mid_body(self) -> None:
        self.fault("reset_mid_body", action={"after_bytes": 100})
        with socket.create_connection(("127.0.0.1", harness.running.port), timeout=5) as raw:
            raw.sendall(f"GET {CONTACTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer test-token\r\n\r\n".encode())
            received = b""
            with self.assertRaises(ConnectionResetError):
                while chunk := raw.recv(65536):
                    received += chunk
        self.assertEqual(len(received.partition(b"\r\n\r\n")[2]), 100)

    def test_hang_ends_with_the_client(self) -> None:
        self.fault("hang")
        hanging = http.client.HTTPConnection("127.0.0.1", harness.running.port, timeout=0.1)
        hanging.request("GET", CONTACTS, headers={"Authorization": "Bearer test-token"})
        self.assertRaises(TimeoutError, hanging.getresponse)
        hanging.close()
        closed = lambda: [row["status"] for row in self.control("GET", "journal/summary")] == [None]
        self.assertTrue(wait_until(closed))

    def test_slow_and_delay(self) -> None:
        for kind, action in (("slow", {"bytes_per_second": 10_000}), ("delay", {"ms": 100})):
            begun = time.monotonic()
            self.assertEqual(len(self.faulty(kind, **action).json()["results"]), 5)
            self.assertGreater(time.monotonic() - begun, 0.08)

    def test_cursors(self) -> None:
        after = self.get(f"{CONTACTS}?limit=5")["paging"]["next"]["after"]
        self.fault("repeat_cursor", times=2)
        self.assertEqual(self.get(f"{CONTACTS}?limit=5&after={after}")["paging"]["next"]["after"], after)
        self.assertEqual(self.get(f"{CONTACTS}?limit=5")["paging"]["next"]["after"], self.ids()[0])
        self.fault("repeat_cursor", action={"after": "77"})
        self.assertEqual(self.get(f"{CONTACTS}?limit=5&after={after}")["paging"]["next"]["after"], "77")

    def test_cursor_loop(self) -> None:
        self.fault("stale_cursor_loop", times=0)
        asked, after = [], None
        for _ in range(5):
            page = self.get(f"{CONTACTS}?limit=5" + (f"&after={after}" if after else ""))
            after = page["paging"]["next"]["after"]
            asked.append(after)
        self.assertEqual(asked[0], asked[2])
        self.assertEqual(asked[1], asked[3])
        self.assertNotEqual(asked[0], asked[1])

    def test_search_cursor_is_in_the_body(self) -> None:
        self.fault("repeat_cursor", path="/search")
        self.assertEqual(self.search(limit=5, after="10").json()["paging"]["next"]["after"], "10")

    def test_big_bodies(self) -> None:
        reply = self.faulty("huge_body", bytes=3_000_000)
        self.assertEqual((len(reply.body), reply.json()["results"]), (3_000_000, []))
        reply = self.faulty("gzip_bomb", bytes=20_000_000)
        self.assertLess(len(reply.body), 200_000)
        unpacked = gzip.decompress(reply.body)
        self.assertGreaterEqual(len(unpacked), 20_000_000)
        self.assertEqual(json.loads(unpacked)["results"], [])

    def test_apply_before_losing_the_answer(self) -> None:
        self.fault("status", action={"status": 502, "apply": True}, method="POST")
        body = {"properties": {"email": "lost@example.com"}}
        self.assertEqual(self.call("POST", CONTACTS, body).status, 502)
        self.assert_error(self.call("POST", CONTACTS, body), 409, "CONFLICT")


class ScriptTest(SimulatorCase):
    def test_before_and_after(self) -> None:
        first, second = self.ids()[:2]
        self.control("POST", "script", path="/contacts", nth=2, do=[{"op": "archive", "type": "contacts", "id": first}])
        steps = [{"op": "purge", "type": "contacts", "id": second}]
        self.control("POST", "script", path="/contacts", nth=2, when="after", do=steps)
        pages = [self.ids() for _ in range(3)]
        self.assertEqual([first in page for page in pages], [True, False, False])
        self.assertEqual([second in page for page in pages], [True, True, False])

    def test_all_operations(self) -> None:
        a, b, c = self.ids()[:3]
        steps: list[dict[str, Any]] = [
            {"op": "create", "records": [{"id": 4711, "properties": {"firstname": "S"}}]},
            {"op": "patch", "id": a, "properties": {"firstname": "P"}},
            {"op": "touch", "ids": [a], "at_ms": 1_000},
            {"op": "merge", "primary": a, "other": b},
            {"op": "archive", "id": c},
            {"op": "restore", "id": c},
            {"op": "purge", "id": "999"},
        ]
        self.control("POST", "script", do=[{"type": "contacts", **step} for step in steps])
        ids = self.ids()
        self.assertIn("4711", ids)
        self.assertNotIn(b, ids)
        self.assertIn(c, ids)
        self.assertEqual(len(self.control("GET", "state")["script_errors"]), 1)

    def test_unknown_operation(self) -> None:
        self.assertEqual(self.call("POST", "/_control/script", {"do": [{"op": "dance"}]}).status, 400)


class JournalTest(SimulatorCase):
    def test_entries(self) -> None:
        self.fault("delay", action={"ms": 1}, path="/deals")
        self.call("GET", f"{CONTACTS}?limit=5&properties=a%2Cb", User_Agent="me/1", Accept_Encoding="gzip")
        self.call("POST", f"{OBJECTS}/deals/search", {"limit": 3})
        self.call("GET", CONTACTS, token="wrong")
        first, second, third = self.control("GET", "journal")
        self.assertEqual((first["n"], first["method"], first["path"], first["status"]), (1, "GET", CONTACTS, 200))
        self.assertEqual(first["query"], {"limit": "5", "properties": "a,b"})
        self.assertEqual(first["query_string"], "limit=5&properties=a%2Cb")
        self.assertEqual((first["user_agent"], first["accept_encoding"], first["fault"]), ("me/1", "gzip", None))
        self.assertLess(abs(first["at_ms"] - self.now_ms()), 5_000)
        self.assertEqual((second["body"], second["fault"]), ({"limit": 3}, "delay"))
        self.assertEqual(second["content_type"], "application/json")
        self.assertEqual((third["status"], third["authorization_ok"]), (401, False))
        self.assertEqual([entry["n"] for entry in self.control("GET", "journal?since=2")], [3])
        self.control("DELETE", "journal")
        self.assertEqual(self.control("GET", "journal"), [])

    def test_token_is_not_kept(self) -> None:
        self.call("POST", f"{CONTACTS}/search?hapikey=test-token", {"query": "test-token"})
        self.assertNotIn("test-token", json.dumps(self.control("GET", "journal")))
        self.assertNotIn("test-token", json.dumps(self.control("GET", "state")))

    def test_summary(self) -> None:
        for record_id in self.ids()[:3]:
            self.call("GET", f"{CONTACTS}/{record_id}")
        template = "/crm/objects/{version}/contacts"
        expected = [
            {"method": "GET", "path": path, "status": 200, "count": count, "inputs": 0}
            for path, count in ((template, 1), (template + "/{id}", 3))
        ]
        self.assertEqual(self.control("GET", "journal/summary"), expected)


class ControlTest(SimulatorCase):
    def test_reset_is_repeatable(self) -> None:
        truth = self.call("GET", "/_control/objects/contacts").body
        self.control("POST", "reset", contacts=30, deals=12, owners=12, companies=5)
        self.assertEqual(self.call("GET", "/_control/objects/contacts").body, truth)
        state = self.control("POST", "reset", seed=2, contacts=7, wide=3)
        self.assertEqual(state["objects"]["contacts"], {"live": 7, "archived": 0})
        self.assertEqual(state["requests"], 0)
        records = self.get(f"{CONTACTS}?properties=extra_001,extra_003&limit=7")["results"]
        self.assertTrue(any(record["properties"]["extra_003"] for record in records))

    def test_bad_settings(self) -> None:
        for path, body in (("config", {"nonsense": 1}), ("config", {"limits": 1}), ("reset", {"contacts": -1})):
            self.assertEqual(self.call("POST", f"/_control/{path}", body).status, 400)
        self.assertEqual(self.call("GET", "/_control/nonsense").status, 404)

    def test_truth(self) -> None:
        record_id = self.ids()[0]
        self.control("POST", f"objects/contacts/{record_id}/archive")
        lines = self.call("GET", "/_control/objects/contacts?archived=true").body.splitlines()
        self.assertEqual([json.loads(line)["id"] for line in lines], [record_id])
        record = self.control("GET", f"objects/contacts/{record_id}")
        self.assertGreaterEqual(len(record["properties"]), 30)
        self.assertIn("archivedAt", record)

    def test_create_with_id_and_dates(self) -> None:
        fields = {"id": 5, "properties": {"nickname": "N"}, "createdate": "2024-02-29T00:00:00Z", "lastmodifieddate": 0}
        self.assertEqual(self.control("POST", "objects/contacts", records=[fields])["ids"], ["5"])
        record = self.get(f"{CONTACTS}/5?properties=nickname")
        self.assertEqual(record["properties"]["nickname"], "N")
        self.assertEqual(record["createdAt"], "2024-02-29T00:00:00.000Z")
        self.assertEqual(record["updatedAt"], "1970-01-01T00:00:00.000Z")
        self.assertEqual(self.call("POST", "/_control/objects/contacts", {"records": [{"id": 5}]}).status, 400)

    def test_patch_moves_the_modified_date(self) -> None:
        record_id, before = self.ids()[0], self.now_ms()
        self.control("PATCH", f"objects/contacts/{record_id}", properties={"firstname": "New"})
        self.assertEqual(self.found(where("lastmodifieddate", "GTE", str(before))), [record_id])

    def test_raw_records(self) -> None:
        record_id = self.ids()[0]
        raw = b'{"properties":null,"x":"\xff\\u0000\\ud800"}'
        self.control("POST", f"raw/contacts/{record_id}", base64=base64.b64encode(raw).decode())
        self.assertIn(raw, self.call("GET", f"{CONTACTS}?limit=1").body)
        self.assertIn(raw, self.search().body)
        self.assertIn(raw, self.batch_read([record_id]).body)
        self.control("POST", f"raw/contacts/{record_id}", json='{"id": 7}')
        self.assertEqual(self.get(f"{CONTACTS}?limit=1")["results"], [{"id": 7}])
        self.control("DELETE", f"raw/contacts/{record_id}")
        self.assertEqual(self.ids()[0], record_id)

    def test_odd_text_survives(self) -> None:
        for text in ("\u0000", "\ud800", "\u2028 \"\\ 🎓", "x" * 70_000):
            record_id = self.create(firstname=text)
            self.assertEqual(self.get(f"{CONTACTS}/{record_id}")["properties"]["firstname"], text)

    def test_touch(self) -> None:
        stamp = self.now_ms() - 5
        self.assertEqual(self.control("POST", "touch/contacts", count=20, at_ms=stamp), {"touched": 20})
        equal = where("lastmodifieddate", "EQ", str(stamp))
        self.assertEqual(self.found(equal, sorts=["hs_object_id"]), self.ids()[:20])
        self.control("POST", "touch/contacts", ids=self.ids()[:2], properties={"city": "Ulm"})
        self.assertEqual(len(self.found(where("city", "EQ", "ulm"))), 2)
        self.assertEqual(len(self.found(equal)), 18)

    def test_owners(self) -> None:
        made = self.control("POST", "owners", owners=[{"firstName": "O", "email": "o@school.example"}])["ids"][0]
        self.control("PATCH", f"owners/{made}", lastName="P")
        self.assertEqual(self.get(f"/crm/owners/2026-09/{made}")["lastName"], "P")
        self.control("POST", f"owners/{made}/archive")
        self.assertEqual(self.call("GET", f"/crm/owners/2026-09/{made}").status, 404)
        self.control("POST", f"owners/{made}/restore")
        self.assertEqual(self.get("/crm/owners/2026-09?email=O@school.example")["results"][0]["id"], made)

    def test_pipelines(self) -> None:
        won = {"id": "won2", "label": "Won 2", "probability": "1.0", "isClosed": True}
        self.control("POST", "stage/deals", pipeline="default", **won)
        stages = self.get("/crm/pipelines/2026-09/deals/default/stages")["results"]
        self.assertEqual(stages[-1]["metadata"], {"isClosed": "true", "probability": "1.0"})
        self.control("POST", "pipelines/deals", pipelines=[])
        self.assertEqual(self.get("/crm/pipelines/2026-09/deals"), {"results": []})


class AccountTest(SimulatorCase):
    def test_owners(self) -> None:
        self.control("POST", "reset", owners=30)
        path = "/crm/owners/2026-09"
        live = self.get(f"{path}?limit=500")["results"]
        self.assertEqual((len(live), live), (25, sorted(live, key=lambda owner: int(owner["id"]))))
        self.assertEqual({owner["type"] for owner in live}, {"PERSON", "QUEUE"})
        self.assertTrue(any(owner["teams"] for owner in live))
        archived = self.get(f"{path}?archived=true")["results"]
        self.assertTrue(all(owner["userId"] is None and owner["userIdIncludingInactive"] for owner in archived))
        self.assertEqual(len(archived), 5)
        seen, after = [], ""
        while after is not None:
            page = self.get(f"{path}?limit=10" + (f"&after={quote(after)}" if after else ""))
            seen += page["results"]
            after = page.get("paging", {}).get("next", {}).get("after")
        self.assertEqual(seen, live)
        self.assert_error(self.call("GET", f"{path}?limit=501"), 400)

    def test_pipelines(self) -> None:
        pipelines = self.get("/crm/pipelines/2026-09/deals")["results"]
        meaning = {
            stage["id"]: (stage["metadata"]["isClosed"], stage["metadata"]["probability"])
            for pipeline in pipelines
            for stage in pipeline["stages"]
        }
        self.assertEqual(meaning["closedwon"], ("true", "1.0"))
        self.assertEqual(meaning["closedlost"], ("true", "0.0"))
        self.assertEqual(meaning["appointmentscheduled"], ("false", "0.2"))
        self.assertTrue(any(stage.isdigit() for stage in meaning))
        ticket_stages = self.get("/crm/pipelines/2026-09/tickets")["results"][0]["stages"]
        self.assertEqual({stage["metadata"]["ticketState"] for stage in ticket_stages}, {"OPEN", "CLOSED"})

    def test_property_definitions(self) -> None:
        base = "/crm/properties/2026-09/contacts"
        definitions = {prop["name"]: prop for prop in self.get(base)["results"]}
        self.assertGreaterEqual(len(definitions), 30)
        self.assertTrue(definitions["email"]["hasUniqueValue"])
        self.assertTrue(definitions["hs_object_id"]["modificationMetadata"]["readOnlyValue"])
        self.assertIn("customer", [option["value"] for option in definitions["lifecyclestage"]["options"]])
        self.assertEqual(self.get(f"{base}/email"), definitions["email"])
        self.assert_error(self.call("GET", f"{base}/none"), 404, "OBJECT_NOT_FOUND")

    def test_create_property(self) -> None:
        base = "/crm/properties/2026-09/contacts"
        new = {"name": "total_xp", "label": "XP", "type": "number", "fieldType": "number", "groupName": "progress"}
        self.assert_error(self.call("POST", base, new), 400)
        self.assertEqual(self.call("POST", f"{base}/groups", {"name": "progress", "label": "P"}).status, 201)
        self.assertIn("progress", [group["name"] for group in self.get(f"{base}/groups")["results"]])
        self.assertEqual(self.call("POST", f"{base}/groups", {"name": "progress", "label": "P"}).status, 409)
        self.assertEqual(self.call("POST", base, new).status, 201)
        again = self.assert_error(self.call("POST", base, new), 409, "OBJECT_ALREADY_EXISTS")
        self.assertEqual(again["subCategory"], "Properties.PROPERTY_WITH_NAME_EXISTS")
        self.assertEqual(self.call("DELETE", f"{base}/total_xp").status, 204)
        self.assertEqual(self.call("GET", f"{base}/total_xp").status, 404)
        self.assertEqual(self.call("POST", base, new).status, 201)

    def test_refused_properties(self) -> None:
        good = {"name": "x", "label": "X", "type": "string", "fieldType": "text", "groupName": "contactinformation"}
        for change in ({"name": "X"}, {"name": "a.b"}, {"fieldType": "number"}, {"label": ""}, {"type": "enumeration"},
                       {"type": "datetime", "fieldType": "text"}):  # fmt: skip
            with self.subTest(change):
                self.assert_error(self.call("POST", "/crm/properties/2026-09/contacts", {**good, **change}), 400)

    def test_definitions_by_control(self) -> None:
        new = [{"name": "plain"}, {"name": "Odd-Name.x", "type": "number", "label": "Odd"}, {"name": "kind", "type": "json"}]
        self.assertEqual(
            self.control("POST", "properties/contacts", properties=new)["names"], [fields["name"] for fields in new]
        )
        listed = {prop["name"]: prop for prop in self.get("/crm/properties/2026-09/contacts")["results"]}
        shape = [(listed[f["name"]]["type"], listed[f["name"]]["fieldType"], listed[f["name"]]["label"]) for f in new]
        self.assertEqual(shape, [("string", "text", "Plain"), ("number", "number", "Odd"), ("json", "text", "Kind")])
        made = self.call("POST", CONTACTS, {"properties": {"firstname": "A", "plain": "x", "kind": "{}"}}).json()["id"]
        record = self.get(f"{CONTACTS}/{made}?properties=plain,Odd-Name.x,kind")["properties"]
        self.assertEqual((record["plain"], record["Odd-Name.x"], record["kind"]), ("x", None, "{}"))

    def test_definitions_changed_by_control(self) -> None:
        before = self.get("/crm/properties/2026-09/contacts/email")
        self.control("POST", "properties/contacts", properties=[{"name": "email", "label": "Mail"}])
        after = self.get("/crm/properties/2026-09/contacts/email")
        self.assertEqual(after, {**before, "label": "Mail", "updatedAt": after["updatedAt"]})
        self.assertGreater(after["updatedAt"], before["updatedAt"])
        self.control("POST", "properties/contacts", properties=[{"name": "city", "archived": True}])
        self.assertNotIn("city", self.get(f"{CONTACTS}?properties=city")["results"][0]["properties"])
        for bad in ([{}], [{"name": 1}], [{"name": "x"}, {"name": "y", "colour": "red"}], ["x"], "x"):
            self.assertEqual(self.call("POST", "/_control/properties/contacts", {"properties": bad}).status, 400)
        self.assertEqual(self.call("GET", "/crm/properties/2026-09/contacts/x").status, 404)

    def test_three_thousand_properties(self) -> None:
        self.control("POST", "reset", contacts=60, wide=3_000)
        names = [prop["name"] for prop in self.get("/crm/properties/2026-09/contacts")["results"]]
        self.assertGreater(len(names), 3_000)
        self.assertIn("extra_3000", names)
        self.assertEqual(self.call("GET", f"{CONTACTS}?properties={','.join(names)}").status, 414)
        self.assert_error(self.call("POST", f"{CONTACTS}/search", {"properties": names}), 400)
        ids = self.ids()
        results = self.batch_read(ids, properties=names).json()["results"]
        self.assertEqual(len(results), 60)
        truth = self.control("GET", f"objects/contacts/{results[0]['id']}")
        self.assertEqual(results[0]["properties"], truth["properties"])
        self.assertEqual(set(truth["properties"]), set(names))
        past = self.batch_read(ids[:50], propertiesWithHistory=names).json()["results"][0]
        self.assertEqual(set(past["propertiesWithHistory"]), set(names))

    def test_details(self) -> None:
        details = self.get("/account-info/2026-09/details")
        self.assertIsInstance(details["portalId"], int)
        self.assertIn("timeZone", details)


class DataTest(SimulatorCase):
    def records(self, type: str) -> list[dict[str, Any]]:
        """All records of a type."""
        return [json.loads(line) for line in self.call("GET", f"/_control/objects/{type}").body.splitlines()]

    def test_contacts(self) -> None:
        self.control("POST", "reset", contacts=2_000)
        contacts = self.records("contacts")
        latest = self.now_ms() - 2 * 3_600_000
        for record in contacts:
            self.assertLessEqual(record["createdAt"], record["updatedAt"])
        stamps = self.found(where("lastmodifieddate", "GT", str(latest)))
        self.assertEqual(stamps, [])
        names = "".join(str(record["properties"]["firstname"]) for record in contacts)
        for script in ("\u00e7", "\u0434", "\u03c3", "\u0645", "\u05e9", "\u4f1f", "\ubbfc", "\u0905", "\U0001f393"):
            self.assertIn(script.lower(), names.lower())
        owners = {owner["id"] for archived in ("false", "true")
                  for owner in self.get(f"/crm/owners/2026-09?archived={archived}")["results"]}  # fmt: skip
        used = {record["properties"]["hubspot_owner_id"] for record in contacts} - {None}
        self.assertLessEqual(used, owners)
        phones = [record["properties"]["phone"] for record in contacts]
        self.assertTrue({None, ""} <= set(phones))
        emails = [record["properties"]["email"] for record in contacts if record["properties"]["email"]]
        self.assertEqual(len(emails), len(set(emails)))

    def test_deals(self) -> None:
        self.control("POST", "reset", deals=300)
        deals = [record["properties"] for record in self.records("deals")]
        self.assertTrue(any(re.fullmatch(r"\d+\.\d\d", deal["amount"] or "") for deal in deals))
        self.assertIn(None, {deal["amount"] for deal in deals})
        self.assertEqual(len({deal["pipeline"] for deal in deals}), 2)
        self.assertIn("true", {deal["hs_is_closed_won"] for deal in deals})

    def test_other_types(self) -> None:
        types = ("tickets", "calls", "emails", "meetings", "notes", "tasks")
        self.control("POST", "reset", **{name: 3 for name in types})
        for name in types:
            self.assertEqual(len(self.get(f"{OBJECTS}/{name}")["results"]), 3)


class TransportTest(SimulatorCase):
    def test_date_header_follows_the_clock(self) -> None:
        self.config(clock_offset_ms=-7 * DAY_MS)
        date = parsedate_to_datetime(str(self.call("GET", CONTACTS).headers["Date"]))
        self.assertAlmostEqual(date.timestamp(), time.time() - 7 * 86_400, delta=3)
        created = self.get(f"{CONTACTS}/{self.create(firstname='Then')}")["createdAt"]
        self.assertEqual(created[:10], date.strftime("%Y-%m-%d"))
        self.config(date_header=False)
        self.assertNotIn("Date", self.call("GET", CONTACTS).headers)

    def test_gzip(self) -> None:
        plain = self.call("GET", CONTACTS).body
        for _ in range(2):
            packed = self.call("GET", CONTACTS, Accept_Encoding="gzip, deflate")
            self.assertEqual(packed.headers["Content-Encoding"], "gzip")
            self.assertEqual(gzip.decompress(packed.body), plain)
        self.control("PATCH", f"objects/contacts/{self.ids()[0]}", properties={"firstname": "Other"})
        self.assertIn(b"Other", gzip.decompress(self.call("GET", CONTACTS, Accept_Encoding="gzip").body))
        self.config(gzip=False)
        self.assertNotIn("Content-Encoding", self.call("GET", CONTACTS, Accept_Encoding="gzip").headers)

    def test_gzip_of_equal_pages(self) -> None:
        """Pages with the same records share what is compressed, and differ in what follows the results."""
        paths = [f"{CONTACTS}?limit=3&properties=email,phone", f"{CONTACTS}?properties=phone,email&limit=3&x=1"]
        paths.append(f"{CONTACTS}?limit=3&properties=email")
        paths.append(f"{CONTACTS}?limit=3&properties=email&properties=phone")
        packed = [gzip.decompress(self.call("GET", path, Accept_Encoding="gzip").body) for path in paths]
        self.assertEqual(packed, [self.call("GET", path).body for path in paths])
        self.assertEqual(len(set(packed)), 4)
        results = [json.loads(body)["results"] for body in packed]
        self.assertEqual(results[0], results[1])
        self.assertEqual(results[0], results[3])
        self.assertNotEqual(results[0], results[2])

    def test_old_paths(self) -> None:
        old = "/crm/v3/objects/contacts"
        self.assertEqual(self.get(f"{old}?limit=3")["results"], self.get(f"{CONTACTS}?limit=3")["results"])
        self.assertIn(f"{old}?", self.get(f"{old}?limit=3")["paging"]["next"]["link"])
        self.assertEqual(self.call("PATCH", f"{old}/{self.ids()[0]}", {"properties": {"phone": "1"}}).status, 200)

    def test_latency(self) -> None:
        self.config(latency_ms=60)
        begun = time.monotonic()
        self.call("GET", CONTACTS)
        self.assertGreaterEqual(time.monotonic() - begun, 0.06)

    def test_large_upload_with_expect(self) -> None:
        body = json.dumps({"properties": {"firstname": "x" * 2_000_000}}).encode()
        self.assert_error(self.call("POST", CONTACTS, body, Expect="100-continue"), 400)


class ProcessTest(unittest.TestCase):
    def test_line_and_sigterm_with_a_hanging_request(self) -> None:
        simulator = Running("--contacts", "3")
        self.assertRegex(simulator.line, r"^listening on http://127\.0\.0\.1:\d+\n$")
        connection = http.client.HTTPConnection("127.0.0.1", simulator.port, timeout=5)
        self.addCleanup(connection.close)
        connection.request("POST", "/_control/faults", json.dumps({"action": {"kind": "hang"}}))
        connection.getresponse().read()
        connection.request("GET", CONTACTS)
        begun = time.monotonic()
        self.assertEqual(simulator.stop(), 0)
        self.assertLess(time.monotonic() - begun, 1)

    def start_under_a_parent(self, *options: str) -> int:
        """Start a simulator whose parent leaves at once; returns its port."""
        code = (
            "import subprocess, sys\n"
            "child = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)\n"
            "print(child.pid, child.stdout.readline().strip())\n"
        )
        command = [PYTHON, "-c", code, PYTHON, str(PROGRAM), "--contacts", "3", *options]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return int(output.split()[0])

    def test_dies_with_its_parent(self) -> None:
        pid = self.start_under_a_parent()
        self.assertTrue(wait_until(lambda: not alive(pid)))

    def test_stays_when_asked(self) -> None:
        pid = self.start_under_a_parent("--stay")
        self.assertTrue(alive(pid))
        os.kill(pid, signal.SIGTERM)
        self.assertTrue(wait_until(lambda: not alive(pid)))

    @unittest.skipUnless(shutil.which("openssl"), "needs openssl to make a certificate")
    def test_tls(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file, key = certificate(folder, "own")
            simulator = Running("--certificate", file, "--key", key, "--contacts", "12")
            self.addCleanup(simulator.stop)
            self.assertTrue(simulator.line.startswith("listening on https://127.0.0.1:"))
            trusted = ssl.create_default_context(cafile=file)
        connection = http.client.HTTPSConnection("127.0.0.1", simulator.port, context=trusted, timeout=5)
        self.addCleanup(connection.close)
        connection.request("GET", CONTACTS, headers={"Authorization": "Bearer test-token"})
        page = Reply(connection.getresponse()).json()
        self.assertTrue(page["paging"]["next"]["link"].startswith("https://127.0.0.1:"))


def refused(port: int) -> bool:
    """Whether nobody listens."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def certificate(folder: str, name: str) -> tuple[str, str]:
    """Files with a certificate for 127.0.0.1 that signs itself, and its key."""
    files = f"{folder}/{name}.crt", f"{folder}/{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", files[1], "-out", files[0],
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return files


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    unittest.main()
