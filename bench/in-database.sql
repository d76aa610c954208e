-- The row in_database: the same work by functions in PL/Python, as one writes
-- them to have no program beside the database. Each call is one transaction,
-- which stays open while it waits for HubSpot, and nothing is seen of it before
-- its end. Its connection is kept alive; answers may be compressed.

CREATE EXTENSION plpython3u;
CREATE SCHEMA in_database;
CREATE TABLE in_database.contacts (LIKE contacts INCLUDING ALL);
CREATE TABLE in_database.sent (user_id integer PRIMARY KEY, contact_id text, properties jsonb);

-- Reads all contacts by list, or by search those changed since; returns how many.
CREATE FUNCTION in_database.pull(url text, token text, interval_ms integer, names text, since text) RETURNS bigint
LANGUAGE plpython3u AS $$
import gzip, http.client, json, time, urllib.parse

API = "/crm/objects/2026-09/contacts"
connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc)
headers = {"Authorization": f"Bearer {token}", "Accept-Encoding": "gzip", "Content-Type": "application/json"}
store = plpy.prepare("""
    INSERT INTO in_database.contacts AS c (hubspot_contact_id, email, first_name, last_name, phone, owner_id,
        lifecycle_stage, status, created_at, properties, archived, hubspot_updated_at, updated_at, synced_at)
    SELECT id, properties->>'email', properties->>'firstname', properties->>'lastname', properties->>'phone',
        properties->>'hubspot_owner_id', properties->>'lifecyclestage', properties->>'hs_lead_status',
        (properties->>'createdate')::timestamptz, properties, archived, "updatedAt", now(), now()
    FROM jsonb_to_recordset($1::jsonb->'results') AS r(id text, properties jsonb, archived boolean, "updatedAt" timestamptz)
    ON CONFLICT (connection_id, hubspot_contact_id) DO UPDATE SET
        email = excluded.email, first_name = excluded.first_name, last_name = excluded.last_name,
        phone = excluded.phone, owner_id = excluded.owner_id, lifecycle_stage = excluded.lifecycle_stage,
        status = excluded.status, created_at = excluded.created_at, properties = excluded.properties,
        archived = excluded.archived, hubspot_updated_at = excluded.hubspot_updated_at,
        updated_at = excluded.updated_at, synced_at = excluded.synced_at
    WHERE c.hubspot_updated_at IS DISTINCT FROM excluded.hubspot_updated_at""", ["text"])
due = time.monotonic() # when the next request may begin

def request(method, path, body=None):
    nonlocal due
    start = max(due, time.monotonic())
    due = start + interval_ms / 1000
    time.sleep(max(0, start - time.monotonic()))
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != 200:
        plpy.error(f"{path}: {answer.status}")
    return gzip.decompress(text).decode() if answer.getheader("Content-Encoding") == "gzip" else text.decode()

# The page's text goes to SQL as it came; it is parsed here for its cursor.
def take(text):
    plpy.execute(store, [text])
    return json.loads(text)

records = 0
after = ""
while not since:
    page = take(request("GET", f"{API}?limit=100&properties={names}{after}"))
    records += len(page["results"])
    if "paging" not in page:
        return records
    after = "&after=" + page["paging"]["next"]["after"]

last = "0"
while True:
    filters = [{"propertyName": "lastmodifieddate", "operator": "GTE", "value": since},
               {"propertyName": "hs_object_id", "operator": "GT", "value": last}]
    body = {"filterGroups": [{"filters": filters}], "sorts": ["hs_object_id"], "limit": 200,
            "properties": names.split(",")}
    page = take(request("POST", f"{API}/search", json.dumps(body)))
    records += len(page["results"])
    if len(page["results"]) < 200:
        return records
    last = page["results"][-1]["id"]
$$;

-- Sends the students who differ from what was sent last, 100 a request.
CREATE FUNCTION in_database.push(url text, token text, interval_ms integer) RETURNS bigint
LANGUAGE plpython3u AS $$
import http.client, json, time, urllib.parse

connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc)
headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
students = list(plpy.execute("""
    SELECT p.user_id, s.contact_id, p.properties::text FROM bench_progress p JOIN in_database.sent s USING (user_id)
    WHERE s.properties IS DISTINCT FROM p.properties"""))
note = plpy.prepare("""
    UPDATE in_database.sent s SET properties = r.properties
    FROM unnest($1::integer[], $2::jsonb[]) AS r(user_id, properties) WHERE s.user_id = r.user_id""", ["int[]", "text[]"])
due = time.monotonic() # when the next request may begin
for first in range(0, len(students), 100):
    batch = students[first:first + 100]
    start = max(due, time.monotonic())
    due = start + interval_ms / 1000
    time.sleep(max(0, start - time.monotonic()))
    inputs = [{"id": row["contact_id"], "properties": json.loads(row["properties"])} for row in batch]
    connection.request("POST", "/crm/objects/2026-09/contacts/batch/update", json.dumps({"inputs": inputs}), headers)
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != 200 or len(json.loads(text)["results"]) != len(batch):
        plpy.error(f"batch update: {answer.status}")
    plpy.execute(note, [[row["user_id"] for row in batch], [row["properties"] for row in batch]])
return len(students)
$$;
