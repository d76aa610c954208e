-- What becomes of rows that came with the extension, when they are changed,
-- deleted, and inserted again as a restored dump inserts them; and which
-- filters are accepted.
\getenv srcdir PG_ABS_SRCDIR
\set setup :srcdir '/sql/include/setup.sql'
\i :setup
CREATE EXTENSION hubspot_sync;
CREATE ROLE regress_hubspot_anna;

-- A changed row is no longer a shipped one, so that a dump has it.
UPDATE sync_types SET full_every = '1 day' WHERE sync_type = 'contacts';
UPDATE sync_fields SET property = 'mobilephone'
	WHERE sync_type = 'contacts' AND column_name = 'phone';
UPDATE sync_connections SET token_expires_at = '2030-01-01' WHERE name = 'default';
SELECT sync_type, shipped FROM sync_types ORDER BY 1;
SELECT column_name, shipped FROM sync_fields WHERE sync_type = 'contacts' AND NOT shipped;
SELECT name, shipped FROM sync_connections;

-- A shipped row that is inserted again is changed instead.
INSERT INTO sync_types (sync_type, source, object_type, target_table, key_columns,
		modified_property, full_every, configured_by)
	VALUES ('deals', 'objects', 'deals', 'deals', '{connection_id,hubspot_deal_id}',
		'hs_lastmodifieddate', '2 days', 'regress_hubspot_anna');
SELECT sync_type, full_every, "interval", shipped, configured_by
	FROM sync_types WHERE sync_type = 'deals';
INSERT INTO sync_fields (sync_type, column_name, property)
	VALUES ('deals', 'deal_name', 'title');
SELECT property, shipped FROM sync_fields WHERE sync_type = 'deals' AND column_name = 'deal_name';
-- One that was changed already is a duplicate.
INSERT INTO sync_types (sync_type, object_type, target_table, key_columns)
	VALUES ('contacts', 'contacts', 'contacts', '{connection_id,hubspot_contact_id}');
\echo :SQLSTATE
INSERT INTO sync_fields (sync_type, column_name, property)
	VALUES ('contacts', 'phone', 'phone');
\echo :SQLSTATE

-- Nor may it be changed that way by somebody who may not update it.
GRANT SELECT, INSERT, UPDATE ON sync_types TO regress_hubspot_anna;
CREATE SCHEMA crm AUTHORIZATION regress_hubspot_anna;
SET ROLE regress_hubspot_anna;
CREATE TABLE crm.loot (id text PRIMARY KEY, archived boolean);
INSERT INTO sync_types (sync_type, source, object_type, target_schema, target_table, key_columns)
	VALUES ('owners', 'owners', 'owners', 'crm', 'loot', '{id}');
\echo :SQLSTATE
RESET ROLE;
SELECT sync_type, target_table, shipped FROM sync_types WHERE sync_type = 'owners';

-- The connection that came with the extension stays, and nothing is emptied
-- without a note.
DELETE FROM sync_connections;
\echo :SQLSTATE
UPDATE sync_connections SET name = 'first';
\echo :SQLSTATE
UPDATE sync_connections SET connection_id = gen_random_uuid();
\echo :SQLSTATE
INSERT INTO sync_connections (name) VALUES ('second');
UPDATE sync_connections SET name = 'third' WHERE name = 'second';
DELETE FROM sync_connections WHERE name = 'third';
TRUNCATE sync_connections;
\echo :SQLSTATE
TRUNCATE sync_fields;
\echo :SQLSTATE
TRUNCATE sync_types CASCADE;
\echo :SQLSTATE
-- A field under another key leaves the shipped one removed.
UPDATE sync_fields SET column_name = 'position' WHERE sync_type = 'owners' AND column_name = 'role';
SELECT * FROM sync_removals;
UPDATE sync_fields SET column_name = 'role' WHERE sync_type = 'owners' AND column_name = 'position';
SELECT column_name FROM sync_removals;

-- What was deleted is noted, until it is there again.
DELETE FROM sync_fields WHERE sync_type = 'contacts' AND column_name IN ('status', 'phone');
DELETE FROM sync_types WHERE sync_type = 'owners';
SELECT * FROM sync_removals ORDER BY 1, 2;
INSERT INTO sync_fields (sync_type, column_name, property)
	VALUES ('contacts', 'phone', 'phone');
SELECT * FROM sync_removals WHERE sync_type = 'contacts' ORDER BY 1, 2;
-- Noted in a dump, it deletes the row that CREATE EXTENSION has brought.
DROP EXTENSION hubspot_sync;
CREATE EXTENSION hubspot_sync;
INSERT INTO sync_removals VALUES ('contacts', 'status'), ('owners', NULL), ('none', 'none');
SELECT count(*) FROM sync_fields WHERE sync_type = 'contacts' AND column_name = 'status';
SELECT count(*) FROM sync_types WHERE sync_type = 'owners';
SELECT count(*) FROM sync_fields WHERE sync_type = 'owners';
SELECT count(*) FROM sync_fields WHERE sync_type = 'contacts';

-- Filters are objects by property, of values, nulls, lists and negations.
SELECT filters FROM unnest(ARRAY[
	'{}', '{"pipeline": "default"}', '{"pipeline": ["a", "b", null]}', '{"amount": 12}',
	'{"hubspot_owner_id": {"not": null}, "pipeline": {"not": ["x", "y"]}}', '{"flag": true}'
]) filters
WHERE outcome(format('UPDATE sync_types SET filters = %L WHERE sync_type = ''deals''', filters)) <> 'ok';
SELECT filters, outcome(format('UPDATE sync_types SET filters = %L WHERE sync_type = ''deals''', filters))
FROM unnest(ARRAY[
	'[]', '"pipeline"', 'null', '{"pipeline": []}', '{"pipeline": {}}', '{"pipeline": {"is": "x"}}',
	'{"pipeline": {"not": "x", "or": "y"}}', '{"pipeline": [["x"]]}', '{"pipeline": {"not": {"not": "x"}}}',
	'{"pipe line": "x"}', '{"": "x"}'
]) filters;

-- The schedule and the set of properties are checked as well.
UPDATE sync_types SET "interval" = '1 second' WHERE sync_type = 'deals';
\echo :SQLSTATE
UPDATE sync_types SET property_set = 'some' WHERE sync_type = 'deals';
\echo :SQLSTATE
UPDATE sync_types SET full_strategy = 'guess' WHERE sync_type = 'deals';
\echo :SQLSTATE

DROP EXTENSION hubspot_sync;
DROP TABLE crm.loot;
DROP SCHEMA crm;
DROP ROLE regress_hubspot_anna;
