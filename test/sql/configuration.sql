-- Who may say what is written where, and what a run makes of a configuration
-- that does not fit its target.
\getenv srcdir PG_ABS_SRCDIR
\set setup :srcdir '/sql/include/setup.sql'
\i :setup
CREATE EXTENSION hubspot_sync;
CREATE ROLE regress_hubspot_anna LOGIN;
CREATE ROLE regress_hubspot_berta LOGIN;
GRANT SELECT, INSERT, UPDATE, DELETE ON sync_types, sync_fields
	TO regress_hubspot_anna, regress_hubspot_berta;
GRANT EXECUTE ON FUNCTION trigger_hubspot_sync(text)
	TO regress_hubspot_anna, regress_hubspot_berta;
CREATE SCHEMA crm AUTHORIZATION regress_hubspot_anna;
CREATE VIEW configured AS
	SELECT sync_type, target_table, shipped, configured_by FROM sync_types
	WHERE configured_by LIKE 'regress%' ORDER BY sync_type;
GRANT SELECT ON configured TO PUBLIC;

-- A target may be named by its owner, and the row keeps who did it, whatever
-- he says about that himself.
SET ROLE regress_hubspot_anna;
CREATE TABLE crm.company (id bigint PRIMARY KEY, name text, archived boolean);
INSERT INTO sync_types (sync_type, object_type, target_schema, target_table, key_columns,
		shipped, configured_by)
	VALUES ('companies', 'companies', 'crm', 'company', '{id}', true, 'postgres');
INSERT INTO sync_fields (sync_type, column_name, property, shipped, configured_by)
	VALUES ('companies', 'name', 'name', true, 'postgres');
SELECT * FROM configured;
SELECT shipped, configured_by FROM sync_fields WHERE sync_type = 'companies';
UPDATE sync_types SET shipped = true, configured_by = 'postgres' WHERE sync_type = 'companies';
SELECT * FROM configured;
-- Not by anybody else: the worker would write there as its owner.
INSERT INTO sync_types (sync_type, object_type, target_table, key_columns)
	VALUES ('mine', 'companies', 'contacts', '{connection_id,hubspot_contact_id}');
\echo :SQLSTATE
UPDATE sync_types SET target_schema = NULL, target_table = 'contacts' WHERE sync_type = 'companies';
\echo :SQLSTATE
UPDATE sync_types SET delete_policy = 'delete' WHERE sync_type = 'contacts';
\echo :SQLSTATE
INSERT INTO sync_fields (sync_type, column_name, property)
	VALUES ('contacts', 'merged_into', 'hs_merged_object_ids');
\echo :SQLSTATE
UPDATE sync_fields SET property = 'phone' WHERE sync_type = 'contacts' AND column_name = 'email';
\echo :SQLSTATE
UPDATE sync_fields SET sync_type = 'deals' WHERE sync_type = 'companies';
\echo :SQLSTATE
SET ROLE regress_hubspot_berta;
UPDATE sync_types SET object_type = 'tickets' WHERE sync_type = 'companies';
\echo :SQLSTATE
INSERT INTO sync_fields (sync_type, column_name, property) VALUES ('companies', 'archived', 'x');
\echo :SQLSTATE
INSERT INTO sync_fields (sync_type, column_name, property) VALUES ('company', 'name', 'name');
\echo :SQLSTATE
INSERT INTO sync_types (sync_type, object_type, target_schema, target_table, key_columns)
	VALUES ('theirs', 'companies', 'crm', 'company', '{id}');
\echo :SQLSTATE
RESET ROLE;
SELECT count(*) AS changed FROM sync_types WHERE NOT shipped AND sync_type <> 'companies';
SELECT count(*) AS changed FROM sync_fields WHERE NOT shipped AND sync_type <> 'companies';

-- A member of the owner may. When he is no member any more, his rows do not
-- count any more either.
GRANT regress_hubspot_anna TO regress_hubspot_berta;
SET ROLE regress_hubspot_berta;
UPDATE sync_types SET full_every = '1 day' WHERE sync_type = 'companies';
SELECT * FROM configured;
BEGIN;
SELECT trigger_hubspot_sync('companies') IS NOT NULL AS requested;
ROLLBACK;
RESET ROLE;
REVOKE regress_hubspot_anna FROM regress_hubspot_berta;
SELECT trigger_hubspot_sync('companies');
\echo :SQLSTATE
-- It takes every row: here the type is a superuser's, a field is not.
UPDATE sync_types SET configured_by = NULL WHERE sync_type = 'companies';
GRANT regress_hubspot_anna TO regress_hubspot_berta;
SET ROLE regress_hubspot_berta;
UPDATE sync_fields SET property = 'domain' WHERE sync_type = 'companies';
RESET ROLE;
REVOKE regress_hubspot_anna FROM regress_hubspot_berta;
\set VERBOSITY terse
SELECT trigger_hubspot_sync('companies');
UPDATE sync_fields SET property = 'name' WHERE sync_type = 'companies';
BEGIN;
SELECT trigger_hubspot_sync('companies') IS NOT NULL AS requested;
ROLLBACK;
-- So it is with a table that changed hands, or came later than its row.
SET ROLE regress_hubspot_anna;
INSERT INTO sync_types (sync_type, object_type, target_schema, target_table, key_columns)
	VALUES ('tickets', 'tickets', 'crm', 'ticket', '{id}');
UPDATE sync_types SET full_every = '1 day' WHERE sync_type = 'companies';
RESET ROLE;
SELECT trigger_hubspot_sync('tickets');
\echo :SQLSTATE
CREATE TABLE crm.ticket (id bigint PRIMARY KEY, archived boolean);
SELECT trigger_hubspot_sync('tickets');
\echo :SQLSTATE
ALTER TABLE crm.ticket OWNER TO regress_hubspot_anna;
BEGIN;
SELECT trigger_hubspot_sync('tickets') IS NOT NULL AS requested;
ROLLBACK;
ALTER TABLE crm.company OWNER TO regress_hubspot_berta;
SELECT trigger_hubspot_sync('companies');
\echo :SQLSTATE
ALTER TABLE crm.company OWNER TO regress_hubspot_anna;
-- A role that is gone cannot answer for its rows.
CREATE ROLE regress_hubspot_clara;
GRANT regress_hubspot_anna TO regress_hubspot_clara;
GRANT UPDATE ON sync_types TO regress_hubspot_clara;
GRANT SELECT ON sync_types TO regress_hubspot_clara;
SET ROLE regress_hubspot_clara;
UPDATE sync_types SET full_every = '2 days' WHERE sync_type = 'tickets';
RESET ROLE;
DROP OWNED BY regress_hubspot_clara;
DROP ROLE regress_hubspot_clara;
SELECT trigger_hubspot_sync('tickets');
\echo :SQLSTATE
\set VERBOSITY default

-- What is changed is not shipped any more.
SELECT shipped, configured_by FROM sync_types WHERE sync_type = 'owners';
UPDATE sync_types SET enabled = true WHERE sync_type = 'owners';
UPDATE sync_fields SET argument = 'closer' WHERE sync_type = 'owners' AND column_name = 'role';
SELECT shipped, configured_by = current_user AS by_me FROM sync_types WHERE sync_type = 'owners';
SELECT shipped, configured_by = current_user AS by_me FROM sync_fields
WHERE sync_type = 'owners' AND column_name = 'role';
SELECT count(*) AS others FROM sync_fields WHERE shipped AND sync_type = 'owners';

-- A superuser who restores a dump may bring a field before its type. A
-- deleted type takes its fields along.
INSERT INTO sync_fields (sync_type, column_name, property) VALUES ('calls', 'a', 'b');
INSERT INTO sync_types (sync_type, object_type, target_table, key_columns)
	VALUES ('calls', 'calls', 'contacts', '{connection_id,hubspot_contact_id}');
DELETE FROM sync_types WHERE sync_type = 'calls';
SELECT count(*) AS left_over FROM sync_fields WHERE sync_type = 'calls';

-- Rows that make no sense are refused where they are written.
\set VERBOSITY sqlstate
UPDATE sync_types SET sync_type = 'nonsense' WHERE sync_type = 'tickets';
INSERT INTO sync_fields (sync_type, column_name) VALUES ('contacts', 'merged_into');
INSERT INTO sync_fields (sync_type, column_name, transform) VALUES ('contacts', 'merged_into', 'constant');
INSERT INTO sync_fields (sync_type, column_name, transform) VALUES ('contacts', 'merged_into', 'guess');
UPDATE sync_types SET delete_policy = 'truncate' WHERE sync_type = 'contacts';
UPDATE sync_types SET source = 'ftp' WHERE sync_type = 'contacts';

-- A target must be a table.
\set VERBOSITY terse
CREATE VIEW crm.ticket_view AS SELECT * FROM crm.ticket;
UPDATE sync_types SET target_table = 'ticket_view' WHERE sync_type = 'tickets';
SELECT trigger_hubspot_sync('tickets');
\echo :SQLSTATE
DELETE FROM sync_types WHERE sync_type = 'tickets';
\set VERBOSITY default

-- What only the run can know ends it before it makes a request. Every case
-- is a target, its key, and a field.
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE TABLE tried (number serial, definition text, key name[], field name,
	policy text DEFAULT 'mark', status text, reason text, message text, hint text);
INSERT INTO tried (definition, key, field) VALUES
	('id bigint PRIMARY KEY, archived boolean', '{id}', 'nam'),
	('id bigint PRIMARY KEY, archived boolean', '{id}', 'ctid'),
	('id bigint PRIMARY KEY, archived boolean, name text GENERATED ALWAYS AS (id::text) STORED',
		'{id}', 'name'),
	('id bigint PRIMARY KEY, archived boolean, name int GENERATED ALWAYS AS IDENTITY', '{id}', 'name'),
	('id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, archived boolean', '{id}', NULL),
	('id bigint, archived boolean, name text', '{id}', 'name'),
	('id bigint UNIQUE DEFERRABLE, archived boolean, name text', '{id}', 'name'),
	('id bigint, archived boolean, name text, UNIQUE (id, name)', '{id}', 'name'),
	('id bigint, archived boolean); CREATE UNIQUE INDEX ON crm.target (id) WHERE (NOT archived',
		'{id}', NULL),
	('id bigint, archived boolean); CREATE UNIQUE INDEX ON crm.target (abs(id)', '{id}', NULL),
	('id bigint PRIMARY KEY, archived boolean', '{connection_id,id}', NULL),
	('id bigint, archived boolean, EXCLUDE (id WITH =)', '{id}', NULL),
	('id bigint PRIMARY KEY, name text', '{id}', 'name'),
	('id bigint PRIMARY KEY, archived text', '{id}', NULL),
	('id bigint, name text, archived boolean, UNIQUE (id, name)', '{id,name}', NULL),
	('connection_id uuid PRIMARY KEY, archived boolean', '{connection_id}', NULL),
	('id bigint PRIMARY KEY, archived boolean', '{id}', 'id');
-- These fit, so that it is the missing token that ends them.
INSERT INTO tried (definition, key, field, policy) VALUES
	('id bigint PRIMARY KEY, name text', '{id}', 'name', 'ignore'),
	('id bigint PRIMARY KEY, name text', '{id}', 'name', 'delete'),
	('id text, connection_id uuid, archived boolean, UNIQUE (id, connection_id)',
		'{connection_id,id}', NULL, 'mark'),
	('id bigint, archived boolean, UNIQUE (id) INCLUDE (archived)', '{id}', NULL, 'mark'),
	('id bigint PRIMARY KEY, archived boolean) PARTITION BY HASH (id', '{id}', NULL, 'mark'),
	('id bigint PRIMARY KEY, archived boolean, mood mood', '{id}', 'mood', 'mark'),
	('id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, archived boolean', '{id}', NULL, 'mark');
CREATE PROCEDURE configure(definition text, key name[], field name, policy text)
LANGUAGE plpgsql AS $$
BEGIN
	DROP TABLE IF EXISTS crm.target;
	EXECUTE format('CREATE TABLE crm.target (%s)', definition);
	DELETE FROM sync_types WHERE sync_type = 'tried';
	INSERT INTO sync_types (sync_type, object_type, target_schema, target_table,
		key_columns, delete_policy) VALUES ('tried', 'companies', 'crm', 'target', key, policy);
	IF field IS NOT NULL THEN
		INSERT INTO sync_fields (sync_type, column_name, property) VALUES ('tried', field, 'name');
	END IF;
END
$$;
SET client_min_messages = error;
DO $$
DECLARE
	this record;
	run uuid;
	a text; b integer; c integer;
BEGIN
	FOR this IN SELECT * FROM tried ORDER BY number LOOP
		CALL configure(this.definition, this.key, this.field, this.policy);
		COMMIT;
		CALL run_hubspot_sync('tried', 'auto', NULL, NULL, run, a, b, c);
		UPDATE tried t SET status = l.status, reason = error_details->>'reason',
			message = error_details->>'message', hint = error_details->>'hint'
		FROM sync_logs l WHERE t.number = this.number AND l.id = run AND requests = 0;
	END LOOP;
END
$$;
RESET client_min_messages;
SELECT number, status, reason, message FROM tried ORDER BY number;
SELECT DISTINCT hint COLLATE "C" AS hint FROM tried WHERE reason = 'configuration' ORDER BY 1;
-- CALL says the same.
SET client_min_messages = warning;
CALL configure('id bigint PRIMARY KEY, archived boolean', '{id}', 'nam', 'mark');
CALL run_hubspot_sync('tried') \gset
RESET client_min_messages;
SELECT :'status' AS status, :'records_processed' AS processed, :'records_failed' AS failed;
-- Nothing of it has touched the target's rows or made the type look synchronised.
SELECT count(*) FROM crm.target;
SELECT count(*) FROM sync_state;

DROP VIEW configured;
DROP PROCEDURE configure;
DROP TABLE tried;
DROP TYPE mood;
DROP EXTENSION hubspot_sync;
DROP TABLE crm.target, crm.company;
DROP VIEW crm.ticket_view;
DROP TABLE crm.ticket;
DROP SCHEMA crm;
DROP ROLE regress_hubspot_anna, regress_hubspot_berta;
