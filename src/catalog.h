/*-------------------------------------------------------------------------
 *
 * catalog.h
 *	  Typed rows in and out of the extension's own tables.
 *
 * All functions need a transaction.  They run fixed statements as the
 * extension's owner, with search_path = pg_catalog, pg_temp, whoever the
 * caller is: privileges are checked where a SQL function is entered.  They
 * throw what the statements throw, and 55000 where the extension is gone.
 * Results are palloc'd in the current memory context.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_CATALOG_H
#define HS_CATALOG_H

#include "postgres.h"

#include "access/htup.h"
#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "utils/relcache.h"
#include "utils/uuid.h"

/* The connection that came with the extension, in every installation. */
#define HS_DEFAULT_CONNECTION_ID "00000000-0000-0000-0000-000000000000"

/* How the scope of a run for one student begins; the address follows. */
#define HS_STUDENT_SCOPE "student "

/* An extension's place in this database. */
typedef struct HsExtension
{
	Oid			oid;
	Oid			owner;
	Oid			schema;
} HsExtension;

typedef struct HsConnection
{
	pg_uuid_t	id;
	char	   *name;
	char	   *portal_id;		/* NULL: not known yet */
} HsConnection;

typedef struct HsField
{
	char	   *column;
	char	   *property;		/* NULL where the transform needs none */
	char	   *transform;
	char	   *argument;
	bool		insert_only;
} HsField;

typedef struct HsSyncType
{
	char	   *name;
	char	   *source;
	char	   *object_type;
	char	   *target_schema;	/* NULL: the extension's */
	char	   *target_table;
	List	   *key_columns;	/* of char * */
	char	   *modified_property;	/* may be NULL */
	char	   *created_property;	/* may be NULL */
	bool		all_properties; /* fetch every one that HubSpot defines */
	List	   *properties;		/* of char *, beside those of the fields */
	char	   *filters;		/* JSON text, NULL: none */
	char	   *delete_policy;
	double		full_every_s;
	char	   *full_strategy;	/* auto, list or list_and_search */
	bool		enabled;
	List	   *fields;			/* of HsField * */
	List	   *configured_by;	/* of char *: roles that wrote these rows */
} HsSyncType;

/* A row of progress_sources. */
typedef struct HsSourceRow
{
	char	   *source;
	char	   *level;			/* "": none */
	char	   *schema;			/* NULL: that of users */
	char	   *table;			/* NULL: the usual one of the level */
	char	   *columns;		/* JSON text */
	int			total_units;	/* 0: not stated */
	bool		enabled;
} HsSourceRow;

/* What was accepted of a student. */
typedef struct HsProgressState
{
	char	   *user_id;
	char	   *email;
	char	   *contact_id;
	int64		fingerprint;
	char	   *properties;		/* JSON text; NULL: not asked for */
} HsProgressState;

/* A property for progress that HubSpot was found to have. */
typedef struct HsKnownProperty
{
	char	   *name;
	char	   *problem;		/* why it cannot be used, NULL if it can */
	bool		fresh;			/* it was looked at lately */
} HsKnownProperty;

/* Students whose values were accepted, as parallel arrays. */
typedef struct HsAcceptances
{
	const char **users;
	const char **emails;
	const char **contacts;
	const char **properties;	/* JSON text */
	const char **fingerprints;
	int			n;
} HsAcceptances;

/* What a request asks for, and what a worker finds when it claims it. */
typedef struct HsRunRequest
{
	pg_uuid_t	connection_id;
	const char *connection_name;
	const char *portal_id;		/* NULL: not known yet */
	const char *sync_type;
	const char *direction;
	const char *mode;
	const char *timeframe;		/* NULL: none */
	const char *scope;			/* "": unscoped */
	TimestampTz range_from;		/* 0: open */
	TimestampTz range_to;		/* 0: open */
	const char *trigger_source;
	const char *requested_by;
} HsRunRequest;

typedef struct HsActiveRun
{
	pg_uuid_t	id;
	char	   *mode;
	char	   *scope;
	char	   *started;		/* text for people */
	int			pid;			/* 0: no worker yet */
	bool		dead;
} HsActiveRun;

typedef struct HsRunStatus
{
	char	   *sync_type;
	char	   *status;			/* effective: dead runs read as failed */
	char	   *reason;			/* may be NULL */
	char	   *message;		/* may be NULL */
	char	   *activity;		/* what the worker does, may be NULL */
	int			pid;			/* 0: no worker */
	int			processed;
	int			failed;
	int			requests;
	double		seconds;		/* since start, 0 before */
} HsRunStatus;

typedef struct HsRunCounters
{
	int			processed;
	int			failed;
	int			changed;
	int			unchanged;
	int			archived;
	int			requests;
	int			retries;
	int64		bytes_received;
} HsRunCounters;

typedef struct HsResume
{
	pg_uuid_t	run_id;
	char	   *checkpoint;		/* JSON text */
} HsResume;

typedef struct HsSyncState
{
	bool		is_known;		/* false: no run was completed yet */
	TimestampTz synced_until;	/* 0: never */
	TimestampTz last_full_at;	/* 0: never; our clock */
	char	   *last_full_mapping;
	TimestampTz last_deep_at;	/* 0: never; our clock */
	TimestampTz deep_until;		/* 0: never; HubSpot's clock */
	TimestampTz last_refused_at;	/* 0: not refused; our clock */
	TimestampTz last_sweep_at;	/* 0: never; our clock */
	char	   *sweep_after;	/* list cursor, NULL: from the beginning */
	int64		sweep_last_id;
} HsSyncState;

typedef struct HsDeadLetter
{
	const char *record_id;
	const char *email;			/* NULL: none */
	const char *property;		/* NULL: not known */
	const char *category;
	const char *message;
	const char *payload;		/* JSON text, NULL: none */
} HsDeadLetter;

/* One record's bookkeeping where the target has no columns for it. */
typedef struct HsKnownRow
{
	TimestampTz updated_at;		/* 0: unknown */
	bool		archived;
	char	   *reason;			/* why it is archived; NULL: nothing known */
	char	   *merged_into;	/* NULL: nothing known */
	bool		found;
} HsKnownRow;

/* Bookkeeping to save, as parallel arrays of text, NULL for null. */
typedef struct HsRowNotes
{
	const char *const *ids;
	const char *const *updated; /* NULL: as it was */
	const char *const *archived;
	const char *const *archived_at;
	const char *const *reason;
	const char *const *merged_into;
	int			n;
} HsRowNotes;

/* A record that a walk has missed. */
typedef struct HsAbsence
{
	char	   *record_id;
	char	   *kind;			/* its origin, or, once read, the verdict */
	char	   *merged_into;	/* NULL: nobody claims it */
} HsAbsence;

/* A contact whose owner is not the one noted last. */
typedef struct HsOwnerChange
{
	int			index;			/* of the contact among those compared */
	TimestampTz since;			/* as far as known */
	bool		known;			/* there is a history already */
	bool		open;			/* and somebody is noted as the owner */
} HsOwnerChange;

extern bool hs_catalog_find_extension(HsExtension *extension);
extern bool hs_catalog_lock_extension(Oid expected);

extern HsSyncType *hs_catalog_sync_type(const char *name);
extern char *hs_catalog_known_types(void);
extern bool hs_catalog_connection(const char *name, HsConnection *connection);
extern char *hs_catalog_known_connections(void);
extern void hs_catalog_save_portal(const HsConnection *connection,
								   const char *portal_id);
extern bool hs_catalog_timeframe(const char *timeframe, TimestampTz *from,
								 TimestampTz *to);
extern char *hs_catalog_changed_settings(bool role_is_workers);
extern Oid	hs_catalog_table_owner(Oid relation);

extern bool hs_catalog_insert_run(const HsRunRequest *request, pg_uuid_t *id,
								  int64 *lock_key);
extern bool hs_catalog_active_run(const pg_uuid_t *connection_id,
								  const char *sync_type, HsActiveRun *run);
extern void hs_catalog_close_dead_run(const pg_uuid_t *id);
extern int	hs_catalog_close_dead_runs(void);
extern void hs_catalog_refused_run(const char *connection,
								   const char *sync_type,
								   const char *requested_by,
								   const ErrorData *error);
extern void hs_catalog_announce_end(const pg_uuid_t *id);
extern void hs_catalog_expire(const pg_uuid_t *connection_id,
							  const char *sync_type, double retention_s);
extern void hs_catalog_touch_pending(const pg_uuid_t *id);
extern bool hs_catalog_run_status(const pg_uuid_t *id, HsRunStatus *status);
extern bool hs_catalog_cancel_pending(const pg_uuid_t *id);

extern bool hs_catalog_claim_run(const pg_uuid_t *id, HsRunRequest *request);
extern bool hs_catalog_resume(const HsRunRequest *request, const char *mode,
							  const char *mapping, HsResume *resume);
extern void hs_catalog_start_run(const pg_uuid_t *id, const char *mode,
								 const char *mapping, const char *checkpoint,
								 const pg_uuid_t *continues);
extern void hs_catalog_save_run(const pg_uuid_t *id,
								const HsRunCounters *counters,
								const char *checkpoint);
extern void hs_catalog_finish_run(const pg_uuid_t *id, const char *status,
								  const HsRunCounters *counters,
								  const char *error_details);

extern void hs_catalog_state(const pg_uuid_t *connection_id,
							 const char *sync_type, HsSyncState *state);
extern void hs_catalog_save_state(const pg_uuid_t *connection_id,
								  const char *sync_type,
								  TimestampTz synced_until, bool full,
								  bool deep, const char *mapping);

extern void hs_catalog_reset_state(const pg_uuid_t *connection_id,
								   const char *sync_type);

extern void hs_catalog_dead_letter(const pg_uuid_t *run_id,
								   const pg_uuid_t *connection_id,
								   const char *sync_type,
								   const HsDeadLetter *letter);
extern List *hs_catalog_open_errors(const pg_uuid_t *connection_id,
									const char *sync_type, int max_attempts,
									int limit);
extern bool hs_catalog_has_open_errors(const pg_uuid_t *connection_id,
									   const char *sync_type);
extern void hs_catalog_count_attempts(const pg_uuid_t *connection_id,
									  const char *sync_type,
									  const char *const *ids, int n);
extern void hs_catalog_resolve_errors(const pg_uuid_t *connection_id,
									  const char *sync_type,
									  const char *const *ids, int n);
extern void hs_catalog_resolve_anonymous(const pg_uuid_t *connection_id,
										 const char *sync_type,
										 TimestampTz before);

extern void hs_catalog_known_rows(const pg_uuid_t *connection_id,
								  const char *sync_type,
								  const char *const *ids, int n,
								  HsKnownRow *rows);
extern void hs_catalog_save_rows(const pg_uuid_t *connection_id,
								 const char *sync_type,
								 const HsRowNotes *notes);
extern void hs_catalog_forget_rows(const pg_uuid_t *connection_id,
								   const char *sync_type,
								   const char *const *ids, int n);

extern List *hs_catalog_rows_in_range(const pg_uuid_t *connection_id,
									  const char *sync_type, const char *low,
									  const char *high, bool archived);
extern List *hs_catalog_buried_rows(const pg_uuid_t *connection_id,
									const char *sync_type,
									const char *const *ids, int n);
extern double hs_catalog_count_rows(const pg_uuid_t *connection_id,
									const char *sync_type);

extern void hs_catalog_note_absences(const pg_uuid_t *connection_id,
									 const char *sync_type,
									 const pg_uuid_t *run_id,
									 const char *origin,
									 const char *const *ids,
									 const char *const *survivors, int n);
extern bool hs_catalog_has_absences(const pg_uuid_t *connection_id,
									const char *sync_type);
extern void hs_catalog_drop_absences(const pg_uuid_t *connection_id,
									 const char *sync_type,
									 const char *const *ids, int n);
extern void hs_catalog_arrived_absences(const pg_uuid_t *connection_id,
										const char *sync_type,
										const char *const *ids, int n);
extern void hs_catalog_clear_absences(const pg_uuid_t *connection_id,
									  const char *sync_type);
extern List *hs_catalog_unread_absences(const pg_uuid_t *connection_id,
										const char *sync_type, bool full,
										const char *after, int limit);
extern void hs_catalog_judge_absences(const pg_uuid_t *connection_id,
									  const char *sync_type,
									  const pg_uuid_t *run_id,
									  const char *const *ids,
									  const char *const *verdicts,
									  const char *const *survivors, int n);
extern double hs_catalog_count_gone(const pg_uuid_t *connection_id,
									const char *sync_type, bool live);
extern List *hs_catalog_judged_absences(const pg_uuid_t *connection_id,
										const char *sync_type, bool full,
										bool refused, bool bin_refused,
										int limit);
extern void hs_catalog_refuse_absences(const pg_uuid_t *connection_id,
									   const char *sync_type,
									   const pg_uuid_t *run_id);
extern int	hs_catalog_accept_absences(const pg_uuid_t *run_id);

extern List *hs_catalog_owner_changes(const pg_uuid_t *connection_id,
									  const char *const *ids,
									  const char *const *owners,
									  const TimestampTz *changed, int n,
									  bool provisional);
extern void hs_catalog_close_owners(const pg_uuid_t *connection_id,
									const char *const *ids,
									const TimestampTz *instants, int n);
extern void hs_catalog_open_owners(const pg_uuid_t *connection_id,
								   const char *const *ids,
								   const TimestampTz *instants,
								   const char *const *owners, int n);
extern void hs_catalog_note_owner_reads(const pg_uuid_t *connection_id,
										bool urgent, const char *const *ids,
										int n);
extern List *hs_catalog_owner_reads(const pg_uuid_t *connection_id,
									const char *after, bool urgent,
									int limit);
extern void hs_catalog_count_owner_reads(const pg_uuid_t *connection_id,
										 const char *const *ids, int n);
extern void hs_catalog_drop_owner_reads(const pg_uuid_t *connection_id,
										const char *const *ids, int n);
extern void hs_catalog_cut_owners(const pg_uuid_t *connection_id,
								  const char *const *ids,
								  const TimestampTz *instants, int n);
extern void hs_catalog_add_owners(const pg_uuid_t *connection_id,
								  const char *const *ids,
								  const char *const *owners,
								  const TimestampTz *since,
								  const TimestampTz *until, int n);

extern void hs_catalog_forget_full_mapping(const pg_uuid_t *connection_id,
										   const char *sync_type);
extern void hs_catalog_save_refusal(const pg_uuid_t *connection_id,
									const char *sync_type);
extern void hs_catalog_save_sweep(const pg_uuid_t *connection_id,
								  const char *sync_type, const char *after,
								  int64 last_id);
extern List *hs_catalog_properties(const pg_uuid_t *connection_id,
								   const char *object_type,
								   double max_age_s);
extern void hs_catalog_save_properties(const pg_uuid_t *connection_id,
									   const char *object_type,
									   const char *const *names, int n);

extern void hs_catalog_save_target(const HsSyncType *type,
								   const char *author);
extern void hs_catalog_drop_fields(const char *sync_type,
								   const char *const *kept, int n);
extern void hs_catalog_save_fields(const HsSyncType *type,
								   const char *author);
extern void hs_catalog_note_removal(const char *sync_type,
									const char *column_name);
extern void hs_catalog_forget_removal(const char *sync_type,
									  const char *column_name);
extern void hs_catalog_remove_shipped(const char *sync_type,
									  const char *column_name);
extern bool hs_catalog_replace_shipped(Relation rel, HeapTuple row);

extern void hs_acceptances_init(HsAcceptances *accepted, int most);
extern List *hs_catalog_progress_sources(void);
extern List *hs_catalog_level_tables(Oid schema, Oid owner);
extern List *hs_catalog_progress_states(const pg_uuid_t *connection_id,
										const char *const *users, int n,
										bool with_properties);
extern List *hs_catalog_contact_holders(const pg_uuid_t *connection_id,
										const char *const *contacts, int n);
extern void hs_catalog_announce_progress(const pg_uuid_t *connection_id,
										 const HsAcceptances *sent,
										 const char *const *kept);
extern List *hs_catalog_leftovers(const pg_uuid_t *connection_id,
								  const char *const *contacts, int n);
extern void hs_catalog_drop_leftovers(const pg_uuid_t *connection_id,
									  const char *const *contacts, int n);
extern void hs_catalog_save_progress(const pg_uuid_t *connection_id,
									 const HsAcceptances *accepted);
extern void hs_catalog_drop_progress(const pg_uuid_t *connection_id,
									 const char *const *users, int n);
extern int	hs_catalog_forget_progress(const pg_uuid_t *connection_id,
									   const char *const *properties, int n);
extern void hs_catalog_contacts_by_email(const pg_uuid_t *connection_id,
										 const char *const *emails, int n,
										 const char **contacts);
extern List *hs_catalog_progress_properties(const pg_uuid_t *connection_id,
											double max_age_s);
extern void hs_catalog_save_progress_properties(const pg_uuid_t *connection_id,
												const char *const *names,
												const char *const *problems,
												int n);
extern bool hs_catalog_emptiness_accepted(const pg_uuid_t *connection_id,
										  const char *sync_type);
extern int	hs_catalog_accept_emptiness(const pg_uuid_t *run_id);
extern void hs_catalog_doubt_progress_properties(const pg_uuid_t *connection_id);
extern void hs_catalog_resolve_unmet(const pg_uuid_t *connection_id,
									 const char *sync_type,
									 const char *category,
									 const pg_uuid_t *run_id);

extern bool hs_catalog_is_home(void);
extern void hs_catalog_adopt(void);
extern List *hs_catalog_due_types(void);
extern List *hs_catalog_connections(void);

extern void hs_catalog_plan_by_index(void);
extern Datum hs_catalog_text_array(const char *const *values, int n);

#endif							/* HS_CATALOG_H */
