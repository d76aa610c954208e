-- What CREATE EXTENSION leaves behind: everything in one schema, commented,
-- with exactly the signatures that are promised, and with no privilege for
-- anybody but the owner.
SET client_min_messages = warning;
DROP ROLE IF EXISTS regress_hubspot_anon, regress_hubspot_authenticated,
	regress_hubspot_service_role;
RESET client_min_messages;

-- The member objects of the extension. Whether tables' row types and array
-- types are among them depends on the server's version.
CREATE VIEW member AS
	SELECT d.classid, d.objid, i.type AS kind, i.schema, i.identity
	FROM pg_depend d
	JOIN pg_extension e ON e.oid = d.refobjid
	CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, 0) i
	WHERE d.refclassid = 'pg_extension'::regclass
		AND d.deptype = 'e' AND e.extname = 'hubspot_sync'
		AND NOT (d.classid = 'pg_type'::regclass AND d.objid IN (
			SELECT t.oid FROM pg_type t LEFT JOIN pg_class c ON c.oid = typrelid
			WHERE typelem <> 0 OR relkind <> 'c'));

-- What anybody but the owner may do with a relation, one of its columns, a
-- routine or a type of a schema.
CREATE FUNCTION privileges(schema_name text)
RETURNS TABLE (object text, grantee text, privilege text)
LANGUAGE sql AS $$
	WITH object AS (
		SELECT oid::regclass::text AS name, relowner AS owner,
			coalesce(relacl, acldefault('r', relowner)) AS acl
		FROM pg_class WHERE relnamespace = schema_name::regnamespace
			AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
		UNION ALL
		SELECT attrelid::regclass || '.' || attname, relowner, attacl
		FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
		WHERE relnamespace = schema_name::regnamespace AND attacl IS NOT NULL
		UNION ALL
		SELECT oid::regprocedure::text, proowner,
			coalesce(proacl, acldefault('f', proowner))
		FROM pg_proc WHERE pronamespace = schema_name::regnamespace
		UNION ALL
		SELECT t.oid::regtype::text, typowner,
			coalesce(typacl, acldefault('T', typowner))
		FROM pg_type t LEFT JOIN pg_class c ON c.oid = typrelid
		WHERE typnamespace = schema_name::regnamespace
			AND typelem = 0 AND coalesce(relkind = 'c', true)
	)
	SELECT name, CASE a.grantee WHEN 0 THEN 'PUBLIC'
		ELSE a.grantee::regrole::text END, a.privilege_type
	FROM object CROSS JOIN LATERAL aclexplode(acl) a
	WHERE a.grantee <> owner
	ORDER BY 1, 2, 3
$$;

-- Without SCHEMA, everything goes into the current schema and nowhere else.
CREATE SCHEMA here;
SET search_path = here, public;
CREATE EXTENSION hubspot_sync;
SELECT kind, schema, count(*) > 0 AS some FROM member GROUP BY kind, schema
ORDER BY kind;

-- Every member has a comment.
SELECT identity FROM member
WHERE obj_description(objid, classid::regclass::name) IS NULL;
-- So have the triggers, and the columns of every relation but the two that
-- sync_logs is made of.
SELECT tgname FROM pg_trigger JOIN member ON objid = tgrelid
WHERE NOT tgisinternal AND obj_description(pg_trigger.oid, 'pg_trigger') IS NULL;
SELECT attrelid::regclass, attname
FROM pg_attribute JOIN member ON classid = 'pg_class'::regclass AND objid = attrelid
WHERE attnum > 0 AND NOT attisdropped
	AND attrelid NOT IN ('sync_runs'::regclass, 'sync_run_states'::regclass)
	AND col_description(attrelid, attnum) IS NULL;

-- The signatures that GRANT and others rely on.
SELECT 'trigger_hubspot_sync(text)'::regprocedure,
	'get_latest_sync_status()'::regprocedure;
-- All routines: results, volatility, and whose privileges they use.
SELECT p.oid::regprocedure AS routine, prokind, provolatile AS vol,
	proisstrict AS strict, prosecdef AS definer, proconfig AS config
FROM pg_proc p JOIN member ON classid = 'pg_proc'::regclass AND objid = p.oid
ORDER BY p.oid::regprocedure::text COLLATE "C";
\pset format unaligned
SELECT p.oid::regprocedure AS routine, pg_get_function_arguments(p.oid) AS arguments,
	pg_get_function_result(p.oid) AS result
FROM pg_proc p JOIN member ON classid = 'pg_proc'::regclass AND objid = p.oid
WHERE prorettype <> 'trigger'::regtype
ORDER BY p.oid::regprocedure::text COLLATE "C";
\pset format aligned
-- With DEFAULT arguments, the short form is still unambiguous.
BEGIN;
SELECT trigger_hubspot_sync('contacts') IS NOT NULL AS requested;
ROLLBACK;

-- Whoever runs with the owner's rights looks objects up in safe schemas only.
SELECT p.oid::regprocedure
FROM pg_proc p JOIN member ON classid = 'pg_proc'::regclass AND objid = p.oid
WHERE prosecdef AND proconfig IS DISTINCT FROM '{"search_path=pg_catalog, pg_temp"}';

-- The columns whose names are promised; there may be more.
WITH promised (relation, columns) AS (VALUES
	('contacts', '{connection_id,hubspot_contact_id,email,first_name,last_name,
		phone,owner_id,lifecycle_stage,status,created_at,updated_at,properties,
		archived,archived_at,merged_into,hubspot_updated_at,synced_at}'::name[]),
	('deals', '{connection_id,hubspot_deal_id,deal_name,deal_value,stage,status,
		close_date,closer_id,pipeline,created_at,updated_at,properties,archived,
		archived_at,merged_into,hubspot_updated_at,synced_at}'),
	('staff', '{connection_id,id,name,email,role,created_at,properties,archived,
		archived_at,merged_into,hubspot_updated_at,synced_at}'),
	('sync_logs', '{id,platform,sync_type,status,started_at,completed_at,
		duration_ms,records_processed,records_failed,error_details,created_at,
		direction,mode,timeframe,connection_id,requested_by,trigger_source,
		records_changed,records_unchanged,records_archived,requests,retries,
		bytes_received,checkpoint,continues}'),
	('sync_errors', '{id,run_id,connection_id,sync_type,record_id,email,property,
		category,message,payload,attempts,first_seen,last_seen,resolved_at}')
), existing AS (
	SELECT attrelid::regclass::text AS relation, attname
	FROM pg_attribute WHERE attnum > 0 AND NOT attisdropped
)
SELECT relation, name AS missing
FROM promised CROSS JOIN LATERAL unnest(columns) name
WHERE (relation, name) NOT IN (SELECT * FROM existing);
SELECT attrelid::regclass AS relation, attname, format_type(atttypid, atttypmod)
FROM pg_attribute
WHERE (attrelid::regclass::text, attname) IN (('contacts', 'hubspot_contact_id'),
	('deals', 'deal_value'), ('deals', 'status'), ('deals', 'close_date'),
	('staff', 'id'), ('sync_logs', 'id'), ('sync_logs', 'error_details'),
	('sync_logs', 'duration_ms'), ('sync_errors', 'payload'))
ORDER BY attrelid::regclass::text, attname;
-- The connection leads the keys, so that the tables can be sharded by it.
SELECT conrelid::regclass AS relation, pg_get_constraintdef(oid)
FROM pg_constraint
WHERE contype = 'p' AND conrelid IN ('contacts'::regclass, 'deals'::regclass, 'staff'::regclass)
ORDER BY conrelid::regclass::text;

-- What is shipped is marked so, by nobody in particular, and is the same in
-- every installation.
SELECT connection_id, name, portal_id, shipped FROM sync_connections;
SELECT sync_type, source, object_type, target_schema, target_table, key_columns,
	shipped, configured_by
FROM sync_types ORDER BY sync_type;
SELECT sync_type, column_name, property, transform, argument, insert_only
FROM sync_fields WHERE shipped AND configured_by IS NULL
ORDER BY sync_type, column_name;
SELECT count(*) FROM sync_fields WHERE NOT shipped OR configured_by IS NOT NULL;

-- PUBLIC has EXECUTE and USAGE by default; here it has nothing.
SELECT * FROM privileges('here');
-- The check would see it: PUBLIC has EXECUTE on this one.
SELECT privilege FROM privileges('public')
WHERE object LIKE '%privileges(text)' AND grantee = 'PUBLIC';

-- The extension stays where it is, and is for superusers to create.
ALTER EXTENSION hubspot_sync SET SCHEMA public;
\echo :SQLSTATE
-- Its plans are kept for the session: they must not outlive it.
SELECT here.trigger_hubspot_sync('nonsense');
DISCARD PLANS;
SELECT here.trigger_hubspot_sync('nonsense');
DROP EXTENSION hubspot_sync;
SELECT count(*) FROM member;

-- The same session, another schema, whose name needs quotes.
CREATE SCHEMA "My CRM";
CREATE EXTENSION hubspot_sync SCHEMA "My CRM";
SELECT kind, schema FROM member GROUP BY kind, schema ORDER BY kind;
UPDATE "My CRM".sync_types SET enabled = false WHERE sync_type = 'owners';
SELECT "My CRM".trigger_hubspot_sync('nonsense');
BEGIN;
SELECT "My CRM".trigger_hubspot_sync('deals') IS NOT NULL AS requested;
SELECT sync_type, status FROM "My CRM".sync_logs;
SELECT sync_type, status FROM "My CRM".get_latest_sync_status();
ROLLBACK;
-- Its schema can be renamed.
ALTER SCHEMA "My CRM" RENAME TO "our CRM";
BEGIN;
SELECT "our CRM".trigger_hubspot_sync('deals') IS NOT NULL AS requested;
SELECT sync_type, status FROM "our CRM".get_latest_sync_status();
ROLLBACK;
DROP EXTENSION hubspot_sync;

-- Databases that grant everything on new objects to everybody, as Supabase
-- does, do not give ours away.
CREATE ROLE regress_hubspot_anon;
CREATE ROLE regress_hubspot_authenticated;
CREATE ROLE regress_hubspot_service_role;
CREATE SCHEMA crm;
CREATE FUNCTION public.give_away(what text, who text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('ALTER DEFAULT PRIVILEGES GRANT ALL ON %s TO %s', what, who);
	EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA crm GRANT ALL ON %s TO %s',
		what, who);
END
$$;
SELECT count(give_away(what, who)) FROM
	unnest(ARRAY['TABLES', 'SEQUENCES', 'ROUTINES', 'TYPES']) what,
	unnest(ARRAY['PUBLIC', 'regress_hubspot_anon', 'regress_hubspot_authenticated',
		'regress_hubspot_service_role']) who;
ALTER DEFAULT PRIVILEGES IN SCHEMA crm
	GRANT ALL ON TABLES TO regress_hubspot_anon WITH GRANT OPTION;
-- They are in force:
CREATE TABLE crm.other ();
CREATE TYPE crm.other_type AS ENUM ();
SELECT object, count(DISTINCT grantee) AS grantees FROM privileges('crm') GROUP BY 1;
DROP TABLE crm.other;
DROP TYPE crm.other_type;
CREATE EXTENSION hubspot_sync SCHEMA crm;
SELECT count(*) > 20 AS installed FROM member WHERE schema = 'crm';
SELECT * FROM privileges('crm');
-- The check would see it:
GRANT SELECT ON crm.sync_logs TO regress_hubspot_anon;
SELECT * FROM privileges('crm');
DROP EXTENSION hubspot_sync;
DROP OWNED BY regress_hubspot_anon, regress_hubspot_authenticated,
	regress_hubspot_service_role;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON SEQUENCES FROM PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON ROUTINES TO PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT USAGE ON TYPES TO PUBLIC;

-- Only a superuser may create it.
SET ROLE regress_hubspot_anon;
CREATE EXTENSION hubspot_sync SCHEMA crm;
RESET ROLE;
DROP SCHEMA crm, here, "our CRM" CASCADE;
DROP ROLE regress_hubspot_anon, regress_hubspot_authenticated,
	regress_hubspot_service_role;
RESET search_path;
DROP FUNCTION give_away, privileges;
DROP VIEW member;
