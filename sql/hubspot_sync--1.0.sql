-- hubspot_sync 1.0: keeps HubSpot and this database in step

-- complain if the script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION hubspot_sync" to load this file. \quit

-- ---------------------------------------------------------------------------
-- Configuration
-- ---------------------------------------------------------------------------

CREATE TABLE sync_connections (
	connection_id	uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
	name			text NOT NULL UNIQUE
					CHECK (name OPERATOR(pg_catalog.~) '^[a-z][a-z0-9_-]{0,62}$'),
	portal_id		text,
	token_expires_at	timestamptz,
	shipped			boolean NOT NULL DEFAULT false
);
COMMENT ON TABLE sync_connections IS 'HubSpot accounts that this database is connected to';
COMMENT ON COLUMN sync_connections.connection_id IS 'leads the key of all synchronised rows';
COMMENT ON COLUMN sync_connections.name IS 'name to use in function calls';
COMMENT ON COLUMN sync_connections.portal_id IS 'number of the HubSpot account, once test_hubspot_connection() has learned it';
COMMENT ON COLUMN sync_connections.token_expires_at IS 'when the token stops working, for the alert ahead of it; null: never, or not known';
COMMENT ON COLUMN sync_connections.shipped IS 'row that came with the extension, unchanged';

CREATE TABLE sync_types (
	sync_type			text PRIMARY KEY
						CHECK (sync_type OPERATOR(pg_catalog.~) '^[a-z][a-z0-9_]{0,62}$'),
	source				text NOT NULL DEFAULT 'objects'
						CHECK (source IN ('objects', 'owners', 'progress')),
	object_type			text NOT NULL
						CHECK (object_type OPERATOR(pg_catalog.~) '^[A-Za-z0-9_-]{1,100}$'),
	target_schema		name,
	target_table		name NOT NULL,
	key_columns			name[] NOT NULL,
	modified_property	text
						CHECK (modified_property OPERATOR(pg_catalog.~) '^[A-Za-z][A-Za-z0-9_]{0,99}$'),
	created_property	text
						CHECK (created_property OPERATOR(pg_catalog.~) '^[A-Za-z][A-Za-z0-9_]{0,99}$'),
	property_set		text NOT NULL DEFAULT 'mapped'
						CHECK (property_set IN ('mapped', 'all')),
	properties			text[] NOT NULL DEFAULT '{}',
	filters				jsonb,
	delete_policy		text NOT NULL DEFAULT 'mark'
						CHECK (delete_policy IN ('mark', 'delete', 'ignore')),
	full_every			interval NOT NULL DEFAULT '7 days',
	full_strategy		text NOT NULL DEFAULT 'auto'
						CHECK (full_strategy IN ('auto', 'list', 'list_and_search')),
	"interval"			interval
						CHECK ("interval" OPERATOR(pg_catalog.>=) interval '10 seconds'
							AND "interval" OPERATOR(pg_catalog.<=) interval '1 year'),
	run_at				time,
	enabled				boolean NOT NULL DEFAULT true,
	shipped				boolean NOT NULL DEFAULT false,
	configured_by		name,
	CHECK (source IN ('objects') OR (modified_property IS NULL AND created_property IS NULL)),
	-- what is pushed comes from progress_sources
	CHECK ((source OPERATOR(pg_catalog.=) 'progress') OPERATOR(pg_catalog.=) (sync_type OPERATOR(pg_catalog.=) 'progress')),
	CHECK (source OPERATOR(pg_catalog.<>) 'progress'
		OR (target_schema IS NULL AND target_table OPERATOR(pg_catalog.=) 'users'))
);
COMMENT ON TABLE sync_types IS 'what can be synchronised: HubSpot object types and the tables they go to';
COMMENT ON COLUMN sync_types.sync_type IS 'name to use in function calls';
COMMENT ON COLUMN sync_types.source IS 'objects: CRM records; owners: HubSpot users; progress: students'' progress, which is pushed';
COMMENT ON COLUMN sync_types.object_type IS 'HubSpot''s name or id of the object type, as in request paths';
COMMENT ON COLUMN sync_types.target_schema IS 'schema of the target table, null for the extension''s own; for progress see progress_sources';
COMMENT ON COLUMN sync_types.target_table IS 'table that receives the records';
COMMENT ON COLUMN sync_types.key_columns IS 'columns of a unique index of the target: the column for HubSpot''s record id, and connection_id where the index has it';
COMMENT ON COLUMN sync_types.modified_property IS 'property with the time of the last change; without it every run is a full run';
COMMENT ON COLUMN sync_types.created_property IS 'property with the time of creation, for timeframes';
COMMENT ON COLUMN sync_types.property_set IS 'mapped: the properties of sync_fields and those in properties; all: every property that HubSpot defines for the type, in the target''s column properties without those that have no value';
COMMENT ON COLUMN sync_types.properties IS 'properties to fetch beside those in sync_fields, kept in the target''s column properties';
COMMENT ON COLUMN sync_types.filters IS 'records to keep, by property: {"pipeline": ["default", "renewals"], "hubspot_owner_id": {"not": [null]}}; rows of others follow the delete policy';
COMMENT ON COLUMN sync_types.delete_policy IS 'what happens to rows whose record was archived, merged away or deleted in HubSpot, or does not fit the filters: mark, delete or ignore';
COMMENT ON COLUMN sync_types.full_every IS 'age of the last full run after which mode auto makes another';
COMMENT ON COLUMN sync_types.full_strategy IS 'how a full run reads: list: by list alone, which notices what is missing; list_and_search: by both at once, about twice as fast; auto: both for the first load, then list';
COMMENT ON COLUMN sync_types."interval" IS 'how often the launcher starts a run where pg_cron has no job for it; null: not by interval';
COMMENT ON COLUMN sync_types.run_at IS 'time of day, in the time zone hubspot_sync.schedule_time_zone, at which the launcher starts a run; null: not daily';
COMMENT ON COLUMN sync_types.enabled IS 'false: requests for this type are refused';
COMMENT ON COLUMN sync_types.shipped IS 'row that came with the extension, unchanged';
COMMENT ON COLUMN sync_types.configured_by IS 'role that last wrote the row, null if it came with the extension; must be a member of the target''s owner';

CREATE TABLE sync_fields (
	sync_type		text NOT NULL,	-- of sync_types, see sync_fields_check
	column_name		name NOT NULL,
	property		text
					CHECK (property OPERATOR(pg_catalog.~) '^[A-Za-z][A-Za-z0-9_]{0,99}$'),
	transform		text NOT NULL DEFAULT 'value'
					CHECK (transform IN ('value', 'deal_status', 'owner_name', 'constant', 'now')),
	argument		text,
	insert_only		boolean NOT NULL DEFAULT false,
	shipped			boolean NOT NULL DEFAULT false,
	configured_by	name,
	PRIMARY KEY (sync_type, column_name),
	CHECK ((transform IN ('value', 'deal_status')) OPERATOR(pg_catalog.=) (property IS NOT NULL)),
	CHECK ((transform OPERATOR(pg_catalog.=) 'constant') OPERATOR(pg_catalog.=) (argument IS NOT NULL))
);
COMMENT ON TABLE sync_fields IS 'which HubSpot property goes to which column of the target table';
COMMENT ON COLUMN sync_fields.sync_type IS 'the type this field belongs to';
COMMENT ON COLUMN sync_fields.column_name IS 'column of the target table';
COMMENT ON COLUMN sync_fields.property IS 'HubSpot property the value comes from';
COMMENT ON COLUMN sync_fields.transform IS 'value: as it is; deal_status: open, won or lost by the stage''s metadata; owner_name: first and last name, else e-mail; constant: the argument; now: time of our last change of the row';
COMMENT ON COLUMN sync_fields.argument IS 'value of a constant';
COMMENT ON COLUMN sync_fields.insert_only IS 'true: set when the row is created, never changed afterwards';
COMMENT ON COLUMN sync_fields.shipped IS 'row that came with the extension, unchanged';
COMMENT ON COLUMN sync_fields.configured_by IS 'role that last wrote the row, null if it came with the extension';

-- ---------------------------------------------------------------------------
-- Synchronised tables
-- ---------------------------------------------------------------------------

CREATE TYPE deal_status AS ENUM ('open', 'won', 'lost');
COMMENT ON TYPE deal_status IS 'meaning of a deal''s stage';

CREATE TABLE contacts (
	connection_id		uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
	hubspot_contact_id	text NOT NULL,
	email				text,
	first_name			text,
	last_name			text,
	phone				text,
	owner_id			text,
	lifecycle_stage		text,
	status				text,
	created_at			timestamptz,
	updated_at			timestamptz,
	properties			jsonb,
	archived			boolean NOT NULL DEFAULT false,
	archived_at			timestamptz,
	archived_reason		text,
	merged_into			text,
	hubspot_updated_at	timestamptz,
	synced_at			timestamptz,
	PRIMARY KEY (connection_id, hubspot_contact_id)
);
CREATE INDEX contacts_email_idx ON contacts (pg_catalog.lower(pg_catalog.left(email, 320)));
COMMENT ON TABLE contacts IS 'HubSpot contacts';
COMMENT ON COLUMN contacts.connection_id IS 'the connection the row came through';
COMMENT ON COLUMN contacts.hubspot_contact_id IS 'HubSpot''s id of the contact';
COMMENT ON COLUMN contacts.email IS 'property email';
COMMENT ON COLUMN contacts.first_name IS 'property firstname';
COMMENT ON COLUMN contacts.last_name IS 'property lastname';
COMMENT ON COLUMN contacts.phone IS 'property phone';
COMMENT ON COLUMN contacts.owner_id IS 'property hubspot_owner_id, a staff.id';
COMMENT ON COLUMN contacts.lifecycle_stage IS 'property lifecyclestage';
COMMENT ON COLUMN contacts.status IS 'property hs_lead_status';
COMMENT ON COLUMN contacts.created_at IS 'property createdate';
COMMENT ON COLUMN contacts.updated_at IS 'when the synchronisation last changed the row';
COMMENT ON COLUMN contacts.properties IS 'all properties asked for, by their HubSpot names';
COMMENT ON COLUMN contacts.archived IS 'the contact is in HubSpot''s recycle bin or gone, or does not fit the filters';
COMMENT ON COLUMN contacts.archived_at IS 'when it was archived';
COMMENT ON COLUMN contacts.archived_reason IS 'archived: in the recycle bin; merged: into another contact; gone: deleted for good; filtered: does not fit sync_types.filters';
COMMENT ON COLUMN contacts.merged_into IS 'id of the contact this one was merged into';
COMMENT ON COLUMN contacts.hubspot_updated_at IS 'HubSpot''s time of the last change';
COMMENT ON COLUMN contacts.synced_at IS 'when the synchronisation last wrote the row';

CREATE TABLE deals (
	connection_id		uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
	hubspot_deal_id		text NOT NULL,
	deal_name			text,
	deal_value			numeric,
	stage				text,
	status				deal_status,
	close_date			timestamptz,
	closer_id			text,
	pipeline			text,
	created_at			timestamptz,
	updated_at			timestamptz,
	properties			jsonb,
	archived			boolean NOT NULL DEFAULT false,
	archived_at			timestamptz,
	archived_reason		text,
	merged_into			text,
	hubspot_updated_at	timestamptz,
	synced_at			timestamptz,
	PRIMARY KEY (connection_id, hubspot_deal_id)
);
COMMENT ON TABLE deals IS 'HubSpot deals';
COMMENT ON COLUMN deals.connection_id IS 'the connection the row came through';
COMMENT ON COLUMN deals.hubspot_deal_id IS 'HubSpot''s id of the deal';
COMMENT ON COLUMN deals.deal_name IS 'property dealname';
COMMENT ON COLUMN deals.deal_value IS 'property amount';
COMMENT ON COLUMN deals.stage IS 'property dealstage, HubSpot''s internal stage id';
COMMENT ON COLUMN deals.status IS 'open, won or lost by the stage''s metadata, null for a stage no pipeline has';
COMMENT ON COLUMN deals.close_date IS 'property closedate';
COMMENT ON COLUMN deals.closer_id IS 'property hubspot_owner_id, a staff.id; no foreign key, since deals may arrive before owners';
COMMENT ON COLUMN deals.pipeline IS 'property pipeline, HubSpot''s internal pipeline id';
COMMENT ON COLUMN deals.created_at IS 'property createdate';
COMMENT ON COLUMN deals.updated_at IS 'when the synchronisation last changed the row';
COMMENT ON COLUMN deals.properties IS 'all properties asked for, by their HubSpot names';
COMMENT ON COLUMN deals.archived IS 'the deal is in HubSpot''s recycle bin or gone, or does not fit the filters';
COMMENT ON COLUMN deals.archived_at IS 'when it was archived';
COMMENT ON COLUMN deals.archived_reason IS 'archived: in the recycle bin; merged: into another deal; gone: deleted for good; filtered: does not fit sync_types.filters';
COMMENT ON COLUMN deals.merged_into IS 'id of the deal this one was merged into';
COMMENT ON COLUMN deals.hubspot_updated_at IS 'HubSpot''s time of the last change';
COMMENT ON COLUMN deals.synced_at IS 'when the synchronisation last wrote the row';

CREATE TABLE staff (
	connection_id		uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
	id					text NOT NULL,
	name				text,
	email				text,
	role				text,
	created_at			timestamptz,
	properties			jsonb,
	archived			boolean NOT NULL DEFAULT false,
	archived_at			timestamptz,
	archived_reason		text,
	merged_into			text,
	hubspot_updated_at	timestamptz,
	synced_at			timestamptz,
	PRIMARY KEY (connection_id, id)
);
COMMENT ON TABLE staff IS 'HubSpot owners, and whoever else you add';
COMMENT ON COLUMN staff.connection_id IS 'the connection the row came through';
COMMENT ON COLUMN staff.id IS 'HubSpot''s id of the owner';
COMMENT ON COLUMN staff.name IS 'first and last name, the e-mail where there is none';
COMMENT ON COLUMN staff.email IS 'e-mail of the owner';
COMMENT ON COLUMN staff.role IS 'coach for owners; set when the row is created, yours afterwards';
COMMENT ON COLUMN staff.created_at IS 'when the owner was created in HubSpot';
COMMENT ON COLUMN staff.properties IS 'everything HubSpot said about the owner';
COMMENT ON COLUMN staff.archived IS 'the owner was removed from the HubSpot account';
COMMENT ON COLUMN staff.archived_at IS 'when the owner was removed, as far as HubSpot says';
COMMENT ON COLUMN staff.archived_reason IS 'archived: removed from the account; filtered: does not fit sync_types.filters';
COMMENT ON COLUMN staff.merged_into IS 'unused for owners';
COMMENT ON COLUMN staff.hubspot_updated_at IS 'HubSpot''s time of the last change';
COMMENT ON COLUMN staff.synced_at IS 'when the synchronisation last wrote the row; null for rows of your own';

CREATE TABLE contact_owner_history (
	connection_id		uuid NOT NULL,
	hubspot_contact_id	text NOT NULL,
	owner_id			text NOT NULL,
	valid_from			timestamptz NOT NULL,
	valid_to			timestamptz,
	PRIMARY KEY (connection_id, hubspot_contact_id, valid_from),
	CHECK (valid_to OPERATOR(pg_catalog.>) valid_from)
);
CREATE UNIQUE INDEX contact_owner_history_open_idx
	ON contact_owner_history (connection_id, hubspot_contact_id) WHERE valid_to IS NULL;
CREATE INDEX contact_owner_history_from_idx ON contact_owner_history (valid_from);
CREATE INDEX contact_owner_history_to_idx ON contact_owner_history (valid_to)
	WHERE valid_to IS NOT NULL;
COMMENT ON TABLE contact_owner_history IS 'who owned a contact when; the rows of one contact never overlap, and a time without a row is one without an owner or not known';
COMMENT ON COLUMN contact_owner_history.connection_id IS 'the connection the contact came through';
COMMENT ON COLUMN contact_owner_history.hubspot_contact_id IS 'HubSpot''s id of the contact';
COMMENT ON COLUMN contact_owner_history.owner_id IS 'the owner, a staff.id';
COMMENT ON COLUMN contact_owner_history.valid_from IS 'from this instant on';
COMMENT ON COLUMN contact_owner_history.valid_to IS 'until before this instant; null: he still does';

-- ---------------------------------------------------------------------------
-- Runs, errors and what the synchronisation remembers
-- ---------------------------------------------------------------------------

CREATE TABLE sync_runs (
	id					uuid PRIMARY KEY,
	platform			text NOT NULL DEFAULT 'hubspot',
	connection_id		uuid NOT NULL,
	sync_type			text NOT NULL,
	direction			text NOT NULL,
	mode				text NOT NULL,
	timeframe			text,
	scope				text NOT NULL DEFAULT '',
	range_from			timestamptz,
	range_to			timestamptz,
	status				text NOT NULL
						CHECK (status IN ('pending', 'running', 'success', 'partial', 'failed', 'cancelled')),
	requested_by		name NOT NULL,
	trigger_source		text NOT NULL CHECK (trigger_source IN ('sql', 'call', 'launcher')),
	created_at			timestamptz NOT NULL,
	started_at			timestamptz,
	updated_at			timestamptz NOT NULL,
	completed_at		timestamptz,
	records_processed	integer NOT NULL DEFAULT 0,
	records_failed		integer NOT NULL DEFAULT 0,
	records_changed		integer NOT NULL DEFAULT 0,
	records_unchanged	integer NOT NULL DEFAULT 0,
	records_archived	integer NOT NULL DEFAULT 0,
	requests			integer NOT NULL DEFAULT 0,
	retries				integer NOT NULL DEFAULT 0,
	bytes_received		bigint NOT NULL DEFAULT 0,
	checkpoint			jsonb,
	mapping				text,
	continues			uuid,
	error_details		jsonb,
	lock_key			bigint NOT NULL,
	worker_pid			integer
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX sync_runs_active_idx ON sync_runs (connection_id, sync_type)
	WHERE status IN ('pending', 'running');
CREATE INDEX sync_runs_type_idx ON sync_runs (sync_type, created_at DESC);
CREATE INDEX sync_runs_connection_idx ON sync_runs (connection_id, sync_type, created_at DESC);
COMMENT ON TABLE sync_runs IS 'runs as their workers left them; read sync_logs, which knows about dead ones';
COMMENT ON COLUMN sync_runs.id IS 'id of the run';
COMMENT ON COLUMN sync_runs.platform IS 'hubspot';
COMMENT ON COLUMN sync_runs.connection_id IS 'the connection';
COMMENT ON COLUMN sync_runs.sync_type IS 'what is synchronised';
COMMENT ON COLUMN sync_runs.direction IS 'pull: from HubSpot; push: to HubSpot';
COMMENT ON COLUMN sync_runs.mode IS 'as asked for until the run starts, then as resolved';
COMMENT ON COLUMN sync_runs.timeframe IS 'the timeframe asked for';
COMMENT ON COLUMN sync_runs.scope IS 'empty, or what the run is limited to; only unscoped ones count as the type''s runs';
COMMENT ON COLUMN sync_runs.range_from IS 'beginning of the timeframe';
COMMENT ON COLUMN sync_runs.range_to IS 'end of the timeframe';
COMMENT ON COLUMN sync_runs.status IS 'as the worker wrote it; a dead run still says pending or running';
COMMENT ON COLUMN sync_runs.requested_by IS 'role that requested the run';
COMMENT ON COLUMN sync_runs.trigger_source IS 'sql, call or launcher';
COMMENT ON COLUMN sync_runs.created_at IS 'when it was requested';
COMMENT ON COLUMN sync_runs.started_at IS 'when its worker began';
COMMENT ON COLUMN sync_runs.updated_at IS 'last sign of life';
COMMENT ON COLUMN sync_runs.completed_at IS 'when it ended';
COMMENT ON COLUMN sync_runs.records_processed IS 'records received';
COMMENT ON COLUMN sync_runs.records_failed IS 'records that went to sync_errors';
COMMENT ON COLUMN sync_runs.records_changed IS 'rows written';
COMMENT ON COLUMN sync_runs.records_unchanged IS 'records whose row needed no write';
COMMENT ON COLUMN sync_runs.records_archived IS 'rows marked or deleted';
COMMENT ON COLUMN sync_runs.requests IS 'HTTP requests made';
COMMENT ON COLUMN sync_runs.retries IS 'of them repeated another';
COMMENT ON COLUMN sync_runs.bytes_received IS 'bytes received';
COMMENT ON COLUMN sync_runs.checkpoint IS 'where the walk stands';
COMMENT ON COLUMN sync_runs.mapping IS 'fingerprint of the configuration that the checkpoint is for';
COMMENT ON COLUMN sync_runs.continues IS 'the run whose checkpoint this one took over';
COMMENT ON COLUMN sync_runs.error_details IS 'what stopped it, and what was notable';
COMMENT ON COLUMN sync_runs.lock_key IS 'key of the advisory lock that its worker holds';
COMMENT ON COLUMN sync_runs.worker_pid IS 'process id of its worker';

-- Two rows, or one of another server or database: this is a copy.
CREATE TABLE sync_home (
	system_identifier	text NOT NULL,
	database_oid		oid NOT NULL
);
COMMENT ON TABLE sync_home IS 'the server and database that may call HubSpot; a copy brings the original''s along and waits for adopt_hubspot_sync()';
COMMENT ON COLUMN sync_home.system_identifier IS 'the server''s system identifier';
COMMENT ON COLUMN sync_home.database_oid IS 'the database''s oid';
INSERT INTO sync_home
	SELECT c.system_identifier::text, d.oid
	FROM pg_catalog.pg_control_system() c, pg_catalog.pg_database d
	WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database();

-- A run is alive as long as its worker holds the advisory lock of its type.
-- No SQL function takes locks of this class (objsubid 18515).  A standby has
-- the rows but not the locks.
CREATE VIEW sync_run_states AS
	SELECT r.*, l.pid AS holder_pid,
		CASE
			WHEN l.pid IS NOT NULL OR pg_catalog.pg_is_in_recovery() THEN false
			WHEN r.status IN ('running') THEN true
			WHEN r.status IN ('pending') THEN
				r.updated_at OPERATOR(pg_catalog.<)
				(pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) interval '30 seconds')
				-- nobody in a copy will take up what the original was asked for
				OR EXISTS (SELECT FROM sync_home h
					WHERE h.database_oid OPERATOR(pg_catalog.<>)
						(SELECT d.oid FROM pg_catalog.pg_database d
						 WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()))
			ELSE false
		END AS dead
	FROM sync_runs r
	LEFT JOIN LATERAL (
		SELECT k.pid FROM pg_catalog.pg_locks k
		WHERE r.status IN ('pending', 'running')
			AND k.locktype OPERATOR(pg_catalog.=) 'advisory'
			AND k.objsubid OPERATOR(pg_catalog.=) 18515
			AND k.granted
			AND k.database OPERATOR(pg_catalog.=)
				(SELECT d.oid FROM pg_catalog.pg_database d
				 WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())
			AND ((k.classid::bigint OPERATOR(pg_catalog.<<) 32)
				 OPERATOR(pg_catalog.|) k.objid::bigint) OPERATOR(pg_catalog.=) r.lock_key
		LIMIT 1
	) l ON true;
COMMENT ON VIEW sync_run_states IS 'runs, the process that holds their lock, and whether they are dead';

CREATE VIEW sync_logs AS
	SELECT s.id, s.platform, s.sync_type,
		CASE WHEN s.dead THEN 'failed' ELSE s.status END AS status,
		s.started_at, e.completed_at,
		CASE WHEN s.started_at IS NOT NULL THEN
		LEAST(GREATEST(pg_catalog.round(EXTRACT(epoch FROM
			COALESCE(e.completed_at, pg_catalog.clock_timestamp())
			OPERATOR(pg_catalog.-) s.started_at) OPERATOR(pg_catalog.*) 1000), 0),
			2147483647)::integer END AS duration_ms,
		s.records_processed, s.records_failed,
		CASE WHEN s.dead THEN COALESCE(s.error_details, '{}') OPERATOR(pg_catalog.||)
			'{"reason": "interrupted", "message": "the run''s process ended before the run did"}'
			ELSE s.error_details END AS error_details,
		s.created_at, s.direction, s.mode, s.timeframe, s.connection_id,
		s.requested_by, s.trigger_source, s.records_changed, s.records_unchanged,
		s.records_archived, s.requests, s.retries, s.bytes_received,
		s.checkpoint, s.continues
	FROM sync_run_states s
	CROSS JOIN LATERAL (
		SELECT CASE WHEN s.dead THEN s.updated_at ELSE s.completed_at END AS completed_at
	) e;
COMMENT ON VIEW sync_logs IS 'one row a run, live while it is under way; an interrupted run reads as failed at once';
COMMENT ON COLUMN sync_logs.id IS 'id of the run, as trigger_hubspot_sync() returned it';
COMMENT ON COLUMN sync_logs.platform IS 'hubspot';
COMMENT ON COLUMN sync_logs.sync_type IS 'what was synchronised';
COMMENT ON COLUMN sync_logs.status IS 'pending, running, success, partial, failed or cancelled';
COMMENT ON COLUMN sync_logs.started_at IS 'when the run''s process began';
COMMENT ON COLUMN sync_logs.completed_at IS 'when the run ended; for an interrupted run its last sign of life';
COMMENT ON COLUMN sync_logs.duration_ms IS 'milliseconds from start to end, or until now';
COMMENT ON COLUMN sync_logs.records_processed IS 'records received, or students that differ, those that failed included';
COMMENT ON COLUMN sync_logs.records_failed IS 'records that went to sync_errors';
COMMENT ON COLUMN sync_logs.error_details IS 'reason, message and HubSpot''s category, message and correlation id; also notes on what was replaced or left out';
COMMENT ON COLUMN sync_logs.created_at IS 'when the run was requested';
COMMENT ON COLUMN sync_logs.direction IS 'pull: from HubSpot; push: to HubSpot';
COMMENT ON COLUMN sync_logs.mode IS 'auto until the run starts, then full, incremental or timeframe; dry_run and properties for progress';
COMMENT ON COLUMN sync_logs.timeframe IS 'the timeframe asked for';
COMMENT ON COLUMN sync_logs.connection_id IS 'the connection used';
COMMENT ON COLUMN sync_logs.requested_by IS 'role that requested the run';
COMMENT ON COLUMN sync_logs.trigger_source IS 'sql: trigger_hubspot_sync(), call: run_hubspot_sync(), launcher: a schedule';
COMMENT ON COLUMN sync_logs.records_changed IS 'rows written';
COMMENT ON COLUMN sync_logs.records_unchanged IS 'records whose row needed no write';
COMMENT ON COLUMN sync_logs.records_archived IS 'rows marked or deleted because their record was archived';
COMMENT ON COLUMN sync_logs.requests IS 'HTTP requests made, repeated ones included';
COMMENT ON COLUMN sync_logs.retries IS 'HTTP requests that repeated another';
COMMENT ON COLUMN sync_logs.bytes_received IS 'bytes of answers as they came over the wire';
COMMENT ON COLUMN sync_logs.checkpoint IS 'how far the run came; a failed or interrupted one is continued from here';
COMMENT ON COLUMN sync_logs.continues IS 'the run that this one continued';

CREATE TABLE sync_errors (
	id				uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
	run_id			uuid NOT NULL,
	connection_id	uuid NOT NULL,
	sync_type		text NOT NULL,
	record_id		text NOT NULL,
	email			text,
	property		text,
	category		text NOT NULL,
	message			text NOT NULL,
	payload			jsonb,
	attempts		integer NOT NULL DEFAULT 1,
	first_seen		timestamptz NOT NULL,
	last_seen		timestamptz NOT NULL,
	resolved_at		timestamptz,
	UNIQUE NULLS NOT DISTINCT (connection_id, sync_type, record_id, property, category)
);
CREATE INDEX sync_errors_open_idx ON sync_errors (connection_id, sync_type, attempts)
	WHERE resolved_at IS NULL;
CREATE INDEX sync_errors_closed_idx ON sync_errors (connection_id, sync_type, resolved_at)
	WHERE resolved_at IS NOT NULL;
COMMENT ON TABLE sync_errors IS 'records that could not be stored, one row a record and cause; the next run reads them again';
COMMENT ON COLUMN sync_errors.id IS 'id of the entry';
COMMENT ON COLUMN sync_errors.run_id IS 'the run that saw it last';
COMMENT ON COLUMN sync_errors.connection_id IS 'the connection';
COMMENT ON COLUMN sync_errors.sync_type IS 'the sync type';
COMMENT ON COLUMN sync_errors.record_id IS 'HubSpot''s id, or sha256: and the payload''s hash where it has none or one too long; for progress the student''s id, or the name of a property';
COMMENT ON COLUMN sync_errors.email IS 'e-mail of the record, where it has one';
COMMENT ON COLUMN sync_errors.property IS 'property or column at fault, where known';
COMMENT ON COLUMN sync_errors.category IS 'no_id, invalid_id, invalid_value, constraint or trigger (it raised an exception); for progress no_email, invalid_email, duplicate_email, contact_not_found, duplicate_contact, refused, not_confirmed or definition';
COMMENT ON COLUMN sync_errors.message IS 'what PostgreSQL or HubSpot said';
COMMENT ON COLUMN sync_errors.payload IS 'the record as it was received';
COMMENT ON COLUMN sync_errors.attempts IS 'how often it failed';
COMMENT ON COLUMN sync_errors.first_seen IS 'first failure';
COMMENT ON COLUMN sync_errors.last_seen IS 'latest failure';
COMMENT ON COLUMN sync_errors.resolved_at IS 'when the record was stored after all';

CREATE TABLE sync_state (
	connection_id	uuid NOT NULL,
	sync_type		text NOT NULL,
	synced_until	timestamptz,
	last_full_at	timestamptz,
	last_full_mapping	text,
	last_deep_at	timestamptz,
	deep_until		timestamptz,
	last_refused_at	timestamptz,
	last_sweep_at	timestamptz,
	sweep_after		text,
	sweep_last_id	bigint,
	PRIMARY KEY (connection_id, sync_type)
);
COMMENT ON TABLE sync_state IS 'what completed runs have reached';
COMMENT ON COLUMN sync_state.connection_id IS 'the connection';
COMMENT ON COLUMN sync_state.sync_type IS 'the sync type';
COMMENT ON COLUMN sync_state.synced_until IS 'HubSpot''s clock at the start of the last completed run';
COMMENT ON COLUMN sync_state.last_full_at IS 'when a full run last completed';
COMMENT ON COLUMN sync_state.last_full_mapping IS 'fingerprint of the mapping it used, null once a run has begun to store by another one; another mapping makes auto full again';
COMMENT ON COLUMN sync_state.last_deep_at IS 'when a run that reached back by the deep overlap, or a full one, last completed';
COMMENT ON COLUMN sync_state.deep_until IS 'HubSpot''s clock at the start of that run';
COMMENT ON COLUMN sync_state.last_refused_at IS 'when a full run last found too many records absent to believe it; null once one was believed';
COMMENT ON COLUMN sync_state.last_sweep_at IS 'when the list of archived records was last read, to its end or as far as its share of the daily limit allowed';
COMMENT ON COLUMN sync_state.sweep_after IS 'where the next reading of that list begins; null: at its beginning';
COMMENT ON COLUMN sync_state.sweep_last_id IS 'highest id read of that list so far';

CREATE TABLE sync_rows (
	connection_id		uuid NOT NULL,
	sync_type			text NOT NULL,
	record_id			text NOT NULL,
	hubspot_updated_at	timestamptz,
	archived			boolean NOT NULL DEFAULT false,
	archived_at			timestamptz,
	archived_reason		text,
	merged_into			text,
	synced_at			timestamptz NOT NULL,
	PRIMARY KEY (connection_id, sync_type, record_id)
);
COMMENT ON TABLE sync_rows IS 'bookkeeping per record for target tables that lack the columns for it, and for deleted rows';
COMMENT ON COLUMN sync_rows.connection_id IS 'the connection';
COMMENT ON COLUMN sync_rows.sync_type IS 'the sync type';
COMMENT ON COLUMN sync_rows.record_id IS 'HubSpot''s id';
COMMENT ON COLUMN sync_rows.hubspot_updated_at IS 'HubSpot''s time of the last change stored';
COMMENT ON COLUMN sync_rows.archived IS 'the record is archived in HubSpot';
COMMENT ON COLUMN sync_rows.archived_at IS 'when it was archived';
COMMENT ON COLUMN sync_rows.archived_reason IS 'archived, merged, gone or filtered';
COMMENT ON COLUMN sync_rows.merged_into IS 'id of the record this one was merged into';
COMMENT ON COLUMN sync_rows.synced_at IS 'when the target row was last written';

-- Rows whose record was not where it should have been, until that is settled.
CREATE TABLE sync_absences (
	connection_id	uuid NOT NULL,
	sync_type		text NOT NULL,
	record_id		text NOT NULL,
	run_id			uuid NOT NULL,
	origin			text NOT NULL CHECK (origin IN ('list', 'merge', 'archive')),
	merged_into		text,
	verdict			text CHECK (verdict IN ('gone', 'merged')),
	accepted		boolean NOT NULL DEFAULT false,
	PRIMARY KEY (connection_id, sync_type, record_id)
);
COMMENT ON TABLE sync_absences IS 'records that a walk missed, until they are read one by one';
COMMENT ON COLUMN sync_absences.connection_id IS 'the connection';
COMMENT ON COLUMN sync_absences.sync_type IS 'the sync type';
COMMENT ON COLUMN sync_absences.record_id IS 'HubSpot''s id';
COMMENT ON COLUMN sync_absences.run_id IS 'the run that looked last';
COMMENT ON COLUMN sync_absences.origin IS 'list: not on the list of records; merge: another record says that it was merged into that; archive: archived here, but not on the list of archived records';
COMMENT ON COLUMN sync_absences.merged_into IS 'the record that says so';
COMMENT ON COLUMN sync_absences.verdict IS 'what reading it said: gone or merged; null: not read yet';
COMMENT ON COLUMN sync_absences.accepted IS 'accept_hubspot_absence() was called for it';

CREATE TABLE sync_owner_reads (
	connection_id		uuid NOT NULL,
	hubspot_contact_id	text NOT NULL,
	urgent				boolean NOT NULL DEFAULT true,
	attempts			integer NOT NULL DEFAULT 0,
	PRIMARY KEY (connection_id, hubspot_contact_id)
);
COMMENT ON TABLE sync_owner_reads IS 'contacts whose owner changed and whose history of owners is still to be read';
COMMENT ON COLUMN sync_owner_reads.connection_id IS 'the connection';
COMMENT ON COLUMN sync_owner_reads.hubspot_contact_id IS 'HubSpot''s id of the contact';
COMMENT ON COLUMN sync_owner_reads.urgent IS 'true: his owner changed, read by the same run; false: new to us, some are read by each run';
COMMENT ON COLUMN sync_owner_reads.attempts IS 'how often HubSpot did not answer';

CREATE TABLE sync_properties (
	connection_id	uuid NOT NULL,
	object_type		text NOT NULL,
	properties		text[] NOT NULL,
	read_at			timestamptz NOT NULL,
	PRIMARY KEY (connection_id, object_type)
);
COMMENT ON TABLE sync_properties IS 'which properties HubSpot defines, for types that fetch all of them';
COMMENT ON COLUMN sync_properties.connection_id IS 'the connection';
COMMENT ON COLUMN sync_properties.object_type IS 'HubSpot''s name or id of the object type';
COMMENT ON COLUMN sync_properties.properties IS 'names of the properties';
COMMENT ON COLUMN sync_properties.read_at IS 'when they were read';

CREATE TABLE sync_removals (
	sync_type		text NOT NULL,
	column_name		name
);
COMMENT ON TABLE sync_removals IS 'rows of sync_types and sync_fields that were deleted, so that a restored dump deletes them again';
COMMENT ON COLUMN sync_removals.sync_type IS 'the sync type';
COMMENT ON COLUMN sync_removals.column_name IS 'the field''s column; null: the type itself';

-- ---------------------------------------------------------------------------
-- Students' progress
-- ---------------------------------------------------------------------------

CREATE TABLE progress_sources (
	source			text NOT NULL
					CHECK (source IN ('users', 'course_progress', 'user_streaks', 'user_xp', 'course_lessons',
						'level', 'milestones')),
	level			text NOT NULL DEFAULT ''
					CHECK (level OPERATOR(pg_catalog.~) '^([a-z][a-z0-9_]{0,76})?$'),
	table_schema	name,
	table_name		name,
	columns			jsonb NOT NULL DEFAULT '{}'
					CHECK (pg_catalog.jsonb_typeof(columns) OPERATOR(pg_catalog.=) 'object'),
	total_units		integer CHECK (total_units OPERATOR(pg_catalog.>) 0),
	enabled			boolean NOT NULL DEFAULT true,
	shipped			boolean NOT NULL DEFAULT false,
	configured_by	name,
	PRIMARY KEY (source, level),
	CHECK ((source IN ('level', 'milestones')) OPERATOR(pg_catalog.=) (level OPERATOR(pg_catalog.<>) '')),
	CHECK (table_name IS NOT NULL OR source IN ('level', 'milestones')),
	CHECK (table_schema IS NOT NULL OR source OPERATOR(pg_catalog.<>) 'users'),
	CHECK (enabled OR source OPERATOR(pg_catalog.<>) 'users'),
	CHECK (total_units IS NULL OR source OPERATOR(pg_catalog.=) 'level')
);
COMMENT ON TABLE progress_sources IS 'the school''s tables that students'' progress is computed from, where their names differ from the usual ones';
COMMENT ON COLUMN progress_sources.source IS 'users, course_progress, user_streaks, user_xp, course_lessons, level (units of one level) or milestones (of one level)';
COMMENT ON COLUMN progress_sources.level IS 'the level''s name in HubSpot''s properties, empty for sources that belong to no level';
COMMENT ON COLUMN progress_sources.table_schema IS 'schema of the table; null: that of users, for milestones that of their level. Levels nobody has named are looked for in that of users';
COMMENT ON COLUMN progress_sources.table_name IS 'name of the table; null: the level''s name with _progress or _milestones';
COMMENT ON COLUMN progress_sources.columns IS 'columns that have other names: {"user_id": "student_id"}; null instead of a name: leave that column out';
COMMENT ON COLUMN progress_sources.total_units IS 'units of the level; null: as many as any student has begun';
COMMENT ON COLUMN progress_sources.enabled IS 'false: leave this source out';
COMMENT ON COLUMN progress_sources.shipped IS 'row that came with the extension, unchanged';
COMMENT ON COLUMN progress_sources.configured_by IS 'role that last wrote the row, null if it came with the extension; must be a member of the owner of users';

CREATE TABLE progress_state (
	connection_id	uuid NOT NULL,
	user_id			text NOT NULL,
	email			text NOT NULL,
	contact_id		text NOT NULL,
	properties		jsonb NOT NULL,
	fingerprint		bigint NOT NULL,
	accepted_at		timestamptz,
	PRIMARY KEY (connection_id, user_id)
) WITH (fillfactor = 70);
CREATE INDEX progress_state_contact_idx ON progress_state (connection_id, contact_id);
COMMENT ON TABLE progress_state IS 'what HubSpot has accepted of each student, or may have';
COMMENT ON COLUMN progress_state.connection_id IS 'the connection';
COMMENT ON COLUMN progress_state.user_id IS 'the student';
COMMENT ON COLUMN progress_state.email IS 'e-mail by which the contact was found, in lower case';
COMMENT ON COLUMN progress_state.contact_id IS 'HubSpot''s id of the contact';
COMMENT ON COLUMN progress_state.properties IS 'the values accepted last, without those that were cleared; where the fingerprint is 0, the values sent last';
COMMENT ON COLUMN progress_state.fingerprint IS 'of the values accepted; 0: sent and not confirmed, or to be sent again';
COMMENT ON COLUMN progress_state.accepted_at IS 'when values were accepted last; null: not yet';

CREATE TABLE progress_leftovers (
	connection_id	uuid NOT NULL,
	contact_id		text NOT NULL,
	properties		jsonb NOT NULL,
	PRIMARY KEY (connection_id, contact_id)
);
COMMENT ON TABLE progress_leftovers IS 'what contacts have of students who have another contact now; whoever gets such a contact clears it';
COMMENT ON COLUMN progress_leftovers.connection_id IS 'the connection';
COMMENT ON COLUMN progress_leftovers.contact_id IS 'HubSpot''s id of the contact';
COMMENT ON COLUMN progress_leftovers.properties IS 'the values it has, as far as is known';

CREATE TABLE progress_properties (
	connection_id	uuid NOT NULL,
	name			text NOT NULL,
	problem			text,
	checked_at		timestamptz NOT NULL,
	PRIMARY KEY (connection_id, name)
);
COMMENT ON TABLE progress_properties IS 'properties for students'' progress that HubSpot was found to have';
COMMENT ON COLUMN progress_properties.connection_id IS 'the connection';
COMMENT ON COLUMN progress_properties.name IS 'the property';
COMMENT ON COLUMN progress_properties.problem IS 'why it cannot be used; null: it can';
COMMENT ON COLUMN progress_properties.checked_at IS 'when that was looked at';

-- ---------------------------------------------------------------------------
-- What the extension ships
-- ---------------------------------------------------------------------------

INSERT INTO sync_connections (connection_id, name, shipped) VALUES
	('00000000-0000-0000-0000-000000000000', 'default', true);

INSERT INTO sync_types (sync_type, source, object_type, target_table, key_columns,
	modified_property, created_property, "interval", run_at, shipped) VALUES
	('contacts', 'objects', 'contacts', 'contacts', '{connection_id,hubspot_contact_id}',
		'lastmodifieddate', 'createdate', '5 minutes', NULL, true),
	('deals', 'objects', 'deals', 'deals', '{connection_id,hubspot_deal_id}',
		'hs_lastmodifieddate', 'createdate', '15 minutes', NULL, true),
	('owners', 'owners', 'owners', 'staff', '{connection_id,id}',
		NULL, NULL, NULL, '6:00', true),
	('progress', 'progress', 'contacts', 'users', '{id}',
		NULL, NULL, '1 hour', NULL, true);

INSERT INTO progress_sources (source, table_schema, table_name, shipped) VALUES
	('users', 'public', 'users', true),
	('course_progress', NULL, 'course_progress', true),
	('user_streaks', NULL, 'user_streaks', true),
	('user_xp', NULL, 'user_xp', true),
	('course_lessons', NULL, 'course_lessons', true);

INSERT INTO sync_fields (sync_type, column_name, property, transform, argument, insert_only, shipped) VALUES
	('contacts', 'email', 'email', 'value', NULL, false, true),
	('contacts', 'first_name', 'firstname', 'value', NULL, false, true),
	('contacts', 'last_name', 'lastname', 'value', NULL, false, true),
	('contacts', 'phone', 'phone', 'value', NULL, false, true),
	('contacts', 'owner_id', 'hubspot_owner_id', 'value', NULL, false, true),
	('contacts', 'lifecycle_stage', 'lifecyclestage', 'value', NULL, false, true),
	('contacts', 'status', 'hs_lead_status', 'value', NULL, false, true),
	('contacts', 'created_at', 'createdate', 'value', NULL, false, true),
	('contacts', 'updated_at', NULL, 'now', NULL, false, true),
	('deals', 'deal_name', 'dealname', 'value', NULL, false, true),
	('deals', 'deal_value', 'amount', 'value', NULL, false, true),
	('deals', 'stage', 'dealstage', 'value', NULL, false, true),
	('deals', 'status', 'dealstage', 'deal_status', NULL, false, true),
	('deals', 'close_date', 'closedate', 'value', NULL, false, true),
	('deals', 'closer_id', 'hubspot_owner_id', 'value', NULL, false, true),
	('deals', 'pipeline', 'pipeline', 'value', NULL, false, true),
	('deals', 'created_at', 'createdate', 'value', NULL, false, true),
	('deals', 'updated_at', NULL, 'now', NULL, false, true),
	('owners', 'name', NULL, 'owner_name', NULL, false, true),
	('owners', 'email', 'email', 'value', NULL, false, true),
	('owners', 'role', NULL, 'constant', 'coach', true, true),
	('owners', 'created_at', 'createdAt', 'value', NULL, false, true);

-- Autovacuum leaves tables this small alone. Without statistics the planner
-- takes them for large, and compiles the views below for seconds (jit).
ANALYZE sync_connections, sync_types, sync_fields, progress_sources;

-- Whoever names a target table decides what our worker writes there as the
-- table's owner, so he must be a member of that role.
CREATE FUNCTION hubspot_sync_check_configuration() RETURNS trigger
	AS 'MODULE_PATHNAME', 'hubspot_sync_check_configuration' LANGUAGE C;
COMMENT ON FUNCTION hubspot_sync_check_configuration() IS 'accepts a target table only from a member of its owner, and notes who wrote the row; a shipped row that is inserted again, as from a dump, is changed instead';

CREATE TRIGGER sync_types_check BEFORE INSERT OR UPDATE OR DELETE ON sync_types
	FOR EACH ROW EXECUTE FUNCTION hubspot_sync_check_configuration();
ALTER TABLE sync_types ENABLE ALWAYS TRIGGER sync_types_check;
COMMENT ON TRIGGER sync_types_check ON sync_types IS 'only members of the target''s owner may configure it';
CREATE TRIGGER sync_fields_check BEFORE INSERT OR UPDATE OR DELETE ON sync_fields
	FOR EACH ROW EXECUTE FUNCTION hubspot_sync_check_configuration();
ALTER TABLE sync_fields ENABLE ALWAYS TRIGGER sync_fields_check;
COMMENT ON TRIGGER sync_fields_check ON sync_fields IS 'only members of the target''s owner may configure it';

-- No foreign key does this: a dump restored by several processes fills the
-- tables in any order.
CREATE FUNCTION hubspot_sync_drop_fields() RETURNS trigger
	AS 'MODULE_PATHNAME', 'hubspot_sync_drop_fields' LANGUAGE C;
COMMENT ON FUNCTION hubspot_sync_drop_fields() IS 'deletes the fields of a deleted sync type';
CREATE TRIGGER sync_types_drop_fields AFTER DELETE ON sync_types
	FOR EACH ROW EXECUTE FUNCTION hubspot_sync_drop_fields();
ALTER TABLE sync_types ENABLE ALWAYS TRIGGER sync_types_drop_fields;
COMMENT ON TRIGGER sync_types_drop_fields ON sync_types IS 'deletes the fields of a deleted sync type';

CREATE FUNCTION hubspot_sync_check_connection() RETURNS trigger
	AS 'MODULE_PATHNAME', 'hubspot_sync_check_connection' LANGUAGE C;
COMMENT ON FUNCTION hubspot_sync_check_connection() IS 'notes that a connection is not as it was shipped; one that is inserted again, as from a dump, is changed instead';
CREATE TRIGGER sync_connections_check BEFORE INSERT OR UPDATE OR DELETE ON sync_connections
	FOR EACH ROW EXECUTE FUNCTION hubspot_sync_check_connection();
ALTER TABLE sync_connections ENABLE ALWAYS TRIGGER sync_connections_check;
COMMENT ON TRIGGER sync_connections_check ON sync_connections IS 'makes changes of shipped rows survive a dump';

CREATE FUNCTION hubspot_sync_check_source() RETURNS trigger
	AS 'MODULE_PATHNAME', 'hubspot_sync_check_source' LANGUAGE C;
COMMENT ON FUNCTION hubspot_sync_check_source() IS 'accepts a source only from a member of its owner, and notes who wrote the row; a shipped row that is inserted again, as from a dump, is changed instead';
CREATE TRIGGER progress_sources_check BEFORE INSERT OR UPDATE OR DELETE ON progress_sources
	FOR EACH ROW EXECUTE FUNCTION hubspot_sync_check_source();
ALTER TABLE progress_sources ENABLE ALWAYS TRIGGER progress_sources_check;
COMMENT ON TRIGGER progress_sources_check ON progress_sources IS 'only members of the tables'' owner may configure them';

-- TRUNCATE fires no row triggers, and would leave nothing noted.
CREATE TRIGGER sync_types_truncate BEFORE TRUNCATE ON sync_types
	EXECUTE FUNCTION hubspot_sync_check_configuration();
ALTER TABLE sync_types ENABLE ALWAYS TRIGGER sync_types_truncate;
COMMENT ON TRIGGER sync_types_truncate ON sync_types IS 'refuses TRUNCATE';
CREATE TRIGGER sync_fields_truncate BEFORE TRUNCATE ON sync_fields
	EXECUTE FUNCTION hubspot_sync_check_configuration();
ALTER TABLE sync_fields ENABLE ALWAYS TRIGGER sync_fields_truncate;
COMMENT ON TRIGGER sync_fields_truncate ON sync_fields IS 'refuses TRUNCATE';
CREATE TRIGGER sync_connections_truncate BEFORE TRUNCATE ON sync_connections
	EXECUTE FUNCTION hubspot_sync_check_connection();
ALTER TABLE sync_connections ENABLE ALWAYS TRIGGER sync_connections_truncate;
COMMENT ON TRIGGER sync_connections_truncate ON sync_connections IS 'refuses TRUNCATE';
CREATE TRIGGER progress_sources_truncate BEFORE TRUNCATE ON progress_sources
	EXECUTE FUNCTION hubspot_sync_check_source();
ALTER TABLE progress_sources ENABLE ALWAYS TRIGGER progress_sources_truncate;
COMMENT ON TRIGGER progress_sources_truncate ON progress_sources IS 'refuses TRUNCATE';

-- A dump holds what was deleted; the script above has just brought it back.
CREATE FUNCTION hubspot_sync_restore_removal() RETURNS trigger
	AS 'MODULE_PATHNAME', 'hubspot_sync_restore_removal' LANGUAGE C;
COMMENT ON FUNCTION hubspot_sync_restore_removal() IS 'deletes the shipped row that a row of sync_removals is about';
CREATE TRIGGER sync_removals_restore BEFORE INSERT ON sync_removals
	FOR EACH ROW EXECUTE FUNCTION hubspot_sync_restore_removal();
ALTER TABLE sync_removals ENABLE ALWAYS TRIGGER sync_removals_restore;
COMMENT ON TRIGGER sync_removals_restore ON sync_removals IS 'makes removals survive a dump';

-- ---------------------------------------------------------------------------
-- Dumps
-- ---------------------------------------------------------------------------

SELECT pg_catalog.pg_extension_config_dump('sync_connections', 'WHERE NOT shipped');
SELECT pg_catalog.pg_extension_config_dump('sync_types', 'WHERE NOT shipped');
SELECT pg_catalog.pg_extension_config_dump('sync_fields', 'WHERE NOT shipped');
SELECT pg_catalog.pg_extension_config_dump('sync_removals', '');
SELECT pg_catalog.pg_extension_config_dump('sync_home', '');
SELECT pg_catalog.pg_extension_config_dump('contacts', '');
SELECT pg_catalog.pg_extension_config_dump('deals', '');
SELECT pg_catalog.pg_extension_config_dump('staff', '');
SELECT pg_catalog.pg_extension_config_dump('contact_owner_history', '');
SELECT pg_catalog.pg_extension_config_dump('sync_runs', '');
SELECT pg_catalog.pg_extension_config_dump('sync_errors', '');
SELECT pg_catalog.pg_extension_config_dump('sync_state', '');
SELECT pg_catalog.pg_extension_config_dump('sync_rows', '');
SELECT pg_catalog.pg_extension_config_dump('sync_absences', '');
SELECT pg_catalog.pg_extension_config_dump('sync_owner_reads', '');
SELECT pg_catalog.pg_extension_config_dump('progress_sources', 'WHERE NOT shipped');
SELECT pg_catalog.pg_extension_config_dump('progress_state', '');
SELECT pg_catalog.pg_extension_config_dump('progress_leftovers', '');

-- ---------------------------------------------------------------------------
-- Functions
-- ---------------------------------------------------------------------------

CREATE FUNCTION trigger_hubspot_sync(sync_type text) RETURNS uuid
	AS 'MODULE_PATHNAME', 'hubspot_sync_trigger' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION trigger_hubspot_sync(text) IS 'requests a run in mode auto; it starts when the transaction commits; returns its id';

CREATE FUNCTION trigger_hubspot_sync(sync_type text, mode text, timeframe text DEFAULT NULL,
		connection text DEFAULT NULL) RETURNS uuid
	AS 'MODULE_PATHNAME', 'hubspot_sync_trigger' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION trigger_hubspot_sync(text, text, text, text) IS 'requests a run; it starts when the transaction commits; returns its id';

CREATE PROCEDURE run_hubspot_sync(sync_type text, mode text DEFAULT 'auto',
		timeframe text DEFAULT NULL, connection text DEFAULT NULL,
		INOUT run_id uuid DEFAULT NULL, INOUT status text DEFAULT NULL,
		INOUT records_processed integer DEFAULT NULL,
		INOUT records_failed integer DEFAULT NULL)
	AS 'MODULE_PATHNAME', 'hubspot_sync_run' LANGUAGE C;
COMMENT ON PROCEDURE run_hubspot_sync(text, text, text, text, uuid, text, integer, integer) IS 'requests a run, waits for its end and shows its progress';

CREATE PROCEDURE wait_for_hubspot_sync(run_id uuid, timeout interval DEFAULT '5 minutes',
		INOUT status text DEFAULT NULL)
	AS 'MODULE_PATHNAME', 'hubspot_sync_wait' LANGUAGE C;
COMMENT ON PROCEDURE wait_for_hubspot_sync(uuid, interval, text) IS 'waits for a run''s end, at most so long, and returns its status';

CREATE FUNCTION cancel_hubspot_sync(run_id uuid) RETURNS boolean
	AS 'MODULE_PATHNAME', 'hubspot_sync_cancel' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION cancel_hubspot_sync(uuid) IS 'cancels a run; false if it was not under way';

CREATE FUNCTION get_latest_sync_status() RETURNS TABLE (sync_type text,
		last_sync_time timestamptz, status text, records_processed integer,
		records_failed integer, duration_ms integer)
	LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
	-- bound to the objects themselves, so that nobody can put others in their place
	BEGIN ATOMIC
		SELECT t.sync_type, COALESCE(l.completed_at, l.started_at, l.created_at),
			l.status, l.records_processed, l.records_failed, l.duration_ms
		FROM sync_types t
		LEFT JOIN LATERAL (
			SELECT r.id FROM sync_runs r
			WHERE r.sync_type OPERATOR(pg_catalog.=) t.sync_type
				-- what sends no progress says nothing about it
				AND r.mode OPERATOR(pg_catalog.<>) 'dry_run'
				AND r.mode OPERATOR(pg_catalog.<>) 'properties'
			ORDER BY r.created_at DESC LIMIT 1
		) n ON true
		-- one by one, so that the index is used however long the log is
		LEFT JOIN LATERAL (
			SELECT s.* FROM sync_logs s
			WHERE s.id OPERATOR(pg_catalog.=) n.id LIMIT 1
		) l ON true
		WHERE t.enabled
		ORDER BY t.sync_type;
	END;
COMMENT ON FUNCTION get_latest_sync_status() IS 'the newest run of every enabled sync type';

CREATE FUNCTION test_hubspot_connection(connection text DEFAULT NULL)
	RETURNS TABLE (ok boolean, portal_id text, latency_ms integer, message text)
	AS 'MODULE_PATHNAME', 'hubspot_sync_test_connection' LANGUAGE C VOLATILE ROWS 1;
COMMENT ON FUNCTION test_hubspot_connection(text) IS 'makes one request to HubSpot and says whether the token works';

CREATE FUNCTION schedule_hubspot_sync()
	RETURNS TABLE (job_name text, schedule text, command text)
	AS 'MODULE_PATHNAME', 'hubspot_sync_schedule' LANGUAGE C VOLATILE ROWS 4;
COMMENT ON FUNCTION schedule_hubspot_sync() IS 'creates the pg_cron jobs for contacts, deals, owners and students'' progress';

CREATE FUNCTION unschedule_hubspot_sync() RETURNS integer
	AS 'MODULE_PATHNAME', 'hubspot_sync_unschedule' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION unschedule_hubspot_sync() IS 'removes the jobs of schedule_hubspot_sync() and returns how many there were';

CREATE FUNCTION accept_hubspot_absence(run_id uuid) RETURNS integer
	AS 'MODULE_PATHNAME', 'hubspot_sync_accept_absence' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION accept_hubspot_absence(uuid) IS 'lets the next run archive the records that this run found absent and did not believe to be, or clear the values of students it found to have lost all of them; returns how many';

CREATE FUNCTION adopt_hubspot_sync() RETURNS void
	AS 'MODULE_PATHNAME', 'hubspot_sync_adopt' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION adopt_hubspot_sync() IS 'says that this restored or copied database, not the original, calls HubSpot from now on';

CREATE FUNCTION map_hubspot_sync(sync_type text, target regclass, key_columns text[],
		field_map jsonb DEFAULT NULL, delete_policy text DEFAULT NULL)
	RETURNS TABLE (property text, column_name text, remark text)
	AS 'MODULE_PATHNAME', 'hubspot_sync_map' LANGUAGE C VOLATILE ROWS 10;
COMMENT ON FUNCTION map_hubspot_sync(text, regclass, text[], jsonb, text) IS 'points a sync type at a table of your own, and explains what goes where';

CREATE FUNCTION get_hubspot_rate_limits()
	RETURNS TABLE (connection text, bucket text, capacity integer, available integer,
		held_until timestamptz)
	AS 'MODULE_PATHNAME', 'hubspot_sync_rate_limits' LANGUAGE C VOLATILE ROWS 2;
COMMENT ON FUNCTION get_hubspot_rate_limits() IS 'how many requests each connection may send at this moment, as this server counts them';

CREATE FUNCTION push_student_progress() RETURNS uuid
	AS 'MODULE_PATHNAME', 'hubspot_sync_push' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION push_student_progress() IS 'requests a run that sends students'' progress to their contacts; it starts when the transaction commits; returns its id';

CREATE FUNCTION push_student_progress(email text, dry_run boolean DEFAULT false,
		connection text DEFAULT NULL) RETURNS uuid
	AS 'MODULE_PATHNAME', 'hubspot_sync_push' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION push_student_progress(text, boolean, text) IS 'the same for one student, or with null for all; a dry run counts the students that differ and sends nothing';

CREATE FUNCTION ensure_hubspot_properties(connection text DEFAULT NULL) RETURNS uuid
	AS 'MODULE_PATHNAME', 'hubspot_sync_ensure_properties' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION ensure_hubspot_properties(text) IS 'requests a run that creates the properties for students'' progress where HubSpot lacks them; returns its id';

CREATE FUNCTION preview_student_progress(email text DEFAULT NULL)
	RETURNS TABLE (user_id text, email text, hubspot_contact_id text, changed boolean,
		properties jsonb, problem text)
	AS 'MODULE_PATHNAME', 'hubspot_sync_preview' LANGUAGE C STABLE ROWS 1000
	SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION preview_student_progress(text) IS 'what the next push would send of one student, or of all, as far as the caller may see them';

CREATE FUNCTION read_student_progress()
	RETURNS TABLE (user_id text, email text, lessons_completed bigint, current_lesson text,
		average_score numeric, total_study_time numeric, progress_percentage numeric,
		last_activity_date date, study_streak numeric, current_streak numeric,
		total_xp numeric, completed_lessons_list jsonb, current_active_level text,
		last_activity_date_global timestamptz, levels jsonb, level_activity jsonb)
	AS 'MODULE_PATHNAME', 'hubspot_sync_read_progress' LANGUAGE C STABLE ROWS 1000
	SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION read_student_progress() IS 'students'' progress as far as the caller may see it; what student_progress shows';

-- ---------------------------------------------------------------------------
-- What operators see
-- ---------------------------------------------------------------------------

-- The schema may hold operators of others that fit better than pg_catalog's.
SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

CREATE VIEW @extschema@.contact_owner_changes WITH (security_invoker = true) AS
	SELECT h.connection_id, h.hubspot_contact_id, h.valid_from AS changed_at,
		p.owner_id AS previous_owner_id, h.owner_id
	FROM @extschema@.contact_owner_history h
	LEFT JOIN @extschema@.contact_owner_history p
		ON p.connection_id = h.connection_id
		AND p.hubspot_contact_id = h.hubspot_contact_id
		AND p.valid_to = h.valid_from
	WHERE h.valid_from > now() - interval '7 days'
	UNION ALL
	SELECT h.connection_id, h.hubspot_contact_id, h.valid_to, h.owner_id, NULL
	FROM @extschema@.contact_owner_history h
	WHERE h.valid_to > now() - interval '7 days'
		AND NOT EXISTS (
			SELECT FROM @extschema@.contact_owner_history n
			WHERE n.connection_id = h.connection_id
				AND n.hubspot_contact_id = h.hubspot_contact_id
				AND n.valid_from = h.valid_to);
COMMENT ON VIEW @extschema@.contact_owner_changes IS 'changes of contacts'' owners in the last seven days';
COMMENT ON COLUMN @extschema@.contact_owner_changes.connection_id IS 'the connection the contact came through';
COMMENT ON COLUMN @extschema@.contact_owner_changes.hubspot_contact_id IS 'HubSpot''s id of the contact';
COMMENT ON COLUMN @extschema@.contact_owner_changes.changed_at IS 'when the owner changed';
COMMENT ON COLUMN @extschema@.contact_owner_changes.previous_owner_id IS 'the owner before; null: none';
COMMENT ON COLUMN @extschema@.contact_owner_changes.owner_id IS 'the owner since; null: none';

CREATE VIEW @extschema@.sync_statistics AS
	SELECT l.connection_id, l.sync_type, count(*) AS runs,
		count(*) FILTER (WHERE l.status = 'success') AS succeeded,
		count(*) FILTER (WHERE l.status = 'partial') AS partial,
		count(*) FILTER (WHERE l.status = 'failed') AS failed,
		count(*) FILTER (WHERE l.status = 'cancelled') AS cancelled,
		count(*) FILTER (WHERE l.status IN ('pending', 'running')) AS under_way,
		sum(l.records_processed) AS records_processed,
		sum(l.records_failed) AS records_failed,
		sum(l.records_changed) AS records_changed,
		sum(l.records_archived) AS records_archived,
		sum(l.requests) AS requests, sum(l.retries) AS retries,
		coalesce(sum((l.error_details ->> 'rate_limited')::bigint), 0) AS rate_limited,
		sum(l.bytes_received) AS bytes_received,
		round(avg(l.duration_ms) FILTER (WHERE l.completed_at IS NOT NULL))::integer
			AS average_duration_ms,
		max(l.duration_ms) AS longest_duration_ms,
		max(l.completed_at) FILTER (WHERE l.status IN ('success', 'partial')) AS last_success_at
	FROM @extschema@.sync_logs l
	WHERE l.created_at > now() - interval '24 hours'
	GROUP BY l.connection_id, l.sync_type;
COMMENT ON VIEW @extschema@.sync_statistics IS 'the last 24 hours, a row for each connection and sync type';
COMMENT ON COLUMN @extschema@.sync_statistics.connection_id IS 'the connection';
COMMENT ON COLUMN @extschema@.sync_statistics.sync_type IS 'the sync type';
COMMENT ON COLUMN @extschema@.sync_statistics.runs IS 'runs requested';
COMMENT ON COLUMN @extschema@.sync_statistics.succeeded IS 'of them ended success';
COMMENT ON COLUMN @extschema@.sync_statistics.partial IS 'of them ended partial';
COMMENT ON COLUMN @extschema@.sync_statistics.failed IS 'of them failed or were interrupted';
COMMENT ON COLUMN @extschema@.sync_statistics.cancelled IS 'of them were cancelled';
COMMENT ON COLUMN @extschema@.sync_statistics.under_way IS 'of them are pending or running';
COMMENT ON COLUMN @extschema@.sync_statistics.records_processed IS 'records received';
COMMENT ON COLUMN @extschema@.sync_statistics.records_failed IS 'records that could not be stored';
COMMENT ON COLUMN @extschema@.sync_statistics.records_changed IS 'rows written';
COMMENT ON COLUMN @extschema@.sync_statistics.records_archived IS 'rows marked or deleted';
COMMENT ON COLUMN @extschema@.sync_statistics.requests IS 'HTTP requests';
COMMENT ON COLUMN @extschema@.sync_statistics.retries IS 'of them repeated another';
COMMENT ON COLUMN @extschema@.sync_statistics.rate_limited IS 'answers with status 429, of runs that have ended';
COMMENT ON COLUMN @extschema@.sync_statistics.bytes_received IS 'bytes received';
COMMENT ON COLUMN @extschema@.sync_statistics.average_duration_ms IS 'mean duration of the runs that have ended';
COMMENT ON COLUMN @extschema@.sync_statistics.longest_duration_ms IS 'duration of the longest run';
COMMENT ON COLUMN @extschema@.sync_statistics.last_success_at IS 'end of the latest run that read everything';

CREATE VIEW @extschema@.student_progress WITH (security_invoker = true) AS
	SELECT user_id, email, lessons_completed, current_lesson, average_score,
		total_study_time, progress_percentage, last_activity_date, study_streak,
		current_streak, total_xp, completed_lessons_list, current_active_level,
		last_activity_date_global, levels
	FROM @extschema@.read_student_progress();
COMMENT ON VIEW @extschema@.student_progress IS 'one row a student: the values that the push sends';
COMMENT ON COLUMN @extschema@.student_progress.user_id IS 'the student''s id in users';
COMMENT ON COLUMN @extschema@.student_progress.email IS 'the student''s e-mail address';
COMMENT ON COLUMN @extschema@.student_progress.lessons_completed IS 'lessons completed';
COMMENT ON COLUMN @extschema@.student_progress.current_lesson IS 'lesson opened last';
COMMENT ON COLUMN @extschema@.student_progress.average_score IS 'mean score of the completed lessons that have one';
COMMENT ON COLUMN @extschema@.student_progress.total_study_time IS 'minutes spent on course and levels';
COMMENT ON COLUMN @extschema@.student_progress.progress_percentage IS 'completed lessons in per cent of the course''s';
COMMENT ON COLUMN @extschema@.student_progress.last_activity_date IS 'day, in UTC, on which a lesson was opened last';
COMMENT ON COLUMN @extschema@.student_progress.study_streak IS 'days studied in a row';
COMMENT ON COLUMN @extschema@.student_progress.current_streak IS 'days studied in a row';
COMMENT ON COLUMN @extschema@.student_progress.total_xp IS 'experience points';
COMMENT ON COLUMN @extschema@.student_progress.completed_lessons_list IS 'ids of the completed lessons, the one opened last at the end';
COMMENT ON COLUMN @extschema@.student_progress.current_active_level IS 'level with the newest activity';
COMMENT ON COLUMN @extschema@.student_progress.last_activity_date_global IS 'newest activity in course and levels';
COMMENT ON COLUMN @extschema@.student_progress.levels IS 'by level: units_completed, accuracy, milestones, status';

CREATE VIEW @extschema@.level_progress_summary WITH (security_invoker = true) AS
	SELECT l.key AS level,
		count(*) FILTER (WHERE p.level_activity ? l.key) AS students,
		count(*) FILTER (WHERE l.value ->> 'status' = 'completed') AS completed,
		round(avg((l.value ->> 'accuracy')::numeric), 2) AS mean_accuracy,
		count(*) FILTER (WHERE (p.level_activity ->> l.key)::timestamptz
			> now() - interval '168 hours') AS active_last_7_days
	FROM @extschema@.read_student_progress() p
	CROSS JOIN LATERAL jsonb_each(p.levels) l
	GROUP BY l.key;
COMMENT ON VIEW @extschema@.level_progress_summary IS 'one row a level';
COMMENT ON COLUMN @extschema@.level_progress_summary.level IS 'the level';
COMMENT ON COLUMN @extschema@.level_progress_summary.students IS 'students who have begun it';
COMMENT ON COLUMN @extschema@.level_progress_summary.completed IS 'of them have completed it';
COMMENT ON COLUMN @extschema@.level_progress_summary.mean_accuracy IS 'mean of the students'' accuracy';
COMMENT ON COLUMN @extschema@.level_progress_summary.active_last_7_days IS 'students who worked on it in the last seven days';

CREATE FUNCTION @extschema@.inactive_students(days integer DEFAULT 7)
	RETURNS TABLE (user_id text, email text, last_activity timestamptz, days_inactive integer)
	LANGUAGE sql STABLE
	BEGIN ATOMIC
		SELECT p.user_id, p.email, p.last_activity_date_global,
			floor(extract(epoch FROM now() - p.last_activity_date_global) / 86400)::integer
		FROM @extschema@.read_student_progress() p
		WHERE p.last_activity_date_global IS NULL
			OR p.last_activity_date_global <= now() - inactive_students.days * interval '24 hours'
		ORDER BY p.last_activity_date_global NULLS FIRST, p.user_id;
	END;
COMMENT ON FUNCTION @extschema@.inactive_students(integer) IS 'students who did nothing for so many days, those who never did anything first';

-- The launcher's timetable.  A run in the future was requested before the
-- clock was set back, and counts for none; a daily one that failed is repeated.
CREATE VIEW @extschema@.sync_schedules AS
	SELECT c.connection_id, t.sync_type, t."interval", t.run_at,
		r.created_at AS last_run_at,
		CASE
			WHEN r.created_at IS NULL OR r.created_at > now() THEN now()
			WHEN t."interval" IS NOT NULL THEN r.created_at + t."interval"
			WHEN r.status = 'failed' THEN r.created_at + interval '15 minutes'
			WHEN d.today > now() THEN
				CASE WHEN r.created_at >= d.yesterday THEN d.today ELSE now() END
			WHEN r.created_at >= d.today THEN d.tomorrow
			ELSE now()
		END AS next_run_at,
		s.last_full_at + least(t.full_every, interval '100 years') AS full_due_at
	FROM @extschema@.sync_types t
	JOIN @extschema@.sync_connections c
		ON c.connection_id = '00000000-0000-0000-0000-000000000000'
	CROSS JOIN LATERAL (
		SELECT coalesce(nullif(current_setting('hubspot_sync.schedule_time_zone', true), ''),
			'UTC') AS zone
	) z
	CROSS JOIN LATERAL (
		SELECT ((now() AT TIME ZONE z.zone)::date - 1 + t.run_at) AT TIME ZONE z.zone AS yesterday,
			((now() AT TIME ZONE z.zone)::date + t.run_at) AT TIME ZONE z.zone AS today,
			((now() AT TIME ZONE z.zone)::date + 1 + t.run_at) AT TIME ZONE z.zone AS tomorrow
	) d
	LEFT JOIN LATERAL (
		SELECT x.created_at, x.status FROM @extschema@.sync_runs x
		WHERE x.connection_id = c.connection_id AND x.sync_type = t.sync_type AND x.scope = ''
		ORDER BY x.created_at DESC LIMIT 1
	) r ON true
	LEFT JOIN @extschema@.sync_state s
		ON s.connection_id = c.connection_id AND s.sync_type = t.sync_type
	WHERE t.enabled AND (t."interval" IS NOT NULL OR t.run_at IS NOT NULL)
		-- where there are no students, nobody expects a push
		AND (t.source <> 'progress' OR EXISTS (
			SELECT FROM @extschema@.progress_sources p
			JOIN pg_namespace n ON n.nspname = p.table_schema
			JOIN pg_class k ON k.relnamespace = n.oid AND k.relname = p.table_name
			JOIN pg_attribute a ON a.attrelid = k.oid AND NOT a.attisdropped
				AND a.attname = coalesce(p.columns ->> 'email', 'email')
			WHERE p.source = 'users'));
COMMENT ON VIEW @extschema@.sync_schedules IS 'when the launcher starts which run, where it is loaded and pg_cron has no job for the type';
COMMENT ON COLUMN @extschema@.sync_schedules.connection_id IS 'the connection';
COMMENT ON COLUMN @extschema@.sync_schedules.sync_type IS 'the sync type';
COMMENT ON COLUMN @extschema@.sync_schedules."interval" IS 'time between runs';
COMMENT ON COLUMN @extschema@.sync_schedules.run_at IS 'time of day of a daily run';
COMMENT ON COLUMN @extschema@.sync_schedules.last_run_at IS 'when a run was last requested, by whomever';
COMMENT ON COLUMN @extschema@.sync_schedules.next_run_at IS 'when the next one is due';
COMMENT ON COLUMN @extschema@.sync_schedules.full_due_at IS 'from when on a run in mode auto is a full one';

CREATE VIEW @extschema@.sync_alerts AS
	-- the newest run of each type that says how things are
	WITH newest AS (
		SELECT c.connection_id, t.sync_type, l.id, l.status, l.created_at,
			l.completed_at, l.error_details, l.direction, l.records_processed,
			l.records_failed, l.records_unchanged
		FROM @extschema@.sync_types t
		CROSS JOIN @extschema@.sync_connections c
		CROSS JOIN LATERAL (
			SELECT r.id FROM @extschema@.sync_runs r
			WHERE r.connection_id = c.connection_id AND r.sync_type = t.sync_type
				AND r.scope = '' AND r.status IN ('success', 'partial', 'failed')
			ORDER BY r.created_at DESC LIMIT 1
		) n
		CROSS JOIN LATERAL (
			SELECT x.* FROM @extschema@.sync_logs x WHERE x.id = n.id LIMIT 1
		) l
		WHERE t.enabled
	), dead AS (
		SELECT w.connection_id, w.sync_type, w.id, w.updated_at
		FROM @extschema@.sync_run_states w
		WHERE w.status IN ('pending', 'running') AND w.dead AND w.scope = ''
	)
	SELECT 'stale' AS alert, 'critical' AS severity, n.connection_id, n.sync_type,
		NULL::uuid AS run_id, g.completed_at AS since,
		CASE WHEN g.completed_at IS NULL
			THEN format('%s have never been synchronised', n.sync_type)
			ELSE format('no synchronisation of %s has completed for more than %s',
				n.sync_type, a.allowed) END AS message
	FROM @extschema@.sync_schedules n
	CROSS JOIN LATERAL (
		SELECT coalesce(n."interval" * 2, interval '26 hours') AS allowed
	) a
	LEFT JOIN LATERAL (
		SELECT r.completed_at FROM @extschema@.sync_runs r
		WHERE r.connection_id = n.connection_id AND r.sync_type = n.sync_type
			AND r.scope = '' AND r.status IN ('success', 'partial')
		ORDER BY r.created_at DESC LIMIT 1
	) g ON true
	WHERE (g.completed_at IS NULL OR g.completed_at < now() - a.allowed
			OR g.completed_at > now() + interval '5 minutes')
		-- a long first load is no reason for concern as long as it moves
		AND NOT EXISTS (
			SELECT FROM @extschema@.sync_run_states w
			WHERE w.connection_id = n.connection_id AND w.sync_type = n.sync_type
				AND w.status = 'running' AND NOT w.dead
				AND w.updated_at > now() - interval '10 minutes')
	UNION ALL
	SELECT 'failed_run', 'critical', d.connection_id, d.sync_type, d.id, d.updated_at,
		format('the latest run of %s was interrupted', d.sync_type)
	FROM dead d
	UNION ALL
	SELECT 'failed_run', 'critical', n.connection_id, n.sync_type, n.id, n.completed_at,
		format('the latest run of %s failed: %s', n.sync_type,
			coalesce(n.error_details ->> 'message', 'no reason is known'))
	FROM newest n
	WHERE n.status = 'failed'
		AND NOT EXISTS (SELECT FROM dead d WHERE d.connection_id = n.connection_id
			AND d.sync_type = n.sync_type)
	UNION ALL
	SELECT 'failed_records', 'warning', n.connection_id, n.sync_type, n.id, n.completed_at,
		format('%s of %s records of %s could not be stored', n.records_failed,
			n.records_processed, n.sync_type)
	FROM newest n
	WHERE n.records_failed::bigint * 10 > n.records_processed
		-- what is pushed counts the students that differ
		+ CASE n.direction WHEN 'push' THEN n.records_unchanged ELSE 0 END
	UNION ALL
	SELECT 'mass_absence', 'critical', a.connection_id, a.sync_type, a.run_id,
		min(r.completed_at),
		format('%s records of %s are absent in HubSpot, too many to archive them unasked; see accept_hubspot_absence()',
			count(*), a.sync_type)
	FROM @extschema@.sync_absences a
	JOIN @extschema@.sync_runs r ON r.id = a.run_id
	WHERE a.verdict = 'gone' AND a.origin = 'list' AND NOT a.accepted
		AND r.error_details ->> 'reason' = 'mass_absence'
	GROUP BY a.connection_id, a.sync_type, a.run_id
	UNION ALL
	SELECT 'token', CASE WHEN c.token_expires_at < now() + interval '1 day'
			THEN 'critical' ELSE 'warning' END,
		c.connection_id, NULL, NULL, NULL,
		CASE WHEN c.token_expires_at < now()
			THEN format('the token of connection %s has expired', c.name)
			ELSE format('the token of connection %s expires %s', c.name, c.token_expires_at) END
	FROM @extschema@.sync_connections c
	WHERE c.token_expires_at < now() + interval '7 days'
	UNION ALL
	SELECT 'token_refused', 'critical', n.connection_id, n.sync_type, n.id, n.completed_at,
		'HubSpot refuses the token'
	FROM newest n
	WHERE n.status = 'failed' AND n.error_details ->> 'reason' IN ('auth', 'token_file');
COMMENT ON VIEW @extschema@.sync_alerts IS 'what needs somebody''s attention now; empty if all is well';
COMMENT ON COLUMN @extschema@.sync_alerts.alert IS 'stale, failed_run, failed_records, mass_absence, token or token_refused';
COMMENT ON COLUMN @extschema@.sync_alerts.severity IS 'warning or critical';
COMMENT ON COLUMN @extschema@.sync_alerts.connection_id IS 'the connection';
COMMENT ON COLUMN @extschema@.sync_alerts.sync_type IS 'the sync type; null: all';
COMMENT ON COLUMN @extschema@.sync_alerts.run_id IS 'the run it is about';
COMMENT ON COLUMN @extschema@.sync_alerts.since IS 'the last good moment, or when the run ended';
COMMENT ON COLUMN @extschema@.sync_alerts.message IS 'what is the matter';

CREATE VIEW @extschema@.integration_health AS
	SELECT c.connection_id, c.name AS connection,
		CASE
			WHEN NOT l.used THEN 'unused'
			WHEN a.critical > 0 THEN 'failing'
			WHEN a.alerts > 0 THEN 'degraded'
			ELSE 'healthy'
		END AS status,
		l.last_success_at, l.under_way, e.open_errors, a.alerts,
		c.portal_id, c.token_expires_at
	FROM @extschema@.sync_connections c
	CROSS JOIN LATERAL (
		SELECT EXISTS (
			SELECT FROM @extschema@.sync_runs r WHERE r.connection_id = c.connection_id
		) AS used,
		(SELECT max(r.completed_at) FROM @extschema@.sync_runs r
			WHERE r.connection_id = c.connection_id
				AND r.status IN ('success', 'partial')) AS last_success_at,
		(SELECT count(*) FROM @extschema@.sync_run_states r
			WHERE r.connection_id = c.connection_id
				AND r.status IN ('pending', 'running') AND NOT r.dead) AS under_way
	) l
	CROSS JOIN LATERAL (
		SELECT count(*) AS open_errors FROM @extschema@.sync_errors x
		WHERE x.connection_id = c.connection_id AND x.resolved_at IS NULL
	) e
	CROSS JOIN LATERAL (
		SELECT count(*) AS alerts, count(*) FILTER (WHERE x.severity = 'critical') AS critical
		FROM @extschema@.sync_alerts x WHERE x.connection_id = c.connection_id
	) a;
COMMENT ON VIEW @extschema@.integration_health IS 'one row a connection: is all well';
COMMENT ON COLUMN @extschema@.integration_health.connection_id IS 'the connection';
COMMENT ON COLUMN @extschema@.integration_health.connection IS 'its name';
COMMENT ON COLUMN @extschema@.integration_health.status IS 'healthy; degraded: there are warnings; failing: there are critical alerts; unused: no run yet';
COMMENT ON COLUMN @extschema@.integration_health.last_success_at IS 'end of the latest run that read everything';
COMMENT ON COLUMN @extschema@.integration_health.under_way IS 'runs pending or running';
COMMENT ON COLUMN @extschema@.integration_health.open_errors IS 'records that wait in sync_errors';
COMMENT ON COLUMN @extschema@.integration_health.alerts IS 'rows in sync_alerts';
COMMENT ON COLUMN @extschema@.integration_health.portal_id IS 'number of the HubSpot account, once it is known';
COMMENT ON COLUMN @extschema@.integration_health.token_expires_at IS 'when the token stops working, if that is known';

-- ---------------------------------------------------------------------------
-- Privileges: nobody has any, whatever the database's default privileges say
-- ---------------------------------------------------------------------------

DO $$
DECLARE
	statement text;
BEGIN
	-- the schema may hold operators of others that fit better than ours
	PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
	FOR statement IN
		WITH member AS (
			SELECT d.classid, d.objid
			FROM pg_catalog.pg_depend d
			JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
			WHERE d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass
				AND d.deptype = 'e' AND e.extname = 'hubspot_sync'
		), object AS (
			SELECT 'TABLE ' || c.oid::pg_catalog.regclass AS name, c.relowner AS owner,
				COALESCE(c.relacl, pg_catalog.acldefault('r', c.relowner)) AS acl
			FROM member m JOIN pg_catalog.pg_class c ON c.oid = m.objid
			WHERE m.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
				AND c.relkind IN ('r', 'v')
			UNION ALL
			SELECT 'ROUTINE ' || p.oid::pg_catalog.regprocedure, p.proowner,
				COALESCE(p.proacl, pg_catalog.acldefault('f', p.proowner))
			FROM member m JOIN pg_catalog.pg_proc p ON p.oid = m.objid
			WHERE m.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
			UNION ALL
			SELECT 'TYPE ' || t.oid::pg_catalog.regtype, t.typowner,
				COALESCE(t.typacl, pg_catalog.acldefault('T', t.typowner))
			FROM member m JOIN pg_catalog.pg_type t ON t.oid = m.objid
			WHERE m.classid = 'pg_catalog.pg_type'::pg_catalog.regclass
				AND t.typtype = 'e'
		)
		SELECT DISTINCT pg_catalog.format('REVOKE ALL ON %s FROM %s CASCADE', o.name,
			CASE a.grantee WHEN 0 THEN 'PUBLIC'
				ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END)
		FROM object o CROSS JOIN LATERAL pg_catalog.aclexplode(o.acl) a
		WHERE a.grantee <> o.owner
	LOOP
		EXECUTE statement;
	END LOOP;
END
$$;
