/*-------------------------------------------------------------------------
 *
 * request.c
 *	  Requests for runs, and how they meet.
 *
 * A request is checked as far as it can be, written to the log as pending and
 * given a worker at commit.  There is one run of a type and connection at a
 * time; a request that finds another one
 *
 *	  closes it			if it is dead, and takes its place
 *	  joins it			if it asks for the same, or for auto while an unscoped
 *						run is under way: a job every five minutes stays quiet
 *						during a long first load
 *	  is refused		otherwise, naming the one in the way
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_authid.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/syscache.h"

#include "compat.h"
#include "guc.h"
#include "hubspot_sync.h"
#include "mapping.h"
#include "request.h"
#include "sources.h"
#include "subxact.h"
#include "worker.h"

#define DEFAULT_CONNECTION "default"

/* How long to wait for a transaction that is requesting the same. */
#define MEET_TIMEOUT "5s"

/* A dead run may be closed and taken by somebody else in between. */
#define MEET_ATTEMPTS 5

static const char *const modes[] = {"auto", "full", "incremental", NULL};
static const char *const push_modes[] = {
	"auto", "full", "incremental", "properties", "dry_run", NULL
};

/* ------------------------------------------------------------------------
 * Checks
 * ------------------------------------------------------------------------
 */

/*
 * Refuses where no run could work: on a standby, in a read-only transaction,
 * in a database whose encoding cannot hold the data.
 */
static void
check_server(void)
{
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("cannot synchronise on a standby server"),
				 errhint("Request the run on the primary.")));
	PreventCommandIfReadOnly("a HubSpot synchronisation");
	if (GetDatabaseEncoding() != PG_UTF8)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("hubspot_sync needs a database with encoding UTF8"),
				 errdetail("This database has encoding %s.",
						   GetDatabaseEncodingName())));
}

/*
 * Refuses where somebody has switched synchronisation off, or in a copy of
 * the database it belongs to: the original calls the same account.
 */
static void
check_home(void)
{
	if (!hs_enabled)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("synchronisation is switched off"),
				 errhint("Set \"hubspot_sync.enabled\" to on.")));
	if (!hs_catalog_is_home())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this database is a copy of the one that hubspot_sync was set up in"),
				 errdetail("The original may be calling the same HubSpot account."),
				 errhint("If this one is to take its place, call adopt_hubspot_sync() as a superuser.")));
}

/*
 * Reads the sync type asked for, or throws with the list of those there are.
 */
static HsSyncType *
find_type(const char *name)
{
	HsSyncType *type;

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the sync type must not be null"),
				 errhint("Known sync types: %s.", hs_catalog_known_types())));
	type = hs_catalog_sync_type(name);
	if (type == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("unknown sync type \"%s\"", name),
				 errhint("Known sync types: %s.", hs_catalog_known_types())));
	if (!type->enabled)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("sync type \"%s\" is disabled", name),
				 errhint("Set its column enabled in sync_types.")));
	return type;
}

/*
 * Reads the connection asked for, NULL for the default one, or throws with
 * the list of those there are.
 */
void
hs_request_connection(const char *name, HsConnection *connection)
{
	if (name == NULL)
		name = DEFAULT_CONNECTION;
	if (!hs_catalog_connection(name, connection))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("unknown connection \"%s\"", name),
				 errhint("Known connections: %s.",
						 hs_catalog_known_connections())));
}

static bool
is_progress(const HsSyncType *type)
{
	return strcmp(type->source, "progress") == 0;
}

/* Checks the mode, NULL for auto. */
static const char *
check_mode(const HsSyncType *type, const char *mode)
{
	const char *const *known = is_progress(type) ? push_modes : modes;

	if (mode == NULL)
		return known[0];
	for (int i = 0; known[i] != NULL; i++)
	{
		if (strcmp(mode, known[i]) == 0)
			return known[i];
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown mode \"%s\"", mode),
			 is_progress(type)
			 ? errhint("Known modes: auto, full, incremental, properties, dry_run.")
			 : errhint("Known modes: auto, full, incremental.")));
}

/*
 * Gives a request about progress its direction and scope.  What concerns one
 * student, or sends nothing, stands for no push of all.
 */
static void
resolve_push(const char *email, HsRunRequest *request)
{
	bool		partly = strcmp(request->mode, "dry_run") == 0 ||
		strcmp(request->mode, "properties") == 0;

	request->direction = "push";
	if (partly)
		request->scope = request->mode;
	if (email != NULL)
		request->scope = psprintf("%s%s" HS_STUDENT_SCOPE "%s", request->scope,
								  partly ? " " : "", email);
}

/*
 * Turns the timeframe into the request's range and scope.
 */
static void
resolve_timeframe(const HsSyncType *type, HsRunRequest *request)
{
	if (request->timeframe == NULL)
		return;
	if (!hs_catalog_timeframe(request->timeframe, &request->range_from,
							  &request->range_to))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown timeframe \"%s\"", request->timeframe),
				 errhint("Known timeframes: today, yesterday, this_week, last_week, this_month, last_month, this_year, last_7_days, last_30_days, last_90_days.")));
	if (type->created_property == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("sync type \"%s\" does not support timeframes",
						type->name),
				 errdetail("HubSpot cannot search these records by their time of creation.")));
	if (strcmp(request->mode, modes[0]) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a timeframe cannot be combined with mode \"%s\"",
						request->mode),
				 errhint("Leave the mode at auto.")));
	request->scope = psprintf("timeframe " INT64_FORMAT " " INT64_FORMAT,
							  request->range_from, request->range_to);
}

/*
 * Refuses while the session has settings of its own that the worker would not
 * see: it would call another place than the caller thinks.
 */
static void
check_settings(Oid owner)
{
	char	   *changed =
		hs_catalog_changed_settings(GetSessionUserId() == owner);

	if (changed != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("settings changed in this session would not reach the run: %s",
						changed),
				 errdetail("A run takes its settings from the server's configuration, its database and the role that owns the target table."),
				 errhint("Use ALTER SYSTEM (after LOAD 'hubspot_sync') or ALTER DATABASE, and RESET the settings here or reconnect.")));
}

/* Whether a role may log in. */
static bool
can_login(Oid role)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
	bool		result;

	if (!HeapTupleIsValid(tuple))
		return false;
	result = ((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin;
	ReleaseSysCache(tuple);
	return result;
}

/*
 * The role the run's worker will connect as: the target's owner.
 */
static Oid
find_owner(const HsSyncType *type)
{
	Oid			relation = is_progress(type) ? hs_sources_users()
		: hs_mapping_target(type);
	Oid			owner = hs_catalog_table_owner(relation);

	hs_mapping_check_roles(type, owner);
	if (HS_OWNER_NEEDS_LOGIN && !can_login(owner))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("role \"%s\", which owns the target table of sync type \"%s\", is not permitted to log in",
						GetUserNameFromId(owner, false), type->name),
				 errdetail("The run's worker connects as that role."),
				 errhint("Use ALTER ROLE ... LOGIN; a password is not needed.")));
	if (!DatumGetBool(DirectFunctionCall3(has_database_privilege_id_id,
										  ObjectIdGetDatum(owner),
										  ObjectIdGetDatum(MyDatabaseId),
										  CStringGetTextDatum("CONNECT"))))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("role \"%s\", which owns the target table of sync type \"%s\", may not connect to this database",
						GetUserNameFromId(owner, false), type->name),
				 errdetail("The run's worker connects as that role."),
				 errhint("Use GRANT CONNECT ON DATABASE.")));
	return owner;
}

/* ------------------------------------------------------------------------
 * Meeting other requests
 * ------------------------------------------------------------------------
 */

/* A uuid as text. */
static char *
uuid_text(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
}

/* Throws that another run is in the way. */
pg_noreturn static void
refuse(const HsRunRequest *request, const HsActiveRun *run)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_IN_USE),
			 errmsg("sync \"%s\" is already running in mode %s",
					request->sync_type, run->mode),
			 run->pid == 0
			 ? errdetail("Run %s, not begun yet, since %s.",
						 uuid_text(&run->id), run->started)
			 : errdetail("Run %s, process %d, since %s.",
						 uuid_text(&run->id), run->pid, run->started),
			 errhint("Wait with CALL wait_for_hubspot_sync('%s') or stop it with SELECT cancel_hubspot_sync('%s').",
					 uuid_text(&run->id), uuid_text(&run->id))));
}

/* Whether a request may join a run that is under way. */
static bool
may_join(const HsRunRequest *request, const HsActiveRun *run)
{
	if (strcmp(request->scope, run->scope) != 0)
		return false;
	if (request->scope[0] != '\0')
		return true;
	return strcmp(request->mode, "auto") == 0 ||
		strcmp(request->mode, run->mode) == 0;
}

/* A pending entry to insert. */
typedef struct Insertion
{
	const HsRunRequest *request;
	pg_uuid_t  *id;
	int64	   *lock_key;
	bool		inserted;
} Insertion;

static void
insert_entry(void *arg)
{
	Insertion  *insertion = arg;

	int			guc_level = NewGUCNestLevel();

	(void) set_config_option("lock_timeout", MEET_TIMEOUT, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	insertion->inserted = hs_catalog_insert_run(insertion->request,
												insertion->id,
												insertion->lock_key);
	AtEOXact_GUC(false, guc_level);
}

static bool
is_lock_timeout(const ErrorData *error, void *arg)
{
	return error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE;
}

/*
 * Inserts the pending entry, waiting for another transaction's undecided one
 * only for a while.
 */
static bool
insert_run(const HsRunRequest *request, pg_uuid_t *id, int64 *lock_key)
{
	Insertion	insertion = {.request = request, .id = id, .lock_key = lock_key};

	if (hs_subxact_try(insert_entry, is_lock_timeout, &insertion) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("sync \"%s\" is being requested by a transaction that is still open",
						request->sync_type),
				 errhint("Try again when that transaction has ended.")));
	return insertion.inserted;
}

/*
 * Adds the run, or finds one to join.  Returns whether it was added.
 */
static bool
insert_or_join(const HsRunRequest *request, pg_uuid_t *id, int64 *lock_key)
{
	HsActiveRun run;

	for (int i = 0; i < MEET_ATTEMPTS; i++)
	{
		if (insert_run(request, id, lock_key))
			return true;
		if (!hs_catalog_active_run(&request->connection_id,
								   request->sync_type, &run))
			continue;			/* it ended meanwhile */
		if (run.dead && !hs_worker_is_requested(&run.id))
		{
			hs_catalog_close_dead_run(&run.id);
			continue;
		}
		if (!may_join(request, &run))
			refuse(request, &run);
		*id = run.id;
		ereport(NOTICE,
				(errmsg("sync \"%s\" is already under way; joining run %s",
						request->sync_type, uuid_text(id))));
		return false;
	}
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_IN_USE),
			 errmsg("sync \"%s\" is being requested by others at the same time",
					request->sync_type),
			 errhint("Try again.")));
}

/*
 * Requests a run.  Returns true if it was added, to start when the current
 * transaction commits, and false if another one was joined; `id` is the
 * run's in both cases.  Throws for everything that can be refused already.
 */
bool
hs_request_run(const HsRequestArgs *args, pg_uuid_t *id)
{
	HsSyncType *type;
	HsConnection connection;
	HsRunRequest request = {
		.direction = "pull",
		.scope = "",
		.timeframe = args->timeframe,
		.trigger_source = args->source
	};
	HsExtension extension;
	HsRunTicket ticket = {.database = MyDatabaseId};

	check_server();
	check_home();
	type = find_type(args->sync_type);
	hs_request_connection(args->connection, &connection);
	request.connection_id = connection.id;
	request.connection_name = connection.name;
	request.sync_type = type->name;
	request.mode = check_mode(type, args->mode);
	request.requested_by = GetUserNameFromId(GetUserId(), false);
	if (is_progress(type))
		resolve_push(args->email, &request);
	else if (type->modified_property == NULL && strcmp(request.mode, "auto") != 0)
		request.mode = "full";	/* the only one there is */
	resolve_timeframe(type, &request);
	ticket.role = find_owner(type);
	/* The launcher's visitor is nobody's session. */
	if (strcmp(args->source, "launcher") != 0)
		check_settings(ticket.role);
	if (!insert_or_join(&request, id, &ticket.lock_key))
		return false;

	(void) hs_catalog_find_extension(&extension);
	ticket.extension = extension.oid;
	ticket.requester = GetTopTransactionId();
	ticket.run_id = *id;
	hs_worker_start_at_commit(&ticket, args->follow);
	return true;
}
